"""Block-sparse attention for PyTorch: the layout, the function, its backends."""

from longspan_kernels.backends import available_backends, resolve_backend
from longspan_kernels.functional import block_sparse_attention
from longspan_kernels.layout import BlockLayout, stack_heads
from longspan_kernels.relative import Alibi, T5Buckets

__all__ = [
    "Alibi",
    "BlockLayout",
    "T5Buckets",
    "available_backends",
    "block_sparse_attention",
    "resolve_backend",
    "stack_heads",
]
