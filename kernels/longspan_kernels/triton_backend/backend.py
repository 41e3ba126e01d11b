"""The Triton backend: forward and backward by the kernels of this package, prepared once and then launched.

Shapes in this file: B batch, H query heads, K key heads, L queries, M keys, D width of q and k, E width of v.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from longspan_kernels.arguments import Arguments, empty_as
from longspan_kernels.triton_backend.kernel_configs import ConfigChoice
from longspan_kernels.triton_backend.launch import ALIGNMENT, scale_is_positive, unit_stride
from longspan_kernels.triton_backend.prepared import Backward, Forward, prepare_backward, prepare_forward
from longspan_kernels.triton_backend.tuning.choice import choose_configs

BLOCKS = (16, 32, 64, 128)
MAX_DIM = 256
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# Calls that stay prepared; each holds its schedules.
_KEPT = 128

Prepared = TypeVar("Prepared", bound=Forward | Backward)


class PreparedCalls(Generic[Prepared]):
    """Prepared calls by their keys, the recent ones."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._calls: OrderedDict[Hashable, Prepared] = OrderedDict()

    def get(self, key: Hashable) -> Prepared | None:
        """Return the prepared call of a key, None if there is none."""
        try:
            # Threads may meet here. Each step is atomic; a call that another thread drops between them is
            # prepared again.
            self._calls.move_to_end(key)
            return self._calls[key]
        except KeyError:
            return None

    def keep(self, key: Hashable, prepared: Prepared) -> None:
        """Keep a prepared call; the one that was not asked for the longest is dropped."""
        self._calls[key] = prepared
        while len(self._calls) > self._kept:
            self._calls.popitem(last=False)

    def clear(self) -> None:
        """Drop all."""
        self._calls.clear()


_forwards: PreparedCalls[Forward] = PreparedCalls(_KEPT)
_backwards: PreparedCalls[Backward] = PreparedCalls(_KEPT)
# A captured CUDA graph reads the tables of its calls for as long as it lives, and nothing tells when it ends.
_captured: set[Forward | Backward] = set()


def forward(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Attend; as `longspan_kernels.torch_backend.attention.forward`.

    Raises:
        ValueError: a block, head dimension, dtype or device that the kernels do not support.

    """
    if not q.shape[:3].numel():
        out = empty_as(q, (*q.shape[:3], v.shape[3]), q.dtype)
        return out, q.new_empty(q.shape[:3], dtype=torch.float32)
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    key = cache_key(arguments, q, k, v)
    prepared = _forwards.get(key)
    if prepared is None:
        _check(q, v, arguments)
        choice = _choice(q, v, arguments)
        prepared = prepare_forward(q, k, v, arguments, choice)
        if choice.is_final:
            _forwards.keep(key, prepared)
    if q.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            _captured.add(prepared)
        if q.device.index != torch.cuda.current_device():
            with torch.cuda.device(q.device):  # Triton launches on the current device, whatever the tensors'
                return prepared(q, k, v, arguments)
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
    """Differentiate; as `longspan_kernels.torch_backend.attention.backward`."""
    if not q.numel() or not k.numel():
        return _zero_gradients(q, k, v, arguments, bias_gradient, table_gradient)
    q, k, v, out, grad = (unit_stride(x) for x in (q, k, v, out, grad_out))
    lse = lse.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.float().contiguous()
    key = (cache_key(arguments, q, k, v, out, lse, grad, grad_lse), bias_gradient, table_gradient)
    prepared = _backwards.get(key)
    if prepared is None:
        choice = _choice(q, v, arguments)
        prepared = prepare_backward(q, k, v, grad, arguments, bias_gradient, table_gradient, choice)
        if choice.is_final:
            _backwards.keep(key, prepared)
    if q.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            _captured.add(prepared)
        if q.device.index != torch.cuda.current_device():
            with torch.cuda.device(q.device):
                return prepared(q, k, v, out, lse, grad, grad_lse, arguments)
    return prepared(q, k, v, out, lse, grad, grad_lse, arguments)


def cache_key(arguments: Arguments, *tensors: Tensor | None) -> Hashable:
    """Return everything that the schedules, configurations and compiled kernels of a call depend on."""
    if arguments.has_score_terms or arguments.dropout_seed is not None:
        tensors = (*tensors, *arguments.tensors)
    first = tensors[0]
    return (
        arguments.layout.digest, arguments.left, arguments.right, arguments.dropout_p,
        scale_is_positive(arguments.scale), None if first is None else first.device,
        *[None if x is None else (x.dtype, x.shape, x.stride(), x.data_ptr() % ALIGNMENT) for x in tensors],
    )  # fmt: skip


def _zero_gradients(
    q: Tensor, k: Tensor, v: Tensor, arguments: Arguments, bias_gradient: bool, table_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of a call without queries or keys."""
    learned = ((arguments.bias, bias_gradient), (arguments.relative_table, table_gradient))
    dbias, dtable = (x.new_zeros(x.shape) if x is not None and wanted else None for x, wanted in learned)
    dq = empty_as(q, tuple(q.shape), q.dtype).zero_()
    if q.shape[1] != k.shape[1]:
        return dq, k.new_zeros(k.shape), v.new_zeros(v.shape), dbias, dtable
    dk, dv = (empty_as(x, tuple(x.shape), x.dtype).zero_() for x in (k, v))
    return dq, dk, dv, dbias, dtable


def _choice(q: Tensor, v: Tensor, arguments: Arguments) -> ConfigChoice:
    return choose_configs(q.dtype, max(q.shape[3], v.shape[3]), arguments.layout.block, q.device)


def _check(q: Tensor, v: Tensor, arguments: Arguments) -> None:
    if arguments.layout.block not in BLOCKS:
        raise ValueError(
            f"backend 'triton' serves blocks of {', '.join(map(str, BLOCKS))} tokens, "
            f"got {arguments.layout.block}; "
            "backend='torch' serves any"
        )
    if q.dtype == torch.float64:
        raise ValueError(
            "backend 'triton' serves float32, bfloat16 and float16; backend='torch' serves float64"
        )
    if max(q.shape[3], v.shape[3]) > MAX_DIM:
        raise ValueError(
            f"backend 'triton' serves head dimensions up to {MAX_DIM}, got {q.shape[3]} and {v.shape[3]}; "
            "backend='torch' serves any"
        )
    if q.device.type != "cuda" and not _INTERPRETED:
        raise ValueError(
            f"backend 'triton' needs a GPU, got tensors on {q.device}; backend='torch' serves any device"
        )
