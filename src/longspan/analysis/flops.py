"""The floating-point operations of a training step: matrix products, with attention over the kept pairs.

The count is of model FLOPs (Chowdhery et al. 2022, "PaLM", appendix B): the operations that the mathematics
of a step needs, where a multiply and an add are two. Extra operations of an implementation are not counted:
the recomputation of scores in the backward of flash attention or of layers with gradient checkpointing, and
the masked half of a diagonal block. Norms, softmax, activations, embeddings and the optimizer are not counted
either.

The count uses no formula per architecture. A copy of the model on the meta device, without memory, runs one
forward and backward; torch counts its matrix products, and each call of attention is recorded. So shared
weights count at each use, grouped heads count as they are, and a frozen parameter costs no gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import FlopCounterMode

from longspan.attention import SparseSelfAttention
from longspan.models.attention_interface import longspan_attention
from longspan.models.head import split_head
from longspan.models.layers import attention_of, self_attention_layers
from longspan.models.registration import NAME
from longspan.sparsity import SparsityConfig
from longspan_kernels import BlockLayout
from longspan_kernels.layout.pair_counts import kept_pairs

# The attention implementation of the copy. It has no mask function, so nothing is masked.
_NAME = "longspan_counted"


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of the forward and backward of a batch.

    Attributes:
        total: operations with attention over the token pairs that the layouts keep.
        dense: operations with every block kept; for a causal layer or layout, the pairs on and below the
            diagonal.

    """

    total: int
    dense: int


@dataclass(frozen=True)
class AttentionCall:
    """One call of attention in a forward.

    Attributes:
        layer: index of the attention layer.
        batch: number of sequences.
        heads: query heads.
        length: tokens in a sequence.
        causal: whether the layer is causal to the token, independent of its layout.
        window: sliding window of the layer, in tokens to the left and to the right, None for no bound.
        products: sum of the inner dimensions of the products in forward and backward; a kept pair takes
            twice as many operations.

    """

    layer: int
    batch: int
    heads: int
    length: int
    causal: bool
    window: tuple[int | None, int | None]
    products: int

    def flops(self, layout: BlockLayout | None) -> Flops:
        """Count the call under a layout; None keeps every block.

        Raises:
            ValueError: the layout has another length or number of heads.

        """
        if layout is not None:
            layout.check_lengths(self.length, self.length)
            if layout.heads != self.heads:
                raise ValueError(f"the layout has {layout.heads} heads, but the model has {self.heads}")
        causal = self.causal or (layout is not None and layout.causal)
        left, right = self.window
        if causal:
            right = 0 if right is None else min(right, 0)
        whole = BlockLayout.from_dense(torch.ones(1, 1, 1), self.length)
        every = self.heads * kept_pairs(whole, self.length, self.length, left, right)
        kept = every if layout is None else kept_pairs(layout, self.length, self.length, left, right)
        flops_per_pair = 2 * self.batch * self.products
        return Flops(flops_per_pair * kept, flops_per_pair * every)


@dataclass(frozen=True)
class Trace:
    """The operations of a step, independent of the layouts of the layers.

    Attributes:
        layers: number of attention layers, each of which has a layout.
        others: operations of all matrix products outside of attention, forward and backward.
        calls: calls of attention; ALBERT calls each of its layers several times.

    """

    layers: int
    others: int
    calls: tuple[AttentionCall, ...]

    def flops(self, layouts: Sequence[BlockLayout | None]) -> Flops:
        """Count the step with one layout per layer; arguments and errors as in `training_flops`."""
        if len(layouts) != self.layers:
            raise ValueError(
                f"layouts must be one for each of the {self.layers} attention layers, got {len(layouts)}"
            )
        counted: dict[tuple[Any, ...], Flops] = {}
        total = dense = self.others
        for call in self.calls:
            # Most layers are equal, and a layout may have millions of blocks.
            key = (layouts[call.layer], replace(call, layer=0))
            if key not in counted:
                counted[key] = call.flops(layouts[call.layer])
            total, dense = total + counted[key].total, dense + counted[key].dense
        return Flops(total, dense)


def training_flops(
    model: nn.Module,
    layouts: Sequence[BlockLayout | None],
    seq_len: int,
    batch_size: int,
    scored: float = 1.0,
) -> Flops:
    """Count the floating-point operations of the forward and backward of a batch.

    Args:
        model: a Hugging Face language model, sparse or not, on any device, compiled or not, which is not
            changed; or a module without attention that takes ``input_ids``.
        layouts: layout of each attention layer at ``seq_len``, in order; None for a dense layer. ALBERT has
            one per set of weights. Attention is counted across documents that are packed into a sequence.
        seq_len: tokens in a sequence.
        batch_size: sequences in the batch.
        scored: share of the positions whose logits are computed, in (0, 1]; below 1 for a masked objective
            with ``loss_chunk``, whose head runs only on the scored positions.

    Raises:
        ValueError: a number is out of range, the number of layouts is not that of the attention layers, a
            layout has another length or number of heads, the attention of the model does not follow
            transformers' attention interface, the model cannot run without data, or ``scored`` is below 1 and
            the head is unknown.

    """
    return trace(model, seq_len, batch_size, scored).flops(layouts)


def layouts_of(model: nn.Module, seq_len: int) -> list[BlockLayout | None]:
    """Return the current layout of each attention layer, for `training_flops`; None for a dense layer.

    Args:
        model: as in `training_flops`.
        seq_len: tokens in a sequence.

    Raises:
        ValueError: the attention of the model does not follow transformers' attention interface.

    """
    return [layout_of(layer, seq_len) for layer in attention_layers(model)]


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """Return the attention layers of a model, in order; a module outside of Hugging Face has none."""
    return self_attention_layers(model) if hasattr(model, "config") else []


