"""The custom ops ``longspan::block_sparse_attention`` and its backward: what autograd and torch.compile see.

Only tensors and numbers cross: a layout goes as its handle (`longspan_kernels.layout.handles`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longspan_kernels.arguments import Arguments, accumulator_dtype
from longspan_kernels.backends import BACKENDS
from longspan_kernels.layout import handles
from longspan_kernels.strides import empty_as

Function = Callable[..., Any]


_MASKS = (
    "Tensor? key_padding_mask, Tensor? attn_mask, Tensor? bias, Tensor? document_ids, Tensor? dropout_seed, "
    "Tensor? relative_table, Tensor? relative_buckets, Tensor? slopes"
)
_NUMBERS = "int layout, float scale, int? left, int? right, float dropout_p, str backend"

# A first call uploads tables that later ones read: not in the memory of a graph that torch.compile captures.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)

# torch.library.custom_op would do the same, at ten times the cost of a call.
_library = torch.library.Library("longspan", "FRAGMENT")
_library.define(
    f"block_sparse_attention(Tensor q, Tensor k, Tensor v, {_MASKS}, {_NUMBERS}) -> (Tensor, Tensor)",
    tags=_TAGS,
)
_library.define(
    "block_sparse_attention_backward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor grad_out, "
    f"Tensor? grad_lse, {_MASKS}, {_NUMBERS}, bool bias_gradient, bool table_gradient) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
attention_op = torch.ops.longspan.block_sparse_attention.default
attention_backward_op = torch.ops.longspan.block_sparse_attention_backward.default


def attend(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Call `attention_op`; straight, where nothing listens to the dispatcher and would miss the op.

    Returns:
        The context ``[batch, heads, q_len, v_dim]`` and the log-sum-exp ``[batch, heads, q_len]``.

    """
    if torch.compiler.is_compiling() or _observed(inputs[:11]):
        return attention_op(*inputs)
    learned = (*inputs[:3], inputs[5], inputs[8])
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in learned):
        return _Attention.apply(_forward, _backward, *inputs)
    return _forward(*inputs)


_PLAIN = (Tensor, torch.nn.Parameter)
_is_batched = torch._C._functorch.is_legacy_batchedtensor  # type: ignore[attr-defined]


def _observed(tensors: tuple[Tensor | None, ...]) -> bool:
    """Say whether modes, transforms or subclasses of tensors have to see the op."""
    if (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    ):
        return True
    # Batched are autograd's batched gradients, which torch.func's transforms do not know.
    return any(x is not None and (type(x) not in _PLAIN or _is_batched(x)) for x in tensors)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    bias: Tensor | None,
    document_ids: Tensor | None,
    dropout_seed: Tensor | None,
    relative_table: Tensor | None,
    relative_buckets: Tensor | None,
    slopes: Tensor | None,
    layout: int,
    scale: float,
    left: int | None,
    right: int | None,
    dropout_p: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Attend: the context and the log-sum-exp, by the named backend. Arguments as in `Arguments`."""
    arguments = Arguments(
        handles.layout_of(layout), scale, left, right, key_padding_mask, attn_mask, bias, document_ids,
        dropout_p, dropout_seed, relative_table, relative_buckets, slopes,
    )  # fmt: skip
    with _no_autocast(q):
        return BACKENDS[backend].forward(q, k, v, arguments)


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    bias: Tensor | None,
    document_ids: Tensor | None,
    dropout_seed: Tensor | None,
    relative_table: Tensor | None,
    relative_buckets: Tensor | None,
    slopes: Tensor | None,
    layout: int,
    scale: float,
    left: int | None,
    right: int | None,
    dropout_p: float,
    backend: str,
    bias_gradient: bool,
    table_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiate: the gradients of q, k, v, bias and table, the last two empty unless they are wanted."""
    arguments = Arguments(
        handles.layout_of(layout), scale, left, right, key_padding_mask, attn_mask, bias, document_ids,
        dropout_p, dropout_seed, relative_table, relative_buckets, slopes,
    )  # fmt: skip
    with _no_autocast(q):
        dq, dk, dv, *others = BACKENDS[backend].backward(
            q, k, v, out, lse, grad_out, grad_lse, arguments, bias_gradient, table_gradient
        )
    dbias, dtable = (q.new_empty(0) if other is None else other for other in others)
    return dq, dk, dv, dbias, dtable


def _no_autocast(q: Tensor) -> contextlib.AbstractContextManager[Any]:
    # Autocast has had its say before the op; inside, the backend chooses what is computed in which dtype.
    device = q.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING


_NOTHING = contextlib.nullcontext()


class _Attention(torch.autograd.Function):
    """Forward and backward by two functions: the ops below autograd, or what they call, straight."""

    @staticmethod
    def forward(ctx: Any, forward: Function, backward: Function, *inputs: Any) -> tuple[Tensor, Tensor]:
        out, lse = forward(*inputs)
        ctx.save_for_backward(*inputs[:3], out, lse, *inputs[3:11])
        ctx.rest = inputs[11:]
        ctx.backward_function = backward
        ctx.layout = handles.layout_of(inputs[11])  # alive until the backward
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_out, grad_lse = grads
        q, k, v, out, lse, *masks = ctx.saved_tensors
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        # Behind the two functions: q, k, v, two masks and the bias; two more masks and the table.
        of_bias, of_table = ctx.needs_input_grad[7], ctx.needs_input_grad[10]
        backward = ctx.backward_function
        if torch.compiler.is_compiling() or _observed((q, k, v, out, lse, grad_out, grad_lse, *masks)):
            # Whoever listens now need not have listened to the forward.
            backward = attention_backward_op
        dq, dk, dv, dbias, dtable = backward(
            q, k, v, out, lse, grad_out, grad_lse, *masks, *ctx.rest, of_bias, of_table
        )
        head = (None, None, dq, dk, dv, None, None, dbias if of_bias else None, None, None)
        return *head, dtable if of_table else None, *[None] * 8


def _below_autograd(*inputs: Any) -> tuple[Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        return attention_op(*inputs)


def _differentiable(*inputs: Any) -> tuple[Tensor, Tensor]:
    return _Attention.apply(_below_autograd, attention_backward_op, *inputs)


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    out = _room(q, (*q.shape[:3], v.shape[3]), rest[-1])
    return out, q.new_empty(q.shape[:3], dtype=accumulator_dtype(q.dtype))


def _room(like: Tensor, shape: tuple[int, ...], backend: str) -> Tensor:
    """Make room for a result as a backend lays it out."""
    return empty_as(like, shape, like.dtype) if backend == "triton" else like.new_empty(shape)


def _fake_backward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    # rest: out, lse, two gradients, two masks, bias; documents, seed, table ...; which gradients are wanted.
    of_others = [
        x.new_empty(x.shape) if x is not None and wanted else q.new_empty(0)
        for x, wanted in zip((rest[6], rest[9]), rest[-2:], strict=True)
    ]
    dq = _room(q, tuple(q.shape), rest[-3])
    if q.shape[1] != k.shape[1]:  # what query heads that share a key head give is added up
        return dq, k.new_empty(k.shape), v.new_empty(v.shape), *of_others
    return dq, _room(k, tuple(k.shape), rest[-3]), _room(v, tuple(v.shape), rest[-3]), *of_others


_library.impl("block_sparse_attention", _forward, "CompositeExplicitAutograd")
_library.impl("block_sparse_attention", _differentiable, "Autograd")
_library.impl("block_sparse_attention_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("longspan::block_sparse_attention", _fake_forward, lib=_library)
torch.library.register_fake("longspan::block_sparse_attention_backward", _fake_backward, lib=_library)
