"""Folders of the user that extend the package: laid out as conf/ is, with code beside the configuration.

The environment variable LONGSPAN_PATH names them, separated as those of PATH; the command line adds the
folder of its flag ``--config-dir``. `longspan.config.search_path` lets Hydra find their options, and
`longspan.sparsity.custom` their patterns.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

VARIABLE = "LONGSPAN_PATH"


def folders() -> list[Path]:
    """Return the folders that the user has named, absolute, in order."""
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    return [Path(name).expanduser().absolute() for name in named if name]


def add(folder: str | os.PathLike[str]) -> None:
    """Put a folder before the others, for this process and those that it starts.

    Raises:
        ValueError: its name holds the character that separates folders.

    """
    path = str(Path(folder).expanduser().absolute())
    if os.pathsep in path:
        raise ValueError(f"a folder for {VARIABLE} must not have {os.pathsep!r} in its name, got {path}")
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([path, *map(str, folders())]))
    importlib.invalidate_caches()
