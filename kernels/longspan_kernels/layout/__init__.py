"""The kept blocks of an attention matrix, in compressed rows."""

from longspan_kernels.layout.block_layout import BlockLayout, stack_heads

__all__ = ["BlockLayout", "stack_heads"]
