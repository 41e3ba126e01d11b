"""The custom ops ``longspan::block_sparse_attention`` and its backward: what autograd and torch.compile see.

Only tensors and numbers cross: a layout goes as its handle (`longspan_kernels.registry`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan_kernels import registry
from longspan_kernels.arguments import Arguments, accumulator_dtype
from longspan_kernels.backends import BACKENDS


@torch.library.custom_op("longspan::block_sparse_attention", mutates_args=())
def attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    bias: Tensor | None,
    document_ids: Tensor | None,
    dropout_seed: Tensor | None,
    layout: int,
    scale: float,
    left: int | None,
    right: int | None,
    dropout_p: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Attend: the context and the log-sum-exp, by the named backend. Arguments as in `Arguments`."""
    arguments = Arguments(
        registry.layout_of(layout), scale, left, right, key_padding_mask, attn_mask, bias, document_ids,
        dropout_p, dropout_seed,
    )  # fmt: skip
    # Autocast has had its say before the op; inside, the backend chooses what is computed in which dtype.
    with torch.autocast(q.device.type, enabled=False):
        return BACKENDS[backend].forward(q, k, v, arguments)


@attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    return out, q.new_empty(q.shape[:3], dtype=accumulator_dtype(q.dtype))


@torch.library.custom_op("longspan::block_sparse_attention_backward", mutates_args=())
def attention_backward_op(
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
    layout: int,
    scale: float,
    left: int | None,
    right: int | None,
    dropout_p: float,
    backend: str,
    bias_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differentiate: the gradients of q, k, v and bias, the last empty unless it is wanted."""
    arguments = Arguments(
        registry.layout_of(layout), scale, left, right, key_padding_mask, attn_mask, bias, document_ids,
        dropout_p, dropout_seed,
    )  # fmt: skip
    with torch.autocast(q.device.type, enabled=False):
        dq, dk, dv, dbias = BACKENDS[backend].backward(
            q, k, v, out, lse, grad_out, grad_lse, arguments, bias_gradient
        )
    return dq, dk, dv, q.new_empty(0) if dbias is None else dbias


@attention_backward_op.register_fake
def _(
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
    layout: int,
    scale: float,
    left: int | None,
    right: int | None,
    dropout_p: float,
    backend: str,
    bias_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dbias = q.new_empty(0) if bias is None or not bias_gradient else bias.new_empty(bias.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, key_padding_mask, attn_mask, bias, document_ids, dropout_seed, *rest = inputs
    ctx.save_for_backward(q, k, v, *output, key_padding_mask, attn_mask, bias, document_ids, dropout_seed)
    ctx.rest = rest
    ctx.layout = registry.layout_of(rest[0])  # alive until the backward
    ctx.bias_gradient = ctx.needs_input_grad[5]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, *masks = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    dq, dk, dv, dbias = attention_backward_op(
        q, k, v, out, lse, grad_out, grad_lse, *masks, *ctx.rest, ctx.bias_gradient
    )
    return dq, dk, dv, None, None, dbias if ctx.bias_gradient else None, *[None] * 8


attention_op.register_autograd(_backward, setup_context=_setup_context)
