"""Does something as soon as a module is imported: now if it is imported already, else when it will be."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def after_import(module: str, action: Callable[[], None]) -> None:
    """Call `action` once, when a module of this name has been imported."""
    if module in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Finder(module, action))


class _Finder:
    """Import finder that acts once: lets the module load as it would, then calls `action`."""

    def __init__(self, module: str, action: Callable[[], None]) -> None:
        self.module, self.action = module, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        exec_module = loader.exec_module

        def exec_and_act(module: ModuleType) -> None:
            exec_module(module)
            self.action()

        loader.exec_module = exec_and_act
        return spec
