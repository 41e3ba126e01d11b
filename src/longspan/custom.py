"""Parts of the user, outside of this package: `longspan.custom.GROUP.NAME` is the module GROUP/NAME.py.

GROUP is a folder of a user's folder (see `longspan.user_folders`), which is laid out as conf/ is:
`objective/spans.py` holds a class, `objective/spans.yaml` its arguments. This module is a package that
consists of the user's folders. A configuration can so name the code of a folder that the user has named, and
no other; and every process that has the variable finds a class by its module's name: the jobs of a sweep, the
workers of a loader, the processes of a strategy.

Patterns have a module of their own, `longspan.sparsity.custom`, since saved models find them by name.
docs/your-own-parts.md shows an objective, a dataset, a model and a metric.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from longspan.user_folders import VARIABLE, folders


class _UserFolders:
    """The user's folders at the moment at which Python asks where the modules of this package lie."""

    def __iter__(self) -> Iterator[str]:
        return iter([str(folder) for folder in folders()])


__path__: Any = _UserFolders()


def __getattr__(name: str) -> Any:
    # Called for what `import` has not found: an imported module is an attribute of its package.
    if not name.isidentifier() or name.startswith("_"):
        raise AttributeError(name)
    named = ", ".join(str(folder) for folder in folders()) or "none"
    raise AttributeError(
        f"there is no folder {name} in a folder that {VARIABLE} or --config-dir names (now: {named})"
    )
