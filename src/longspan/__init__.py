"""Longspan: transformers on long sequences through block-sparse attention.

Importing this package imports neither torch nor transformers: each name is imported when it is first used.
As soon as transformers' models are imported, they know the attention implementation ``longspan``; nothing
else is changed there.
"""

import importlib
from typing import TYPE_CHECKING, Any

from longspan.after_import import after_import
from longspan.version import __version__

if TYPE_CHECKING:
    from longspan.attention import BertSparseSelfAttention, SparseSelfAttention
    from longspan.deepspeed import SparseAttentionUtils
    from longspan.models import sparsify
    from longspan.positions import extend
    from longspan.sparsity import (
        AShapeSparsityConfig,
        AttentionSinksSparsityConfig,
        BigBirdSparsityConfig,
        BSLongformerSparsityConfig,
        DenseSparsityConfig,
        DifferenceSparsityConfig,
        DilatedSparsityConfig,
        FixedSparsityConfig,
        HeadMixtureSparsityConfig,
        HierarchicalSparsityConfig,
        IntersectionSparsityConfig,
        LocalSlidingWindowSparsityConfig,
        RandomSparsityConfig,
        SparsityConfig,
        StridedSparsityConfig,
        UnionSparsityConfig,
        VariableSparsityConfig,
        VerticalSlashSparsityConfig,
        from_deepspeed,
    )
    from longspan.training.export import export
    from longspan_kernels import Alibi, BlockLayout, T5Buckets, block_sparse_attention

__all__ = [
    "AShapeSparsityConfig",
    "Alibi",
    "AttentionSinksSparsityConfig",
    "BSLongformerSparsityConfig",
    "BertSparseSelfAttention",
    "BigBirdSparsityConfig",
    "BlockLayout",
    "DenseSparsityConfig",
    "DifferenceSparsityConfig",
    "DilatedSparsityConfig",
    "FixedSparsityConfig",
    "HeadMixtureSparsityConfig",
    "HierarchicalSparsityConfig",
    "IntersectionSparsityConfig",
    "LocalSlidingWindowSparsityConfig",
    "RandomSparsityConfig",
    "SparseAttentionUtils",
    "SparseSelfAttention",
    "SparsityConfig",
    "StridedSparsityConfig",
    "T5Buckets",
    "UnionSparsityConfig",
    "VariableSparsityConfig",
    "VerticalSlashSparsityConfig",
    "__version__",
    "block_sparse_attention",
    "export",
    "extend",
    "from_deepspeed",
    "sparsify",
]

# The module that has each name: what is imported above for type checkers and editors.
_MODULES = {
    "longspan.attention": ("BertSparseSelfAttention", "SparseSelfAttention"),
    "longspan.deepspeed": ("SparseAttentionUtils",),
    "longspan.models": ("sparsify",),
    "longspan.positions": ("extend",),
    "longspan.training.export": ("export",),
    "longspan_kernels": ("Alibi", "BlockLayout", "T5Buckets", "block_sparse_attention"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
# Parts that can be had as attributes without an import of their own.
_PARTS = ("attention", "deepspeed", "models", "positions", "sparsity")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF.get(name, "longspan.sparsity")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})


def _register() -> None:
    from longspan.models.registration import register

    register()


# Every model of transformers imports this module, which holds the registry of attention functions.
after_import("transformers.modeling_utils", _register)
