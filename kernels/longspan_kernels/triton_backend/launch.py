"""Launching Triton kernels cheaply: the compiled kernel is looked up once for calls of one kind.

Triton works out at every launch which compiled kernel its arguments need; with some forty arguments that
takes longer than many of our kernels run. Here a call's kind is a key, made of all that the choice depends
on, and what the kind needs is kept beside it.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# Triton's launch syntax is no type that a checker can follow.
from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor

from longspan_kernels.arguments import Arguments
from longspan_kernels.philox import dropout_threshold
from longspan_kernels.triton_backend.kernels.structs import Distances, Dropout, Masks, Operand, Strided

Value = TypeVar("Value", bound="Settled")

# What the bulk copy engine asks of addresses and strides, and what Triton makes kernels of their own for.
_ALIGNMENT = 16
_BUFFER_ALIGNMENT = 128
LOG2E = 1.4426950408889634
_SOME, _NONE = tl.constexpr(True), tl.constexpr(False)


class Launch:
    """A kernel with its grid and options, for calls of one kind.

    Args:
        kernel: the Triton function.
        grid: number of programs, in up to three dimensions.
        options: Triton's, such as ``num_warps``.

    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], options: dict[str, Any] | None = None) -> None:
        self._kernel = kernel
        self._grid = (*grid, 1, 1)[:3]
        self._options = options or {}
        self._compiled: CompiledKernel | None = None

    def __call__(self, *arguments: Any) -> None:
        """Launch on the current stream with all arguments of the kernel, constants too, in their order.

        Dtypes, alignment and the numbers that the kernel specialises on must be those of the first call.
        """
        if self._compiled is not None:
            self._compiled[self._grid](*arguments)
            return
        self._compiled = self._look_up(*arguments)

    def _look_up(self, *arguments: Any) -> CompiledKernel | None:
        """Launch as Triton does, and return the compiled kernel; the interpreter has none."""
        compiled = self._kernel[self._grid](*arguments, **self._options)
        return compiled if isinstance(compiled, CompiledKernel) else None


class Settled(Protocol):
    """What a kind of call needs, and whether another call of the kind would make it the same."""

    settled: bool


class Kinds(Generic[Value]):
    """What calls of recent kinds need, by kind; the one longest unused makes room."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, kind: Hashable, make: Callable[[], Value]) -> Value:
        """Return what a kind needs, made at its first call."""
        try:
            # Threads may meet here: each step is atomic, and what another has dropped meanwhile is made anew.
            self._values.move_to_end(kind)
            return self._values[kind]
        except KeyError:
            value = make()
            if value.settled:
                self._values[kind] = value
            while len(self._values) > self._kept:
                self._values.popitem(last=False)
            return value

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()


def kind_of(arguments: Arguments, *tensors: Tensor | None) -> Hashable:
    """Return what the schedules, sizes and compiled kernels of a call depend on."""
    first = tensors[0]
    kind: list[Hashable] = [
        arguments.layout.digest, arguments.left, arguments.right, arguments.dropout_p,
        rising(arguments.scale), None if first is None else first.device,
    ]  # fmt: skip
    watched = tensors
    if arguments.masked or arguments.dropout_seed is not None:
        watched = (
            *tensors, arguments.key_padding_mask, arguments.attn_mask, arguments.bias, arguments.document_ids,
            arguments.dropout_seed, arguments.relative_table, arguments.relative_buckets, arguments.slopes,
        )  # fmt: skip
    kind += [
        None if x is None else (x.dtype, x.shape, x.stride(), x.data_ptr() % _ALIGNMENT) for x in watched
    ]
    return tuple(kind)


def rising(scale: float) -> bool:
    """Say whether larger products are larger scores, also in float32, where tiny numbers vanish."""
    return scale * LOG2E >= torch.finfo(torch.float32).tiny


def unit_stride(x: Tensor) -> Tensor:
    """Return the tensor with its last dimension contiguous, copied only if it is not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def padded(width: int) -> int:
    """Return the width that the matrix units take: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(width))


def operand(x: Tensor) -> Operand:
    """Bundle ``[batch, heads, length, width]`` for a kernel."""
    return Operand(x, x.stride()[:3])


_NO_MASKS = Masks(None, None, None, None, None, None, _NONE)


def masks_of(arguments: Arguments) -> Masks:
    """Bundle what strikes scores or is added to them."""
    if not arguments.masked:
        return _NO_MASKS
    slopes = arguments.slopes
    parts = (
        _strided(arguments.key_padding_mask), _strided(arguments.attn_mask), _strided(arguments.bias),
        _strided(arguments.document_ids), _distances(arguments),
        None if slopes is None else (slopes.float() * LOG2E).contiguous(),
    )  # fmt: skip
    return Masks(*parts, _SOME)


def _distances(arguments: Arguments) -> Distances | None:
    table, buckets = arguments.relative_table, arguments.relative_buckets
    if table is None or buckets is None:
        return None
    values = (table.float() * LOG2E).t()[:, buckets.long()].contiguous()
    number = triton.next_power_of_2(table.shape[0])
    return Distances(values, buckets, buckets.numel() // 2, tl.constexpr(number))


def _strided(x: Tensor | None) -> Strided | None:
    if x is None:
        return None
    strides = tuple(0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return Strided(x.view(torch.uint8) if x.dtype == torch.bool else x, strides)


def dropout_of(arguments: Arguments) -> Dropout | None:
    """Bundle what drops weights; None without dropout."""
    p = arguments.dropout_p
    return Dropout(arguments.dropout_seed, dropout_threshold(p), 1.0 / (1.0 - p)) if p > 0 else None


class Tiles:
    """Tiles of a tensor as the bulk copy engine (TMA) of Hopper fetches them: whole, of neighbouring rows.

    Args:
        x: ``[batch, heads, length, width]``, or ``[batch, heads, length]``.
        rows: rows a tile.

    """

    def __init__(self, x: Tensor, rows: int) -> None:
        made = TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, *x.shape[3:]])
        # Kept without the tensor, for later ones of its kind: the descriptor's own checks take longer
        # than a launch.
        self._fields = {name: value for name, value in vars(made).items() if name != "base"}

    def of(self, x: Tensor) -> TensorDescriptor:
        """Describe another tensor of the same kind."""
        described = object.__new__(TensorDescriptor)
        vars(described).update(self._fields, base=x)
        return described

    @staticmethod
    def serve(x: Tensor, rows: int, sub: int) -> bool:
        """Say whether tiles of x can be fetched so: sub-blocks are whole tiles, and all lies on 16 bytes.

        A tile has 128 bytes at least: in a pipeline's buffers the next one would lie off the alignment.
        """
        if sub != rows or not x.numel() or not has_tma(x.device):
            return False
        step = _ALIGNMENT // x.element_size()
        widths = tuple(x.shape[3:])
        return (
            widths == tuple(map(padded, widths))
            and math.prod((rows, *widths)) * x.element_size() >= _BUFFER_ALIGNMENT
            and x.data_ptr() % _ALIGNMENT == 0
            and all(stride > 0 and stride % step == 0 for stride in x.stride()[:-1])
        )


@functools.cache
def has_tma(device: torch.device) -> bool:
    """Say whether a device has the bulk copy engine."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device)[0] >= 9
    )
