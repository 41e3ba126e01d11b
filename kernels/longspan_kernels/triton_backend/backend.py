"""The Triton backend: forward and backward by the kernels of this package, prepared once a kind of call."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
from torch import Tensor

from longspan_kernels.arguments import Arguments
from longspan_kernels.strides import empty_as
from longspan_kernels.triton_backend.kernel_configs import ConfigChoice
from longspan_kernels.triton_backend.launch import Kinds, kind_of, unit_stride
from longspan_kernels.triton_backend.prepared import Backward, Forward
from longspan_kernels.triton_backend.tuning.choice import choose_configs

BLOCKS = (16, 32, 64, 128)
MAX_DIM = 256
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# Kinds of calls that are prepared at a time; each holds its schedules.
_KEPT = 128

_forwards: Kinds[Forward] = Kinds(_KEPT)
_backwards: Kinds[Backward] = Kinds(_KEPT)
# What a captured CUDA graph replays reads its tables for as long as it lives, which nobody tells us.
_captured: set[Forward | Backward] = set()


def forward(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Attend; as `longspan_kernels.torch_backend.attention.forward`.

    Raises:
        ValueError: a block, head dimension, dtype or device that the kernels do not serve.

    """
    if not q.shape[:3].numel():
        out = empty_as(q, (*q.shape[:3], v.shape[3]), q.dtype)
        return out, q.new_empty(q.shape[:3], dtype=torch.float32)
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)

    def prepare() -> Forward:
        _check(q, v, arguments)
        return Forward(q, k, v, arguments, _choice(q, v, arguments))

    prepared = _forwards.get(kind_of(arguments, q, k, v), prepare)
    _keep_if_captured(prepared, q.device)
    with _on(q.device):
        return prepared(q, k, v, arguments)


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
    table_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Differentiate; as `torch_backend.attention.backward`."""
    if not q.numel() or not k.numel():
        others = ((arguments.bias, bias_gradient), (arguments.relative_table, table_gradient))
        dbias, dtable = (x.new_zeros(x.shape) if x is not None and wanted else None for x, wanted in others)
        dq = empty_as(q, tuple(q.shape), q.dtype).zero_()
        if q.shape[1] != k.shape[1]:
            return dq, k.new_zeros(k.shape), v.new_zeros(v.shape), dbias, dtable
        dk, dv = (empty_as(x, tuple(x.shape), x.dtype).zero_() for x in (k, v))
        return dq, dk, dv, dbias, dtable
    q, k, v, out, grad = (unit_stride(x) for x in (q, k, v, out, grad_out))
    lse = lse.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.float().contiguous()
    kind = (kind_of(arguments, q, k, v, out, lse, grad, grad_lse), bias_gradient, table_gradient)

    def prepare() -> Backward:
        choice = _choice(q, v, arguments)
        return Backward(q, k, v, grad, arguments, bias_gradient, table_gradient, choice)

    prepared = _backwards.get(kind, prepare)
    _keep_if_captured(prepared, q.device)
    with _on(q.device):
        return prepared(q, k, v, out, lse, grad, grad_lse, arguments)


def _choice(q: Tensor, v: Tensor, arguments: Arguments) -> ConfigChoice:
    return choose_configs(q.dtype, max(q.shape[3], v.shape[3]), arguments.layout.block, q.device)


def _check(q: Tensor, v: Tensor, arguments: Arguments) -> None:
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


def _keep_if_captured(prepared: Forward | Backward, device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured.add(prepared)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    # Triton launches on the current device, whatever the tensors'.
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)
