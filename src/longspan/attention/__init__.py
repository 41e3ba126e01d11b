"""Attention modules over a sparsity pattern."""

from longspan.attention.bert import BertSparseSelfAttention
from longspan.attention.sparse_self_attention import SparseSelfAttention

__all__ = ["BertSparseSelfAttention", "SparseSelfAttention"]
