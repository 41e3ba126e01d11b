"""The shipped patterns, registered in the order in which errors and listings print them."""

from longspan.sparsity.a_shape import AShapeSparsityConfig
from longspan.sparsity.attention_sinks import AttentionSinksSparsityConfig
from longspan.sparsity.bigbird import BigBirdSparsityConfig
from longspan.sparsity.bslongformer import BSLongformerSparsityConfig
from longspan.sparsity.combined import (
    DifferenceSparsityConfig,
    IntersectionSparsityConfig,
    UnionSparsityConfig,
)
from longspan.sparsity.dense import DenseSparsityConfig
from longspan.sparsity.dilated import DilatedSparsityConfig
from longspan.sparsity.fixed import FixedSparsityConfig
from longspan.sparsity.heads import HeadMixtureSparsityConfig
from longspan.sparsity.hierarchical import HierarchicalSparsityConfig
from longspan.sparsity.local_sliding_window import LocalSlidingWindowSparsityConfig
from longspan.sparsity.random import RandomSparsityConfig
from longspan.sparsity.registry import register
from longspan.sparsity.strided import StridedSparsityConfig
from longspan.sparsity.variable import VariableSparsityConfig
from longspan.sparsity.vertical_slash import VerticalSlashSparsityConfig

SHIPPED = (
    DenseSparsityConfig,
    FixedSparsityConfig,
    VariableSparsityConfig,
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    StridedSparsityConfig,
    DilatedSparsityConfig,
    AttentionSinksSparsityConfig,
    AShapeSparsityConfig,
    VerticalSlashSparsityConfig,
    RandomSparsityConfig,
    HierarchicalSparsityConfig,
    UnionSparsityConfig,
    IntersectionSparsityConfig,
    DifferenceSparsityConfig,
    HeadMixtureSparsityConfig,
)

for pattern in SHIPPED:
    register(pattern.name, pattern)