def pattern_of(layer: nn.Module) -> SparsityConfig | None:
    """Return the pattern of an attention layer; None for a dense layer."""
    attention = _sparse_attention(layer)
    return None if attention is None else attention.sparsity_config


def layout_of(layer: nn.Module, seq_len: int) -> BlockLayout | None:
    """Return the layout of an attention layer for a length; None for a dense layer."""
    attention = _sparse_attention(layer)
    # From the module, which attends densely where its pattern is not defined.
    return None if attention is None else attention._layout(seq_len, seq_len)  # type: ignore[return-value]


def _sparse_attention(layer: Any) -> SparseSelfAttention | None:
    if getattr(layer, "sparse_self_attention", None) is None:
        # A model loaded from disk makes the module in its first forward.
        sparse = getattr(layer.config, "_attn_implementation", None) == NAME
        return attention_of(layer) if sparse else None
    return layer.sparse_self_attention


def trace(model: nn.Module, seq_len: int, batch_size: int, scored: float = 1.0) -> Trace:
    """Record the operations of a copy of a model on the meta device; arguments as in `training_flops`."""
    for name, value in (("seq_len", seq_len), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0.0 < scored <= 1.0:
        raise ValueError(f"scored must lie in (0, 1], got {scored}")
    meta_model: Any = _on_meta_device(model)
    recorders = _record_attention(meta_model)
    input_ids = torch.zeros(batch_size, seq_len, dtype=torch.int64, device="meta")
    counter = FlopCounterMode(display=False)
    try:
        with torch.enable_grad(), counter:
            if scored < 1.0:
                backbone, head = split_head(meta_model)
                hidden = backbone(input_ids=input_ids).last_hidden_state.flatten(0, 1)
                logits = head(hidden[: max(1, round(scored * len(hidden)))])
            else:
                logits = meta_model(input_ids=input_ids).logits
            if logits.requires_grad:
                # In place of the gradient of the loss, which has no matrix product.
                logits.backward(torch.empty_like(logits))
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"the operations of {type(model).__name__} cannot be counted without data: {error}"
        ) from error
    calls = tuple(call for recorder in recorders for call in recorder.calls())
    return Trace(len(recorders), counter.get_total_flops(), calls)


def _on_meta_device(model: nn.Module) -> nn.Module:
    """Copy a model with its parameters and buffers on the meta device; shared ones stay shared."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty: Tensor = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = empty
    meta_model = copy.deepcopy(model, memo)
    for module in meta_model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False  # type: ignore[assignment]
        # Rotary types that depend on the length read the largest position, which has no value on the meta
        # device; scaling has no matrix product. ModernBERT has one type per kind of layer.
        types = getattr(module, "rope_type", None)
        if isinstance(types, str):
            module.rope_type = "default"  # type: ignore[assignment]
        elif isinstance(types, dict):
            module.rope_type = dict.fromkeys(types, "default")  # type: ignore[assignment]
    return meta_model


def _record_attention(meta_model: Any) -> list[_Recorder]:
    """Let each attention layer record its calls instead of attending."""
    layers: list[Any] = attention_layers(meta_model)
    if not layers:
        return []
    from transformers.modeling_utils import AttentionInterface

    # Passes window and causality of each layer, as the implementation `longspan` does.
    AttentionInterface.register(_NAME, longspan_attention)
    for config in (meta_model.config, layers[0].config):
        config._attn_implementation = _NAME
    for module in meta_model.modules():
        # GPT-2 searches for padding among the tokens, which have no values, only to warn.
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = _silent
    recorders = [_Recorder(index, layer.config.num_attention_heads) for index, layer in enumerate(layers)]
    for layer, recorder in zip(layers, recorders, strict=True):
        layer.sparse_self_attention = recorder
    return recorders


def _silent(*args: Any) -> None:
    pass


class _Recorder(nn.Module):
    """Takes the place of the SparseSelfAttention of a layer and records its calls."""

    def __init__(self, layer: int, heads: int) -> None:
        super().__init__()
        self.layer = layer
        self.sparsity_config = SimpleNamespace(num_heads=heads)
        self.recorded: list[AttentionCall] = []
        self.products: list[list[int]] = []

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        causal: bool | None = None,
        window: tuple[int | None, int | None] | None = None,
        **others: Any,
    ) -> Tensor:
        """Record the call and return a context of the right shape; other masks are not counted."""
        batch, heads, length, _ = query.shape
        self.recorded.append(
            AttentionCall(self.layer, batch, heads, length, bool(causal), window or (None, None), 0)
        )
        self.products.append([])
        return _RecordedAttention.apply(self.products[-1], query, key, value)

    def calls(self) -> list[AttentionCall]:
        """Return the calls, with the products of their forward and backward."""
        pairs = zip(self.recorded, self.products, strict=True)
        return [replace(call, products=sum(products)) for call, products in pairs]


class _RecordedAttention(torch.autograd.Function):
    """Attention that computes nothing and records the inner dimension of each of its products."""

    @staticmethod
    def forward(ctx: Any, products: list[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.products = products
        ctx.save_for_backward(query, key, value)
        # Scores and context.
        products += [query.shape[-1], value.shape[-1]]
        return query.new_empty(*query.shape[:3], value.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        _, needs_query, needs_key, needs_value = ctx.needs_input_grad
        if needs_query or needs_key:
            ctx.products.append(value.shape[-1])  # of the weights
        ctx.products += [
            side.shape[-1]
            for side, needed in ((key, needs_query), (query, needs_key), (value, needs_value))
            if needed
        ]
        return None, *(torch.empty_like(side) for side in (query, key, value))
