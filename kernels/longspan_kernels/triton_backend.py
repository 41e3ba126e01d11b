"""The Triton backend: allocates, chooses the kernels' sizes, and launches them."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# Triton's launch syntax and constexpr parameters are no types that a checker can follow.
from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from longspan_kernels import backward as backward_kernels
from longspan_kernels import bias_gradient
from longspan_kernels import forward as forward_kernels
from longspan_kernels.arguments import Arguments
from longspan_kernels.philox import dropout_threshold
from longspan_kernels.plan import Schedule, schedule_for
from longspan_kernels.tuning import Size, Sizes, sizes_for

BLOCKS = (16, 32, 64, 128)
MAX_DIM = 256
_LOG2E = 1.4426950408889634
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


@dataclass(frozen=True)
class _Call:
    """One attention call, its tensors ready for the kernels."""

    q: Tensor
    k: Tensor
    v: Tensor
    arguments: Arguments
    options: dict[str, Any]

    @property
    def q_len(self) -> int:
        return self.q.shape[2]

    @property
    def k_len(self) -> int:
        return self.k.shape[2]

    @property
    def group(self) -> int:
        return self.q.shape[1] // self.k.shape[1]

    def schedule(self, size: Size, *, by_keys: bool, split: bool = True) -> Schedule:
        arguments = self.arguments
        return schedule_for(
            arguments.layout, self.q_len, self.k_len, arguments.left, arguments.right, self.q.device,
            q_tile=size.q_tile, k_tile=size.k_tile, by_keys=by_keys, split=split,
        )  # fmt: skip

    def sub(self, size: Size) -> int:
        return min(self.arguments.layout.block, size.q_tile, size.k_tile)


def forward(
    q: Tensor, k: Tensor, v: Tensor, arguments: Arguments, *, sizes: Sizes | None = None
) -> tuple[Tensor, Tensor]:
    """Attend; arguments and results as `longspan_kernels.reference.forward`, ``sizes`` instead of the tuned.

    Raises:
        ValueError: a block, head dimension, dtype or device that the kernels do not serve.

    """
    call = _prepare(q, k, v, arguments)
    batch, heads, q_len, _ = q.shape
    value_dim = v.shape[3]
    out = torch.empty(batch, heads, q_len, value_dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, q_len, dtype=torch.float32, device=q.device)
    if not out.numel() and not lse.numel():
        return out, lse
    size = (sizes or _sizes(call)).forward
    schedule = call.schedule(size, by_keys=False)
    inner = batch * heads if schedule.shared else batch
    partial_out = partial_lse = lse
    if schedule.partials:
        shape = (batch, heads, schedule.partials, size.q_tile)
        partial_out = torch.empty(*shape, value_dim, dtype=torch.float32, device=q.device)
        partial_lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    tma = _tma(call.k, call.sub(size), size.k_tile) and _tma(call.v, call.sub(size), size.k_tile)
    with _on(q.device):
        forward_kernels.attend[(schedule.items.shape[0] * inner,)](
            call.q, call.k, call.v, out, lse, partial_out, partial_lse,
            _descriptor(call.k, size.k_tile, tma), _descriptor(call.v, size.k_tile, tma),
            schedule.columns, schedule.bits, schedule.items, call.q.stride(), call.k.stride(),
            call.v.stride(),
            heads, inner, schedule.partials, call.group, q_len, call.k_len, arguments.layout.lead,
            arguments.scale * _LOG2E, **call.options, **_dims(call, size), SHARED=schedule.shared, TMA=tma,
            **size.launch(),
        )  # fmt: skip
        if schedule.partials:
            forward_kernels.combine[(schedule.splits.shape[0] * inner,)](
                out, lse, partial_out, partial_lse, schedule.splits, heads, inner, schedule.partials, q_len,
                arguments.layout.lead, E=value_dim, EP=_padded(value_dim), BM=size.q_tile,
                SHARED=schedule.shared,
            )  # fmt: skip
    return out, lse


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    arguments: Arguments,
    bias_gradient: bool,
    *,
    sizes: Sizes | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Differentiate; as `longspan_kernels.reference.backward`, ``sizes`` instead of the tuned."""
    call = _prepare(q, k, v, arguments)
    batch, heads, q_len, _ = q.shape
    k_len, value_dim = call.k_len, v.shape[3]
    grad = _unit_stride(grad_out)
    grad_lse = None if grad_lse is None else grad_lse.float().contiguous()
    bias = arguments.bias if bias_gradient else None
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not q.numel() or not k.numel():
        dbias = None if bias is None else torch.zeros_like(bias)
        return dq.zero_(), torch.zeros_like(k), torch.zeros_like(v), dbias
    sizes = sizes or _sizes(call)
    delta, log2 = torch.empty(2, batch, heads, q_len, dtype=torch.float32, device=q.device)
    with _on(q.device):
        backward_kernels.differences[(triton.cdiv(q_len, 64), batch * heads)](
            out, grad, lse, grad_lse if grad_lse is not None else delta, delta, log2, out.stride(),
            grad.stride(),
            heads, q_len,
            E=value_dim, EP=_padded(value_dim), BM=64, GRAD_LSE=grad_lse is not None,
        )  # fmt: skip
        row_sums = _sums(bias, 3, (batch, heads, q_len), q.device)
        _queries(call, sizes.queries, grad, log2, delta, dq, row_sums)
        column_sums = None if row_sums is not None else _sums(bias, 2, (batch, heads, k_len), q.device)
        dk, dv = _keys(call, sizes.keys, grad, log2, delta, column_sums)
        dbias = None
        if row_sums is not None:
            dbias = row_sums[..., None]
        elif column_sums is not None:
            dbias = column_sums[:, :, None]
        elif bias is not None:
            dbias = _bias(call, sizes.bias, grad, log2, delta, bias)
    if bias is not None and dbias is not None:
        dbias = dbias.sum_to_size(bias.shape).to(bias.dtype)
    return dq, dk, dv, dbias


