"""Longspan: transformers on long sequences through block-sparse attention.

Importing this package makes the attention implementation ``longspan`` known to transformers, and changes
nothing else there.
"""

from typing import TYPE_CHECKING, Any

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
from longspan.version import __version__
from longspan_kernels import Alibi, BlockLayout, T5Buckets, block_sparse_attention

if TYPE_CHECKING:
    from longspan.training.export import export

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


def __getattr__(name: str) -> Any:
    # `python -m longspan.training.export` must not find the module imported already.
    if name == "export":
        from longspan.training.export import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
