"""The names of DeepSpeed's sparse attention: utilities, and the block of its configuration files."""

from longspan.deepspeed.sparse_attention_utils import SparseAttentionUtils

__all__ = ["SparseAttentionUtils"]
