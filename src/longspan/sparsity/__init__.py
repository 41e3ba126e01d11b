"""Patterns of block-sparse attention, as frozen configurations that make block layouts."""

from longspan.sparsity.a_shape import AShapeSparsityConfig
from longspan.sparsity.attention_sinks import AttentionSinksSparsityConfig
from longspan.sparsity.base import SparsityConfig
from longspan.sparsity.bigbird import BigBirdSparsityConfig
from longspan.sparsity.bslongformer import BSLongformerSparsityConfig
from longspan.sparsity.catalog import SHIPPED as SHIPPED  # importing it registers the shipped patterns
from longspan.sparsity.combined import (
    CombinedSparsityConfig,
    DifferenceSparsityConfig,
    IntersectionSparsityConfig,
    UnionSparsityConfig,
)
from longspan.sparsity.dense import DenseSparsityConfig
from longspan.sparsity.dilated import DilatedSparsityConfig
from longspan.sparsity.fixed import FixedSparsityConfig
from longspan.sparsity.from_deepspeed import from_deepspeed
from longspan.sparsity.heads import HeadMixtureSparsityConfig
from longspan.sparsity.hierarchical import HierarchicalSparsityConfig
from longspan.sparsity.local_sliding_window import LocalSlidingWindowSparsityConfig
from longspan.sparsity.mixture import layer_patterns
from longspan.sparsity.random import RandomSparsityConfig
from longspan.sparsity.registry import PATTERNS, from_dict, register
from longspan.sparsity.strided import StridedSparsityConfig
from longspan.sparsity.variable import VariableSparsityConfig
from longspan.sparsity.vertical_slash import VerticalSlashSparsityConfig

__all__ = [
    "PATTERNS",
    "AShapeSparsityConfig",
    "AttentionSinksSparsityConfig",
    "BSLongformerSparsityConfig",
    "BigBirdSparsityConfig",
    "CombinedSparsityConfig",
    "DenseSparsityConfig",
    "DifferenceSparsityConfig",
    "DilatedSparsityConfig",
    "FixedSparsityConfig",
    "HeadMixtureSparsityConfig",
    "HierarchicalSparsityConfig",
    "IntersectionSparsityConfig",
    "LocalSlidingWindowSparsityConfig",
    "RandomSparsityConfig",
    "SparsityConfig",
    "StridedSparsityConfig",
    "UnionSparsityConfig",
    "VariableSparsityConfig",
    "VerticalSlashSparsityConfig",
    "from_deepspeed",
    "from_dict",
    "layer_patterns",
    "register",
]
