"""Autograd and the dispatcher: `attend`, and the custom ops that torch.compile and dispatch modes see.

The ops are ``longspan::block_sparse_attention`` and its backward. Only tensors and numbers cross them: a
layout goes as its number (`longspan_kernels.layout.handles`). Without a compiler or a mode, `attend` calls
the backend itself: the dispatcher would take longer than a launch.

Shapes in this file: B batch, H query heads, K key heads, L queries, M keys, D width of q and k, E width of v.
"""

from __future__ import annotations

import contextlib
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longspan_kernels.arguments import Arguments, accumulator_dtype, empty_as
from longspan_kernels.backends import load_backend
from longspan_kernels.layout.handles import layout_of

_TENSORS = (
    "Tensor? key_padding_mask, Tensor? attn_mask, Tensor? bias, Tensor? document_ids, Tensor? dropout_seed, "
    "Tensor? relative_table, Tensor? relative_buckets, Tensor? slopes"
)
_NUMBERS = "int layout, float scale, int? left, int? right, float dropout_p, str backend"

# A first call uploads tables that later ones read: not in the memory of a graph that torch.compile captures.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)

# torch.library.custom_op would do the same, at ten times the cost of a call.
_library = torch.library.Library("longspan", "FRAGMENT")
_library.define(
    f"block_sparse_attention(Tensor q, Tensor k, Tensor v, {_TENSORS}, {_NUMBERS}) -> (Tensor, Tensor)",
    tags=_TAGS,
)
_library.define(
    "block_sparse_attention_backward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor grad_out, "
    f"Tensor? grad_lse, {_TENSORS}, {_NUMBERS}, bool bias_gradient, bool table_gradient) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
attention_op = torch.ops.longspan.block_sparse_attention.default
attention_backward_op = torch.ops.longspan.block_sparse_attention_backward.default

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_is_batched = torch._C._functorch.is_legacy_batchedtensor  # type: ignore[attr-defined]
_NO_CONTEXT = contextlib.nullcontext()


def attend(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments, backend: str) -> tuple[Tensor, Tensor]:
    """Attend by a backend, differentiably; through the op where a compiler or a dispatch mode has to see it.

    Args:
        q: ``[B, H, L, D]``.
        k: ``[B, K, M, D]``.
        v: ``[B, K, M, E]``.
        arguments: the options.
        backend: a name of `longspan_kernels.available_backends`.

    Returns:
        The context ``[B, H, L, E]`` in q's dtype and the log-sum-exp ``[B, H, L]``.

    """
    if torch.compiler.is_compiling() or _needs_dispatcher(q, k, v, *arguments.tensors):
        return attention_op(q, k, v, *OpInputs.of(arguments, backend))
    bias, table = arguments.bias, arguments.relative_table
    if torch.is_grad_enabled() and (
        q.requires_grad
        or k.requires_grad
        or v.requires_grad
        or (bias is not None and bias.requires_grad)
        or (table is not None and table.requires_grad)
    ):
        return _Attention.apply(q, k, v, bias, table, arguments, backend, False)
    with _no_autocast(q):
        return load_backend(backend).forward(q, k, v, arguments)


def _needs_dispatcher(*tensors: Tensor | None) -> bool:
    """Say whether modes, transforms or subclasses of tensors have to see the op."""
    if (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    ):
        return True
    for x in tensors:  # noqa: SIM110 - `any` of a generator takes a microsecond more
        # Batched tensors come from autograd's batched gradients, which are no transform of torch.func.
        if x is not None and (type(x) not in _PLAIN_TYPES or _is_batched(x)):
            return True
    return False


class OpInputs(NamedTuple):
    """The inputs of the ops behind q, k, v and the backward's other tensors, in the order of their schema."""

    key_padding_mask: Tensor | None
    attn_mask: Tensor | None
    bias: Tensor | None
    document_ids: Tensor | None
    dropout_seed: Tensor | None
    relative_table: Tensor | None
    relative_buckets: Tensor | None
    slopes: Tensor | None
    layout: int
    scale: float
    left: int | None
    right: int | None
    dropout_p: float
    backend: str

    @classmethod
    def of(cls, arguments: Arguments, backend: str) -> OpInputs:
        """Flatten the options of a call."""
        # Dynamo may hold the number as a variable one: as an index it is a constant again, with a guard.
        number = operator.index(arguments.layout.handle.number)
        _, scale, left, right, dropout_p = arguments.numbers
        fields = (*arguments.tensors, number, scale, left, right, dropout_p, backend)
        return cls._make(fields)

    def arguments(self) -> Arguments:
        """Look the layout up, and make the options again."""
        return Arguments(layout_of(self.layout), self.scale, self.left, self.right, self.dropout_p, *self[:8])


def _no_autocast(q: Tensor) -> contextlib.AbstractContextManager[Any]:
    # Tensors are cast before the op; inside, the backend chooses what is computed in which dtype.
    device = q.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NO_CONTEXT


class _Attention(torch.autograd.Function):
    """Forward and backward of a backend, or of the ops where the call came through one.

    The bias and the table are inputs besides ``arguments``, which holds them too: autograd looks for tensors
    among the inputs alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        relative_table: Tensor | None,
        arguments: Arguments,
        backend: str,
        through_op: bool,
    ) -> tuple[Tensor, Tensor]:
        if through_op:
            with torch._C._AutoDispatchBelowAutograd():
                out, lse = attention_op(q, k, v, *OpInputs.of(arguments, backend))
        else:
            with _no_autocast(q):
                out, lse = load_backend(backend).forward(q, k, v, arguments)
        ctx.save_for_backward(q, k, v, out, lse, *arguments.tensors)
        ctx.numbers = arguments.numbers  # with the layout, which stays alive until the backward
        ctx.backend, ctx.through_op = backend, through_op
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_out, grad_lse = grads
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        arguments = Arguments(*ctx.numbers, *tensors)
        of_bias, of_table = ctx.needs_input_grad[3:5]
        if (
            ctx.through_op
            or torch.compiler.is_compiling()
            # A dispatch mode that is on only in the backward sees an op too.
            or _needs_dispatcher(q, k, v, out, lse, grad_out, grad_lse, *tensors)
        ):
            dq, dk, dv, dbias, dtable = attention_backward_op(
                q, k, v, out, lse, grad_out, grad_lse, *OpInputs.of(arguments, ctx.backend), of_bias, of_table
            )
        else:
            with _no_autocast(q):
                dq, dk, dv, dbias, dtable = load_backend(ctx.backend).backward(
                    q, k, v, out, lse, grad_out, grad_lse, arguments, of_bias, of_table
                )
        return dq, dk, dv, dbias if of_bias else None, dtable if of_table else None, None, None, None


def _op_forward(q: Tensor, k: Tensor, v: Tensor, *op_inputs: Any) -> tuple[Tensor, Tensor]:
    inputs = OpInputs(*op_inputs)
    with _no_autocast(q):
        return load_backend(inputs.backend).forward(q, k, v, inputs.arguments())


def _op_autograd(q: Tensor, k: Tensor, v: Tensor, *op_inputs: Any) -> tuple[Tensor, Tensor]:
    inputs = OpInputs(*op_inputs)
    learned = inputs.bias, inputs.relative_table
    return _Attention.apply(q, k, v, *learned, inputs.arguments(), inputs.backend, True)


def _op_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    *op_inputs: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, bias and table, the last two empty unless they are wanted."""
    *shared, bias_gradient, table_gradient = op_inputs
    inputs = OpInputs(*shared)
    with _no_autocast(q):
        dq, dk, dv, dbias, dtable = load_backend(inputs.backend).backward(
            q, k, v, out, lse, grad_out, grad_lse, inputs.arguments(), bias_gradient, table_gradient
        )
    dbias, dtable = (q.new_empty(0) if x is None else x for x in (dbias, dtable))
    return dq, dk, dv, dbias, dtable


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *op_inputs: Any) -> tuple[Tensor, Tensor]:
    out = _fake_result(q, (*q.shape[:3], v.shape[3]), OpInputs(*op_inputs).backend)
    return out, q.new_empty(q.shape[:3], dtype=accumulator_dtype(q.dtype))


