"""Patterns: configurations of block-sparse attention that make block layouts."""

from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.bigbird import BigBirdSparsityConfig
from longspan.sparsity.bslongformer import BSLongformerSparsityConfig
from longspan.sparsity.dense import DenseSparsityConfig
from longspan.sparsity.fixed import FixedSparsityConfig
from longspan.sparsity.from_deepspeed import from_deepspeed
from longspan.sparsity.local_sliding_window import LocalSlidingWindowSparsityConfig
from longspan.sparsity.registry import PATTERNS, from_dict, register
from longspan.sparsity.variable import VariableSparsityConfig

__all__ = [
    "PATTERNS",
    "BSLongformerSparsityConfig",
    "BigBirdSparsityConfig",
    "DenseSparsityConfig",
    "FixedSparsityConfig",
    "LocalSlidingWindowSparsityConfig",
    "SparsityConfig",
    "VariableSparsityConfig",
    "from_deepspeed",
    "from_dict",
    "register",
]
