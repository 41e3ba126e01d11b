"""SparseSelfAttention: queries, keys and values in, context out, under a pattern."""

from __future__ import annotations

import operator
import warnings
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from longspan.sparsity import DenseSparsityConfig, SparsityConfig
from longspan_kernels import BlockLayout, block_sparse_attention
from longspan_kernels.layout.handles import LayoutHandle, constant_in_graphs, keep_for_graph
from longspan_kernels.relative import RelativeBias

_MODES = ("add", "mul")


class SparseSelfAttention(nn.Module):
    """Attention under a sparsity pattern; no parameters, nothing in the state dict.

    A sequence of fewer blocks than the pattern is defined for (BigBird's three numbers, Variable's random
    blocks) is attended densely, with a warning: a model reads short texts too.

    Takes what DeepSpeed's module of this name takes, and more. Any length, lengths of queries and keys that
    differ (the last query meets the last key), grouped key and value heads.

    Args:
        sparsity_config: the pattern.
        key_padding_mask_mode: what numbers in ``key_padding_mask`` mean: "add", they are added to the scores;
            "mul", 0 masks the key and any other number keeps it.
        attn_mask_mode: the same for ``attn_mask``.
        max_seq_length: accepted as the original's argument; there is no limit.
        dropout_p: probability of dropping an attention weight in training.
        backend: see `longspan.block_sparse_attention`.

    Raises:
        ValueError: a mode that does not exist.

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
        """Attend: softmax of ``query key^T scale + rpe + masks`` over the pattern's blocks, times the values.

        Args:
            query: ``[batch, heads, q_len, dim]``, as many heads as the pattern's.
            key: ``[batch, kv_heads, k_len, dim]``.
            value: ``[batch, kv_heads, k_len, v_dim]``.
            rpe: relative position bias, broadcasts to ``[batch, heads, q_len, k_len]``; added, with gradient.
            key_padding_mask: ``[batch, k_len]``, or ``[batch, 1, 1, k_len]`` as in Hugging Face models;
                numbers are read by ``key_padding_mask_mode``, bool says True where a key may be attended in
                either mode.
            attn_mask: broadcasts to ``[batch, heads, q_len, k_len]``, usually ``[q_len, k_len]``; numbers are
                read by ``attn_mask_mode``, bool says True where a key may be attended in either mode.
            causal: None: as the pattern says; True or False overrides it.
            scale: factor of the scores, ``dim ** -0.5`` if None.
            bias: another name of ``rpe``; one of the two may be given.
            document_ids: integers ``[batch, k_len]``; attention stays between equal numbers.
            relative_bias: `longspan.T5Buckets` or `longspan.Alibi`: a bias by distance alone.
            window: ``(left, right)`` tokens that a query sees on either side, each None for no bound.
            dropout_p: the probability for this call, in training or not; None: the module's own in training,
                0 otherwise.

        Returns:
            The context ``[batch, heads, q_len, v_dim]``.

        Raises:
            ValueError: arguments that do not fit one another, as `longspan.block_sparse_attention` says.

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
                "key_padding_mask", _read("key_padding_mask", key_padding_mask, self.key_padding_mask_mode)
            )
        if attn_mask is not None:
            attn_mask = _read("attn_mask", attn_mask, self.attn_mask_mode)
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
        """Ask the pattern, which keeps its layouts."""
        if torch.compiler.is_compiling():
            parts = _constant(self.sparsity_config)
            return LayoutHandle(*_pinned(parts, _constant(k_len), _constant(q_len)))
        if not self.sparsity_config.defined_for(k_len):
            pattern = self.sparsity_config
            warnings.warn(
                # The same words for all lengths of so many blocks, so that they are said once.
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
    """Run by Dynamo while it traces: the graph is specialised to the pattern and the lengths.

    The pattern comes as what it is made of, which Dynamo guards by value; made again, it is an equal pattern
    with the same layouts.
    """
    return keep_for_graph(_layout_of(_made_again(parts), k_len, q_len))


def _made_again(value: Any) -> Any:
    """Undo `_constant`: a tuple that begins with a class is a pattern of that class."""
    if not isinstance(value, tuple):
        return value
    if value and isinstance(value[0], type):
        pattern, names, values = value
        return pattern(**dict(zip(names, (_made_again(item) for item in values), strict=True)))
    return tuple(_made_again(item) for item in value)


def _layout_of(pattern: SparsityConfig, k_len: int, q_len: int) -> BlockLayout:
    """Ask the pattern; of a sequence with fewer blocks than it is defined for, keep all."""
    if not pattern.defined_for(k_len):
        pattern = DenseSparsityConfig(pattern.num_heads, pattern.block, attention=pattern.attention)
    return pattern.layout(k_len, q_len)


def _constant(value: Any) -> Any:
    """Take a pattern apart into its class, the names of its arguments and their values, and those within it.

    A number that Dynamo took for variable becomes one number again, guarded, also within tuples. A call of a
    method does it to a float, where ``float`` would leave it variable.
    """
    if isinstance(value, SparsityConfig):
        names = _arguments(type(value))
        return type(value), names, tuple(_constant(getattr(value, name)) for name in names)
    if isinstance(value, tuple):
        return tuple(_constant(item) for item in value)
    if isinstance(value, float):
        return value.__float__()
    return operator.index(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _read(name: str, mask: Tensor, mode: str) -> Tensor:
    """Bring a mask of the original's modes to what the kernels take: bool to keep, floating point to add."""
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
