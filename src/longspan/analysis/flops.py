"""The floating-point operations of a training step: matrix products, attention over the kept pairs alone.

Counted are model FLOPs (Chowdhery et al. 2022, "PaLM", appendix B): what the mathematics of a step needs, a
multiply and an add each. What an implementation does besides is not counted: the recomputation of scores in a
flash-like backward, of layers under gradient checkpointing, the masked half of a diagonal block. Nor is what
is no matrix product: norms, softmax, activations, embeddings (a lookup), the optimizer.

Nothing is taken from a formula for an architecture: a copy of the model without memory (on the meta device)
runs one forward and backward, torch counts its matrix products, and each call of attention is noted. So
weights that layers share count at each use, grouped heads are projected as they are, and a parameter that is
frozen costs no gradient.
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

# The attention implementation of a model that is counted. It has no mask function: nothing is masked.
_NAME = "longspan_counted"


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of the forward and backward of a batch.

    Attributes:
        total: attention counted over the pairs of tokens that the layouts keep.
        dense: the same with every block kept; where the layer or its layout is causal, the pairs on and below
            the diagonal, half of all.

    """

    total: int
    dense: int


@dataclass(frozen=True)
class AttentionCall:
    """One call of attention in a forward.

    Attributes:
        layer: number of the attention layer.
        batch: sequences.
        heads: query heads.
        length: tokens of a sequence.
        causal: whether the layer is causal to the token, whatever its layout says.
        window: the layer's own, tokens to the left and to the right, each None for no bound.
        products: lengths of the sums in the products of forward and backward, added up: a pair that is kept
            takes twice as many operations.

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
            ValueError: the layout is of another length or number of heads.

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
        of_pair = 2 * self.batch * self.products
        return Flops(of_pair * kept, of_pair * every)


@dataclass(frozen=True)
class Trace:
    """What a model computes in a step, before it is said what its layers attend.

    Attributes:
        layers: number of attention layers, each of which has a layout.
        others: operations of all matrix products but those of attention, forward and backward.
        calls: the calls of attention; ALBERT calls each of its layers several times.

    """

    layers: int
    others: int
    calls: tuple[AttentionCall, ...]

    def flops(self, layouts: Sequence[BlockLayout | None]) -> Flops:
        """Count the step under one layout a layer; arguments and errors as in `training_flops`."""
        if len(layouts) != self.layers:
            raise ValueError(
                f"layouts must be one for each of the {self.layers} attention layers, got {len(layouts)}"
            )
        counted: dict[tuple[Any, ...], Flops] = {}
        total = dense = self.others
        for call in self.calls:
            # Most layers are alike, and a layout may have millions of blocks.
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
        model: a Hugging Face language model, made sparse or not, on any device, compiled or not; it is left
            as it is. Or a module without attention that takes ``input_ids``.
        layouts: what each attention layer keeps at ``seq_len``, in the order of the layers; None for every
            block. ALBERT has one for each set of weights. Documents packed into a sequence are not known
            here: attention is counted across them.
        seq_len: tokens of a sequence.
        batch_size: sequences of the batch.
        scored: share of the positions whose logits are made, in (0, 1]; less than all of them under a masked
            objective with ``loss_chunk``, whose head runs on the scored positions alone.

    Raises:
        ValueError: a number out of range, another number of layouts than attention layers, a layout of
            another length or number of heads, a model whose attention does not follow transformers'
            attention interface or that cannot run without data, or with `scored` a head that is not known.

    """
    return trace(model, seq_len, batch_size, scored).flops(layouts)


def layouts_of(model: nn.Module, seq_len: int) -> list[BlockLayout | None]:
    """Return what each attention layer of a model keeps now, for `training_flops`; None for every block.

    Args:
        model: as in `training_flops`.
        seq_len: tokens of a sequence.

    Raises:
        ValueError: a model whose attention does not follow transformers' attention interface.

    """
    return [layout_of(layer, seq_len) for layer in attention_layers(model)]


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """Find the attention layers of a model, in order; a module that is no Hugging Face model has none."""
    return self_attention_layers(model) if hasattr(model, "config") else []


def pattern_of(layer: nn.Module) -> SparsityConfig | None:
    """Return the pattern of an attention layer; None where it attends densely."""
    attention = _sparse_attention(layer)
    return None if attention is None else attention.sparsity_config


def layout_of(layer: nn.Module, seq_len: int) -> BlockLayout | None:
    """Return what an attention layer keeps of a sequence; None for every block."""
    attention = _sparse_attention(layer)
    # The module itself is asked: it attends densely where its pattern is not defined.
    return None if attention is None else attention._layout(seq_len, seq_len)  # type: ignore[return-value]


