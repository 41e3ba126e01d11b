"""Hugging Face models with sparse attention, through transformers' attention interface."""

from longspan.models.build import build_model
from longspan.models.layers import sparsity_of
from longspan.models.position_offset import position_offset
from longspan.models.pretrained import load_pretrained
from longspan.models.sparsify import sparsify

__all__ = [
    "build_model",
    "load_pretrained",
    "position_offset",
    "sparsify",
    "sparsity_of",
]
