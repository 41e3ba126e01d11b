"""Put the attention implementation ``longspan`` into transformers' registries.

Importing transformers' modelling code costs seconds and, through torch's compiler, imports Triton where it is
installed. ``import longspan`` does neither: where transformers' models are not imported yet, the registration
waits for that import.
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

# Every model imports this module, and it holds the registry of attention functions.
_REGISTRY_MODULE = "transformers.modeling_utils"


def register() -> None:
    """Register the attention function and the mask function now; imports transformers' modelling code."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

    if NAME in ALL_ATTENTION_FUNCTIONS:
        return
    AttentionInterface.register(NAME, longspan_attention)
    # The mask function reads closures and values, which torch.compile cannot trace: one clean break before
    # the layers. `disable` imports torch's compiler, as transformers has done by now.
    AttentionMaskInterface.register(NAME, torch.compiler.disable(longspan_mask))


def register_on_import() -> None:
    """Register as soon as transformers' models can be used: now if they are imported, else when they are."""
    if _REGISTRY_MODULE in sys.modules:
        register()
    elif not any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfterImport())


class _RegisterAfterImport:
    """Import finder that acts once: it lets the registry module load as ever, then registers and is gone."""

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