def _sparse_attention(layer: Any) -> SparseSelfAttention | None:
    if getattr(layer, "sparse_self_attention", None) is None:
        # A model loaded from disk makes them in its first forward.
        sparse = getattr(layer.config, "_attn_implementation", None) == NAME
        return attention_of(layer) if sparse else None
    return layer.sparse_self_attention


def trace(model: nn.Module, seq_len: int, batch_size: int, scored: float = 1.0) -> Trace:
    """Run a copy of a model without memory and note what it computes; arguments as in `training_flops`."""
    for name, value in (("seq_len", seq_len), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0.0 < scored <= 1.0:
        raise ValueError(f"scored must lie in (0, 1], got {scored}")
    ghost: Any = _without_memory(model)
    recorders = _record_attention(ghost)
    input_ids = torch.zeros(batch_size, seq_len, dtype=torch.int64, device="meta")
    counter = FlopCounterMode(display=False)
    try:
        with torch.enable_grad(), counter:
            if scored < 1.0:
                backbone, head = split_head(ghost)
                hidden = backbone(input_ids=input_ids).last_hidden_state.flatten(0, 1)
                logits = head(hidden[: max(1, round(scored * len(hidden)))])
            else:
                logits = ghost(input_ids=input_ids).logits
            if logits.requires_grad:
                # A gradient as the loss gives it, which itself takes no matrix product.
                logits.backward(torch.empty_like(logits))
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"the operations of {type(model).__name__} cannot be counted without data: {error}"
        ) from error
    calls = tuple(call for recorder in recorders for call in recorder.calls())
    return Trace(len(recorders), counter.get_total_flops(), calls)


def _without_memory(model: nn.Module) -> nn.Module:
    """Copy a model with its parameters and buffers on the meta device; shared ones stay shared."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty: Tensor = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = empty
    ghost = copy.deepcopy(model, memo)
    for module in ghost.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False  # type: ignore[assignment]
        # Positions that follow the length ask for the largest of them, a number that is not there; how they
        # are scaled takes no product. ModernBERT has a type for each kind of layer.
        types = getattr(module, "rope_type", None)
        if isinstance(types, str):
            module.rope_type = "default"  # type: ignore[assignment]
        elif isinstance(types, dict):
            module.rope_type = dict.fromkeys(types, "default")  # type: ignore[assignment]
    return ghost


def _record_attention(ghost: Any) -> list[_Recorder]:
    """Let each attention layer note its calls instead of attending."""
    layers: list[Any] = attention_layers(ghost)
    if not layers:
        return []
    from transformers.modeling_utils import AttentionInterface

    # Hands on what `longspan` would: the window and the causality of each layer.
    AttentionInterface.register(_NAME, longspan_attention)
    for config in (ghost.config, layers[0].config):
        config._attn_implementation = _NAME
    for module in ghost.modules():
        # GPT-2 looks for padding among the tokens, which are not there, only to warn.
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = _silent
    recorders = [_Recorder(index, layer.config.num_attention_heads) for index, layer in enumerate(layers)]
    for layer, recorder in zip(layers, recorders, strict=True):
        layer.sparse_self_attention = recorder
    return recorders


def _silent(*args: Any) -> None:
    pass


class _Recorder(nn.Module):
    """Stands where a layer's SparseSelfAttention would, and notes what it is asked for."""

    def __init__(self, layer: int, heads: int) -> None:
        super().__init__()
        self.layer = layer
        self.sparsity_config = SimpleNamespace(num_heads=heads)
        self.noted: list[AttentionCall] = []
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
        """Note the call and give a context of the right shape; what masks besides is not counted."""
        batch, heads, length, _ = query.shape
        self.noted.append(
            AttentionCall(self.layer, batch, heads, length, bool(causal), window or (None, None), 0)
        )
        self.products.append([])
        return _Noted.apply(self.products[-1], query, key, value)

    def calls(self) -> list[AttentionCall]:
        """Return the calls, with what their forward and backward multiply."""
        pairs = zip(self.noted, self.products, strict=True)
        return [replace(call, products=sum(products)) for call, products in pairs]


class _Noted(torch.autograd.Function):
    """Attention that computes nothing and notes the length of the sum in each of its products."""

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
        _, of_query, of_key, of_value = ctx.needs_input_grad
        if of_query or of_key:
            ctx.products.append(value.shape[-1])  # of the weights
        ctx.products += [
            side.shape[-1] for side, wanted in ((key, of_query), (query, of_key), (value, of_value)) if wanted
        ]
        return None, *(torch.empty_like(side) for side in (query, key, value))