def _fake_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    *op_inputs: Any,
) -> tuple[Tensor, ...]:
    *shared, bias_gradient, table_gradient = op_inputs
    # No layout is looked up: while a graph is traced its number may be a symbol.
    inputs = OpInputs(*shared)
    bias, table, backend = inputs.bias, inputs.relative_table, inputs.backend
    dbias = bias.new_empty(bias.shape) if bias is not None and bias_gradient else q.new_empty(0)
    dtable = table.new_empty(table.shape) if table is not None and table_gradient else q.new_empty(0)
    dq = _fake_result(q, tuple(q.shape), backend)
    if q.shape[1] != k.shape[1]:  # the parts of query heads that share a key head are added up
        return dq, k.new_empty(k.shape), v.new_empty(v.shape), dbias, dtable
    dk, dv = (_fake_result(x, tuple(x.shape), backend) for x in (k, v))
    return dq, dk, dv, dbias, dtable


def _fake_result(like: Tensor, shape: tuple[int, ...], backend: str) -> Tensor:
    """Allocate a result with the memory layout that a backend gives it."""
    return empty_as(like, shape, like.dtype) if backend == "triton" else like.new_empty(shape)


_library.impl("block_sparse_attention", _op_forward, "CompositeExplicitAutograd")
_library.impl("block_sparse_attention", _op_autograd, "Autograd")
_library.impl("block_sparse_attention_backward", _op_backward, "CompositeExplicitAutograd")
torch.library.register_fake("longspan::block_sparse_attention", _fake_forward, lib=_library)
torch.library.register_fake("longspan::block_sparse_attention_backward", _fake_backward, lib=_library)
