"""Patterns outside of this repository: `longspan.sparsity.custom.NAME` is the module of one of them.

The environment variable LONGSPAN_PATH lists folders, separated as in PATH, that have the layout of conf/ with
code beside the configuration: `sparsity/stripes.py` holds the class, `sparsity/stripes.yaml` its arguments.
The command line adds the folder of its flag ``--config-dir``. This module acts as a package of the Python
files in those `sparsity` folders. So a configuration can name code in the folders that the user has listed,
and no other code. Every process with the variable imports the class by the name of its module: the jobs of a
sweep, the processes of a strategy, a pickle, a saved model.

docs/custom-patterns.md shows it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from longspan.user_folders import VARIABLE, folders

if TYPE_CHECKING:
    from longspan.sparsity.base import SparsityConfig


def find(name: object) -> type[SparsityConfig] | None:
    """Return the pattern called ``name`` in the module of that name, or None if there is none."""
    if not isinstance(name, str) or not name.isidentifier():
        return None
    full_name = f"{__name__}.{name}"
    if importlib.util.find_spec(full_name) is None:
        return None
    module = importlib.import_module(full_name)
    for value in vars(module).values():
        # Classes that the module only imports have another `name`.
        if isinstance(value, type) and value.__dict__.get("name") == name:
            return value
    return None


def where(name: object) -> str:
    """Describe where the file of a pattern is searched, for an error message."""
    searched = ", ".join(str(folder / "sparsity") for folder in folders())
    return (
        f"a pattern of your own is found in sparsity/{name}.py of a folder that {VARIABLE} or --config-dir "
        f"names (now: {searched or 'none'})"
    )


class _SparsityFolders:
    """The current `sparsity` folders: Python iterates over this when it imports a module of this package."""

    def __iter__(self) -> Iterator[str]:
        return iter([str(folder / "sparsity") for folder in folders()])


__path__: Any = _SparsityFolders()


def __getattr__(name: str) -> Any:
    # Called for a module that was not imported: an imported one is an attribute of its package.
    raise AttributeError(where(name) if name.isidentifier() and not name.startswith("_") else name)
