"""SparseSelfAttention: attention with a sparsity pattern.

Shapes in this file: B batch, H query heads, K key and value heads, L queries, M keys, D head dimension, E
dimension of a value.
"""

from __future__ import annotations

import operator
import warnings
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from longspan.sparsity import DenseSparsityConfig, SparsityConfig
from longspan_kernels import BlockLayout, block_sparse_attention
from longspan_kernels.layout.csr import LayoutHandle
from longspan_kernels.layout.handles import constant_in_graphs, keep_for_graph
from longspan_kernels.relative import RelativeBias

_MODES = ("add", "mul")


class SparseSelfAttention(nn.Module):
    """Attention with a sparsity pattern, without parameters and without entries in the state dict.

    A sequence with too few blocks for the pattern (BigBird's three numbers, Variable's random blocks) is
    attended densely, with a warning, since models also read short texts.

    The arguments include those of DeepSpeed's module of this name. Lengths are arbitrary, queries and keys
    may differ in length (the last query is at the position of the last key), and key and value heads may be
    grouped.

    Args:
        sparsity_config: the pattern.
        key_padding_mask_mode: meaning of numbers in ``key_padding_mask``: with "add" they are added to the
            scores; with "mul" 0 masks the key and any other number keeps it.
        attn_mask_mode: meaning of numbers in ``attn_mask``, likewise.
        max_seq_length: unused; accepted for compatibility with DeepSpeed.
        dropout_p: probability of dropping an attention weight in training.
        backend: backend of `longspan.block_sparse_attention`.

    Raises:
        ValueError: a mode is unknown, or ``dropout_p`` is out of range.

    """

    def __init__(
        self,
        sparsity_config: SparsityConfig,
        key_padding_mask_mode: str = "add",
        attn_mask_mode: str = "mul",
        max_seq_length: int = 2048,
        *,
        dropout_p: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        for name, mode in (
            ("key_padding_mask_mode", key_padding_mask_mode),
            ("attn_mask_mode", attn_mask_mode),
        ):
            if mode not in _MODES:
                raise ValueError(f"{name} must be 'add' or 'mul', got {mode!r}")
        if not 0 <= dropout_p < 1:
            raise ValueError(f"dropout_p must lie in [0, 1), got {dropout_p}")
        self.sparsity_config = sparsity_config
        self.key_padding_mask_mode = key_padding_mask_mode
        self.attn_mask_mode = attn_mask_mode
        self.dropout_p = dropout_p
        self.backend = backend

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rpe: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        *,
        causal: bool | None = None,
        scale: float | None = None,
        bias: Tensor | None = None,
        document_ids: Tensor | None = None,
        relative_bias: RelativeBias | None = None,
        window: tuple[int | None, int | None] | None = None,
        dropout_p: float | None = None,
    ) -> Tensor:
        """Compute softmax of ``query key^T scale + rpe + masks`` over the kept blocks, times the values.

        Args:
            query: ``[B, H, L, D]``, with the heads of the pattern.
            key: ``[B, K, M, D]``, ``H`` a multiple of ``K``.
            value: ``[B, K, M, E]``.
            rpe: relative position bias, broadcasts to ``[B, H, L, M]``; added to the scores, with gradient.
            key_padding_mask: ``[B, M]``, or ``[B, 1, 1, M]`` as in Hugging Face models. In bool masks True
                means that a key may be attended; numbers follow ``key_padding_mask_mode``.
            attn_mask: broadcasts to ``[B, H, L, M]``, usually ``[L, M]``. In bool masks True means that a key
                may be attended; numbers follow ``attn_mask_mode``.
            causal: whether attention is causal to the token; None for the direction of the pattern.
            scale: factor of the scores; None for ``D ** -0.5``.
            bias: another name of ``rpe``; only one of the two may be given.
            document_ids: integers ``[B, M]``; a query attends only keys with its number.
            relative_bias: `longspan.T5Buckets` or `longspan.Alibi`: a bias that depends only on the distance.
            window: ``(left, right)``, the number of tokens that a query attends on either side, None for no
                bound.
            dropout_p: dropout probability of this call, in training or not; None for that of the module in
                training and 0 otherwise.

        Returns:
            The context ``[B, H, L, E]``.

        Raises:
            ValueError: arguments do not fit together; see `longspan.block_sparse_attention`.

        """
        if rpe is not None and bias is not None:
            raise ValueError("rpe and bias are the same argument: give one of them, got both")
        if query.ndim != 4 or query.shape[1] != self.sparsity_config.num_heads:
            raise ValueError(
                "query must be [batch, heads, length, dim] with the pattern's "
                f"num_heads={self.sparsity_config.num_heads}, got {list(query.shape)}"
            )
        if key_padding_mask is not None:
            key_padding_mask = _per_key(
                "key_padding_mask",
                _convert_mask("key_padding_mask", key_padding_mask, self.key_padding_mask_mode),
            )
        if attn_mask is not None:
            attn_mask = _convert_mask("attn_mask", attn_mask, self.attn_mask_mode)
        if dropout_p is None:
            dropout_p = self.dropout_p if self.training else 0.0
        return block_sparse_attention(
            query,
            key,
            value,
            self._layout(key.shape[2], query.shape[2]),
            causal=causal,
            scale=scale,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            bias=rpe if bias is None else bias,
            document_ids=document_ids,
            relative_bias=relative_bias,
            window=window,
            dropout_p=dropout_p,
            backend=self.backend,
        )

    def _layout(self, k_len: int, q_len: int) -> BlockLayout | LayoutHandle:
        """Return the layout of the pattern, or a handle that is constant in a compiled graph."""
        if torch.compiler.is_compiling():
            parts = _constant(self.sparsity_config)
            return LayoutHandle(*_pinned(parts, _constant(k_len), _constant(q_len)))
        if not self.sparsity_config.defined_for(k_len):
            pattern = self.sparsity_config
            warnings.warn(
                # The message has the number of blocks instead of the length, so that it is shown once for
                # each.
                f"{pattern.name} is not defined for a sequence of {-(-k_len // pattern.block)} block(s) of "
                f"{pattern.block} tokens: one that short is attended densely",
                stacklevel=2,
            )
        return _layout_of(self.sparsity_config, k_len, q_len)

    def extra_repr(self) -> str:
        """Describe the module in a printed model."""
        return f"{self.sparsity_config}, dropout_p={self.dropout_p}, backend={self.backend!r}"


