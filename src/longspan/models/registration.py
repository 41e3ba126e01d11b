"""Registration of the attention implementation ``longspan`` in transformers.

The import of transformers' modelling code takes seconds and, through torch's compiler, imports Triton if it
is installed. ``import longspan`` does neither: if transformers' models are not imported yet, the registration
happens at that import.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from longspan.models.attention_interface import longspan_attention
from longspan.models.masks import longspan_mask

NAME = "longspan"

# Every model imports this module, which has the registry of attention functions.
_REGISTRY_MODULE = "transformers.modeling_utils"


def register() -> None:
    """Register the attention function and the mask function now; imports transformers' modelling code."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

    if NAME in ALL_ATTENTION_FUNCTIONS:
        return
    AttentionInterface.register(NAME, longspan_attention)
    # The mask function reads closures and values, which torch.compile cannot trace: one clean break before
    # the layers. `disable` imports torch's compiler, which transformers has already imported.
    AttentionMaskInterface.register(NAME, torch.compiler.disable(longspan_mask))


def register_on_import() -> None:
    """Register now if transformers' models are imported, otherwise at their import."""
    if _REGISTRY_MODULE in sys.modules:
        register()
    elif not any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfterImport())


class _RegisterAfterImport:
    """Import finder that registers after the registry module is loaded, and then removes itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _REGISTRY_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        exec_module = loader.exec_module

        def exec_and_register(module: ModuleType) -> None:
            exec_module(module)
            register()

        loader.exec_module = exec_and_register
        return spec
