"""Tile sizes, pipeline depths and warps of the kernels, by architecture, dtype, head dimension and block.

Known architectures have a table here, made by ``experiments/attention_speed/tune.py``. On any other GPU the
kernels time a few sizes at the first call of a kind and remember the fastest (`tuning/autotune.py`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from longspan_kernels.architecture import Architecture, architecture_of

DIMS = (64, 128, 256)
# Larger blocks are cut into sub-blocks, and need no entries of their own.
BLOCKS = (16, 32, 64)
_TILES = (16, 32, 64, 128, 256)
_WARPS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Size:
    """How one kernel is launched.

    Attributes:
        q_tile: queries a tile or step.
        k_tile: keys a step or tile.
        stages: depth of the software pipeline.
        warps: warps a program.
        registers: most registers a thread, None for no bound; NVIDIA alone has it.

    Raises:
        ValueError: a number that no kernel can be launched with.

    """

    q_tile: int
    k_tile: int
    stages: int
    warps: int
    registers: int | None = None

    def __post_init__(self) -> None:
        allowed = {"q_tile": _TILES, "k_tile": _TILES, "stages": range(1, 9), "warps": _WARPS}
        for name, values in allowed.items():
            value = getattr(self, name)
            if type(value) is not int or value not in values:
                raise ValueError(f"{name} must be one of {', '.join(map(str, values))}, got {value!r}")
        if self.registers is not None and (
            type(self.registers) is not int or not 24 <= self.registers <= 255
        ):
            raise ValueError(f"registers must be None or lie in [24, 255], got {self.registers!r}")

    def launch(self) -> dict[str, Any]:
        """Keyword arguments of a Triton launch."""
        options: dict[str, Any] = {"num_stages": self.stages, "num_warps": self.warps}
        if self.registers is not None:
            options["maxnreg"] = self.registers
        return options

    def serves(self, block: int) -> bool:
        """Whether a schedule's 32 bits hold the pairs of sub-blocks of a tile and a step."""
        sub = min(block, self.q_tile, self.k_tile)
        return (self.q_tile // sub) * (self.k_tile // sub) <= 32


@dataclass(frozen=True)
class Sizes:
    """The sizes of all kernels for one kind of call: forward, dq, dk with dv, and the bias's gradient."""

    forward: Size
    queries: Size
    keys: Size
    bias: Size


@dataclass(frozen=True)
class Scattered:
    """Sizes for layouts whose rows have little in common, with tiles and steps of one block each.

    Attributes:
        fill: they are used where kept pairs of blocks would fill less than that of the ordinary size's steps.
        forward: of the forward; None for the ordinary one.
        queries: of dq; likewise.
        keys: of dk with dv; likewise.

    """

    fill: float
    forward: Size | None
    queries: Size | None
    keys: Size | None


@dataclass(frozen=True)
class Kind:
    """What the sizes of calls in bfloat16 and float16 depend on besides the architecture.

    Attributes:
        dim: the head dimension rounded up to one of `DIMS`.
        block: tokens a block, one of `BLOCKS`; the last one stands for all that are larger.

    """

    dim: int
    block: int


# From `experiments/attention_speed/tune.jsonl`. The sweep has not reached head dimension 256.
_HOPPER = {
    Kind(64, 16): Sizes(
        Size(64, 64, 2, 4, 128), Size(64, 32, 3, 4, 128), Size(64, 64, 1, 4, 168), Size(32, 32, 1, 4)
    ),
    Kind(64, 32): Sizes(Size(64, 32, 3, 4), Size(64, 32, 3, 4), Size(32, 64, 3, 4, 168), Size(32, 32, 1, 4)),
    Kind(64, 64): Sizes(
        Size(64, 64, 2, 4, 128), Size(64, 64, 2, 4, 128), Size(64, 64, 3, 4), Size(32, 32, 1, 4)
    ),
    Kind(128, 16): Sizes(Size(64, 64, 3, 4), Size(64, 64, 2, 4), Size(32, 64, 3, 4), Size(32, 32, 1, 4)),
    Kind(128, 32): Sizes(Size(64, 32, 2, 4), Size(64, 32, 2, 4), Size(32, 64, 3, 4), Size(32, 32, 1, 4)),
    Kind(128, 64): Sizes(Size(64, 64, 3, 4), Size(64, 64, 2, 4), Size(64, 64, 2, 4), Size(32, 32, 1, 4)),
    Kind(256, 16): Sizes(Size(64, 32, 2, 4), Size(64, 32, 2, 8), Size(64, 32, 1, 8), Size(32, 32, 1, 4)),
    Kind(256, 32): Sizes(Size(64, 32, 2, 4), Size(64, 32, 2, 8), Size(64, 32, 1, 8), Size(32, 32, 1, 4)),
    Kind(256, 64): Sizes(Size(64, 32, 2, 4), Size(64, 32, 2, 8), Size(64, 32, 1, 8), Size(32, 32, 1, 4)),
}
TABLE: dict[Architecture, dict[Kind, Sizes]] = {(9, 0): _HOPPER}
SCATTERED: dict[Architecture, dict[Kind, Scattered]] = {
    (9, 0): {
        Kind(64, 16): Scattered(0.55, Size(16, 16, 3, 1), Size(16, 16, 3, 1), Size(16, 16, 3, 1)),
        Kind(64, 32): Scattered(0.75, Size(32, 32, 3, 1), Size(32, 32, 3, 1), None),
        Kind(128, 16): Scattered(0.6, Size(16, 16, 3, 1), Size(16, 16, 3, 1), None),
        Kind(128, 32): Scattered(0.75, None, Size(32, 32, 3, 2), None),
    }
}
# Products of float32 run on the ordinary units: small tiles keep them in registers.
_FLOAT32 = Sizes(*[Size(32, 32, 1, 4)] * 4)
# What was found for a device. Sizes that stand in until a device may be timed are not kept.
_found: dict[tuple[torch.device, Kind], Sizes] = {}


def kind_of(dim: int, block: int) -> Kind:
    """Give the kind of a call.

    Args:
        dim: the larger head dimension, at most 256.
        block: tokens a block.

    """
    return Kind(next(limit for limit in DIMS if dim <= limit), min(block, BLOCKS[-1]))


def nearest_sizes(architecture: Architecture | None, kind: Kind) -> Sizes:
    """Give the sizes of the known architecture that is nearest, to stand in for an unknown one.

    Nearest is the compute capability with the smallest difference, the lower of two.
    """
    if isinstance(architecture, tuple):
        known = [one for one in TABLE if isinstance(one, tuple)]
        wanted = 10 * architecture[0] + architecture[1]
        return TABLE[min(known, key=lambda one: (abs(10 * one[0] + one[1] - wanted), one))][kind]
    if architecture is None:
        return TABLE[9, 0][kind]  # the interpreter and the compile-only tests
    for one, sizes in TABLE.items():
        if isinstance(one, str):
            return sizes[kind]
    hopper = TABLE[9, 0][kind]
    return Sizes(
        *(dataclasses.replace(getattr(hopper, f.name), registers=None) for f in dataclasses.fields(Sizes))
    )


def sizes_for(dtype: torch.dtype, dim: int, block: int, device: torch.device) -> Sizes:
    """Give the sizes for a call; on an unknown GPU the first call of a kind times some and remembers.

    Args:
        dtype: of queries, keys and values.
        dim: the larger head dimension, at most 256.
        block: tokens a block.
        device: of the tensors.

    """
    if dtype == torch.float32:
        return _FLOAT32
    kind = kind_of(dim, block)
    found = _found.get((device, kind))
    if found is None:
        architecture = architecture_of(device)
        if architecture is None:
            return nearest_sizes(None, kind)
        if architecture in TABLE:
            found = TABLE[architecture][kind]
        else:
            # Only here, so that a known GPU never loads what times sizes.
            from longspan_kernels.triton_backend.tuning import autotune

            found = autotune.tuned_sizes(kind, dtype, device)
            if found is None:
                return nearest_sizes(architecture, kind)
        _found[device, kind] = found
    return found


def scattered_sizes_for(dtype: torch.dtype, dim: int, block: int, device: torch.device) -> Scattered | None:
    """Give the sizes for layouts whose rows have little in common, None where the ordinary ones serve them.

    Arguments as `sizes_for`.
    """
    architecture = architecture_of(device)
    if dtype == torch.float32 or architecture is None:
        return None
    return SCATTERED.get(architecture, {}).get(kind_of(dim, block))


def settled(dtype: torch.dtype, dim: int, block: int, device: torch.device) -> bool:
    """Say whether `sizes_for` gives the same at the next call: not where timing has only to wait."""
    architecture = architecture_of(device)
    if dtype == torch.float32 or architecture is None or architecture in TABLE:
        return True
    from longspan_kernels.triton_backend.tuning import autotune

    return (device, kind_of(dim, block)) in _found or autotune.may_time()