@constant_in_graphs
def _arguments(pattern: type[SparsityConfig]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(pattern) if field.init)


@constant_in_graphs
def _pinned(parts: tuple[Any, ...], k_len: int, q_len: int) -> tuple[Any, ...]:
    """Make the layout while Dynamo traces: the graph is specialised to the pattern and the lengths.

    The pattern arrives as class and arguments, which Dynamo guards by value; the pattern made from them is
    equal and has the same layouts.
    """
    return keep_for_graph(_layout_of(_rebuild(parts), k_len, q_len))


def _rebuild(value: Any) -> Any:
    """Invert `_constant`: a tuple that begins with a class is a pattern of that class."""
    if not isinstance(value, tuple):
        return value
    if value and isinstance(value[0], type):
        pattern, names, values = value
        return pattern(**dict(zip(names, (_rebuild(item) for item in values), strict=True)))
    return tuple(_rebuild(item) for item in value)


def _layout_of(pattern: SparsityConfig, k_len: int, q_len: int) -> BlockLayout:
    """Return the layout of the pattern, or the dense one if the sequence has too few blocks for it."""
    if not pattern.defined_for(k_len):
        pattern = DenseSparsityConfig(pattern.num_heads, pattern.block, attention=pattern.attention)
    return pattern.layout(k_len, q_len)


def _constant(value: Any) -> Any:
    """Decompose a pattern into class, names of arguments and their values, recursively.

    A number that Dynamo treats as variable becomes a guarded constant, also in tuples. For a float, a method
    call has this effect, while ``float`` would keep it variable.
    """
    if isinstance(value, SparsityConfig):
        names = _arguments(type(value))
        return type(value), names, tuple(_constant(getattr(value, name)) for name in names)
    if isinstance(value, tuple):
        return tuple(_constant(item) for item in value)
    if isinstance(value, float):
        return value.__float__()
    return operator.index(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _convert_mask(name: str, mask: Tensor, mode: str) -> Tensor:
    """Convert a mask of DeepSpeed's modes for the kernels: bool, or floating point to add to the scores."""
    if mask.dtype == torch.bool:
        return mask
    if mode == "mul":
        return mask != 0
    if not mask.is_floating_point():
        raise ValueError(
            f"{name} must be bool or floating point when its mode is 'add' (it is added to the scores), got "
            f"{mask.dtype}; a mask of 0 and 1 wants the mode 'mul'"
        )
    return mask


def _per_key(name: str, mask: Tensor) -> Tensor:
    if mask.ndim == 4 and mask.shape[1:3] == (1, 1):
        return mask[:, 0, 0]
    if mask.ndim != 2:
        raise ValueError(f"{name} must be [batch, k_len] or [batch, 1, 1, k_len], got {list(mask.shape)}")
    return mask