def _queries(
    call: _Call, size: Size, grad: Tensor, lse: Tensor, delta: Tensor, dq: Tensor, row_sums: Tensor | None
) -> None:
    batch, heads, q_len, dim = call.q.shape
    schedule = call.schedule(size, by_keys=False, split=row_sums is None)
    inner = batch * heads if schedule.shared else batch
    partial = delta
    if schedule.partials:
        shape = (batch, heads, schedule.partials, size.q_tile, dim)
        partial = torch.empty(shape, dtype=torch.float32, device=dq.device)
    tma = _tma(call.k, call.sub(size), size.k_tile) and _tma(call.v, call.sub(size), size.k_tile)
    backward_kernels.differentiate_queries[(schedule.items.shape[0] * inner,)](
        call.q, call.k, call.v, grad, lse, delta, dq, partial, delta if row_sums is None else row_sums,
        _descriptor(call.k, size.k_tile, tma), _descriptor(call.v, size.k_tile, tma), schedule.columns,
        schedule.bits,
        schedule.items, call.q.stride(), call.k.stride(), call.v.stride(), grad.stride(), heads, inner,
        schedule.partials, call.group, q_len, call.k_len, call.arguments.layout.lead,
        call.arguments.scale * _LOG2E,
        call.arguments.scale, **call.options, **_dims(call, size), SHARED=schedule.shared, TMA=tma,
        ROW_SUMS=row_sums is not None, **size.launch(),
    )  # fmt: skip
    if schedule.partials:
        backward_kernels.add_segments[(schedule.splits.shape[0] * inner,)](
            dq, partial, schedule.splits, heads, inner, schedule.partials, q_len, call.arguments.layout.lead,
            WIDTH=dim, PADDED=_padded(dim), TILE=size.q_tile, SHARED=schedule.shared,
        )  # fmt: skip


