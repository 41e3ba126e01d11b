"""Patterns of one's own, outside of this package: `longspan.sparsity.custom.NAME` is their module.

The environment variable LONGSPAN_PATH names folders, separated as those of PATH, that are laid out as conf/
is, with code beside the configuration: `sparsity/stripes.py` holds the class, `sparsity/stripes.yaml` its
arguments. The command line adds the folder of its flag ``--config-dir``. This module is a package whose
files are the Python files of those `sparsity` folders. A configuration can so name what lies in a folder that
the user has named, and nothing else; and whatever has the variable finds the class by its module's name: the
jobs of a sweep, the processes of a strategy, a pickle, a saved model.

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
    """Return the pattern called ``name`` of the module of that name; None where there is none."""
    if not isinstance(name, str) or not name.isidentifier():
        return None
    full_name = f"{__name__}.{name}"
    if importlib.util.find_spec(full_name) is None:
        return None
    module = importlib.import_module(full_name)
    for found in vars(module).values():
        # By its `name`, which a class that the module merely imports does not have.
        if isinstance(found, type) and found.__dict__.get("name") == name:
            return found
    return None


def where(name: object) -> str:
    """Say where a pattern of one's own is looked for, for an error."""
    named = ", ".join(str(folder / "sparsity") for folder in folders())
    return (
        f"a pattern of your own is found in sparsity/{name}.py of a folder that {VARIABLE} or --config-dir "
        f"names (now: {named or 'none'})"
    )


class _SparsityFolders:
    """The `sparsity` folders by now, whenever Python asks where the modules of this package lie."""

    def __iter__(self) -> Iterator[str]:
        return iter([str(folder / "sparsity") for folder in folders()])


__path__: Any = _SparsityFolders()


def __getattr__(name: str) -> Any:
    # What `import` has not found, as a module is an attribute of its package once it is imported.
    raise AttributeError(where(name) if name.isidentifier() and not name.startswith("_") else name)