def _keys(
    call: _Call, size: Size, grad: Tensor, lse: Tensor, delta: Tensor, column_sums: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, heads, q_len, dim = call.q.shape
    k_len, value_dim = call.k_len, call.v.shape[3]
    schedule = call.schedule(size, by_keys=True, split=column_sums is None)
    inner = batch * heads if schedule.shared else batch
    # Query heads that share a key head each write their part, added up in order below.
    dtype = call.k.dtype if call.group == 1 else torch.float32
    dk = torch.empty(batch, heads, k_len, dim, dtype=dtype, device=grad.device)
    dv = torch.empty(batch, heads, k_len, value_dim, dtype=dtype, device=grad.device)
    partial_dk = partial_dv = delta
    if schedule.partials:
        shape = (batch, heads, schedule.partials, size.k_tile)
        partial_dk = torch.empty(*shape, dim, dtype=torch.float32, device=grad.device)
        partial_dv = torch.empty(*shape, value_dim, dtype=torch.float32, device=grad.device)
    lead = call.arguments.layout.lead
    whole = lead == 0 and _tma(call.q, call.sub(size), size.q_tile)
    tma = whole and _tma(grad, call.sub(size), size.q_tile)
    backward_kernels.differentiate_keys[(schedule.items.shape[0] * inner,)](
        call.q, call.k, call.v, grad, lse, delta, dk, dv, partial_dk, partial_dv,
        delta if column_sums is None else column_sums, _descriptor(call.q, size.q_tile, tma),
        _descriptor(grad, size.q_tile, tma), schedule.columns, schedule.bits, schedule.items, call.q.stride(),
        call.k.stride(), call.v.stride(), grad.stride(), heads, inner, schedule.partials, call.group, q_len,
        k_len,
        lead, call.arguments.scale * _LOG2E, call.arguments.scale, **call.options, **_dims(call, size),
        SHARED=schedule.shared, TMA=tma, COLUMN_SUMS=column_sums is not None, **size.launch(),
    )  # fmt: skip
    if schedule.partials:
        for whole_sum, partial, width in ((dk, partial_dk, dim), (dv, partial_dv, value_dim)):
            backward_kernels.add_segments[(schedule.splits.shape[0] * inner,)](
                whole_sum, partial, schedule.splits, heads, inner, schedule.partials, k_len, 0,
                WIDTH=width, PADDED=_padded(width), TILE=size.k_tile, SHARED=schedule.shared,
            )  # fmt: skip
    if call.group > 1:
        kv_heads = heads // call.group
        dk = dk.view(batch, kv_heads, call.group, k_len, dim).sum(2).to(call.k.dtype)
        dv = dv.view(batch, kv_heads, call.group, k_len, value_dim).sum(2).to(call.v.dtype)
    return dk, dv


def _bias(call: _Call, size: Size, grad: Tensor, lse: Tensor, delta: Tensor, bias: Tensor) -> Tensor:
    """Gradient of a bias with queries and keys, ``[its batch, its heads or all, q_len, k_len]`` float32."""
    batch, heads, q_len, _ = call.q.shape
    schedule = call.schedule(size, by_keys=False)
    own_heads = bias.shape[1] if schedule.shared else heads
    dbias = torch.zeros(bias.shape[0], own_heads, q_len, call.k_len, dtype=torch.float32, device=bias.device)
    batches, batch_step = (1, 1) if bias.shape[0] == batch else (batch, 0)
    head_count, head_step = (heads, 0) if schedule.shared and bias.shape[1] != heads else (1, 1)
    options = {name: value for name, value in call.options.items() if name != "BIAS"}
    grid = (schedule.items.shape[0], bias.shape[0], own_heads if schedule.shared else 1)
    bias_gradient.differentiate_bias[grid](
        call.q, call.k, call.v, grad, lse, delta, dbias, schedule.columns, schedule.bits, schedule.items,
        call.q.stride(), call.k.stride(), call.v.stride(), grad.stride(), dbias.stride(), heads, batches,
        head_count,
        batch_step, head_step, call.group, q_len, call.k_len, call.arguments.layout.lead,
        call.arguments.scale * _LOG2E, **options, **_dims(call, size), SHARED=schedule.shared,
        **size.launch(),
    )  # fmt: skip
    return dbias


def _sums(bias: Tensor | None, dimension: int, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    """Room for the scores' gradients summed over a dimension in which the bias broadcasts."""
    if bias is None or bias.shape[dimension] != 1:
        return None
    return torch.empty(shape, dtype=torch.float32, device=device)


def _prepare(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> _Call:
    if arguments.layout.block not in BLOCKS:
        raise ValueError(
            f"backend 'triton' serves blocks of {', '.join(map(str, BLOCKS))} tokens, "
            f"got {arguments.layout.block}; "
            "backend='reference' serves any"
        )
    if q.dtype == torch.float64:
        raise ValueError(
            "backend 'triton' serves float32, bfloat16 and float16; backend='reference' serves float64"
        )
    if max(q.shape[3], v.shape[3]) > MAX_DIM:
        raise ValueError(
            f"backend 'triton' serves head dimensions up to {MAX_DIM}, got {q.shape[3]} and {v.shape[3]}; "
            "backend='reference' serves any"
        )
    if q.device.type != "cuda" and not _INTERPRETED:
        raise ValueError(
            f"backend 'triton' needs a GPU, got tensors on {q.device}; backend='reference' serves any device"
        )
    return _Call(_unit_stride(q), _unit_stride(k), _unit_stride(v), arguments, _options(q, arguments))


def _options(q: Tensor, arguments: Arguments) -> dict[str, Any]:
    """The kernels' arguments for masks, windows and dropout; q stands in for what is absent."""
    key_mask, attn_mask, bias = arguments.key_padding_mask, arguments.attn_mask, arguments.bias
    documents, p = arguments.document_ids, arguments.dropout_p
    return {
        "left": 0 if arguments.left is None else arguments.left,
        "right": 0 if arguments.right is None else arguments.right,
        "LEFT": arguments.left is not None,
        "RIGHT": arguments.right is not None,
        "KEY_MASK": _kind(key_mask),
        "key_mask": _readable(key_mask, q),
        "key_mask_strides": (0, 0) if key_mask is None else key_mask.stride(),
        "ATTN_MASK": _kind(attn_mask),
        "attn_mask": _readable(attn_mask, q),
        "attn_mask_strides": _broadcast_strides(attn_mask),
        "BIAS": bias is not None,
        "bias": _readable(bias, q),
        "bias_strides": _broadcast_strides(bias),
        "DOCUMENTS": documents is not None,
        "documents": _readable(None if documents is None else _unit_stride(documents), q),
        "documents_stride": 0 if documents is None else _unit_stride(documents).stride(0),
        "DROPOUT": p > 0,
        "seed_ptr": q if arguments.dropout_seed is None else arguments.dropout_seed,
        "threshold": dropout_threshold(p),
        "keep_scale": 1.0 / (1.0 - p),
        "PRECISION": "ieee",
    }


def _sizes(call: _Call) -> Sizes:
    dim = max(call.q.shape[3], call.v.shape[3])
    return sizes_for(call.q.dtype, dim, call.arguments.layout.block, call.q.device)


def _dims(call: _Call, size: Size) -> dict[str, int]:
    dim, value_dim = call.q.shape[3], call.v.shape[3]
    return {
        "D": dim,
        "DP": _padded(dim),
        "E": value_dim,
        "EP": _padded(value_dim),
        "BM": size.q_tile,
        "BN": size.k_tile,
        "SUB": call.sub(size),
    }


def _padded(width: int) -> int:
    """A width that the matrix units take: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(width))


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _kind(mask: Tensor | None) -> int:
    return 0 if mask is None else 1 if mask.dtype == torch.bool else 2


def _readable(x: Tensor | None, absent: Tensor) -> Tensor:
    if x is None:
        return absent
    return x.view(torch.uint8) if x.dtype == torch.bool else x


def _broadcast_strides(x: Tensor | None) -> tuple[int, ...]:
    if x is None:
        return (0, 0, 0, 0)
    return tuple(0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True))


@functools.cache
def _has_tma(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device)[0] >= 9
    )


def _tma(x: Tensor, sub: int, tile: int) -> bool:
    """Whether tiles of x can come through the bulk copy engine: whole tiles of rows, everything on 16
    bytes.
    """
    if sub != tile or not _has_tma(x.device):
        return False
    step = 16 // x.element_size()
    return (
        x.shape[3] == _padded(x.shape[3])
        and x.data_ptr() % 16 == 0
        and all(stride > 0 and stride % step == 0 for stride in x.stride()[:3])
    )


def _descriptor(x: Tensor, tile: int, tma: bool) -> TensorDescriptor | None:
    if not tma:
        return None
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, tile, x.shape[3]])


def _on(device: torch.device) -> Any:
    # Triton launches on the current device, whatever the tensors'.
    return torch.cuda.device(device) if device.type == "cuda" else torch.no_grad()
