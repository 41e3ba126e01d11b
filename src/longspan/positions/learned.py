"""New tables of learned positions from trained ones: pure functions of tensors.

Each takes the trained rows ``[positions, width]`` in any floating dtype and gives ``[length, width]`` in the
same dtype, on the same device. Reserved rows (for padding, or skipped) are no positions: `extend_table` keeps
them apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor


def tile(trained: Tensor, length: int) -> Tensor:
    """Repeat the trained positions, the last copy cut (Beltagy et al. 2020, *Longformer*, arXiv:2004.05150).

    Position ``p`` gets the row of ``p % positions``, so a token and one ``positions`` further on look alike:
    right for attention in which the two never meet.

    Args:
        trained: ``[positions, width]``.
        length: number of positions wanted.

    """
    return trained[torch.arange(length, device=trained.device) % trained.shape[0]]


def interpolate(trained: Tensor, length: int, *, mode: str = "linear") -> Tensor:
    """Spread the trained positions over the new length, and read between them.

    The first and the last row stay the first and the last; all others move, so the model sees tokens closer
    together than it was trained on (Dosovitskiy et al. 2021, *ViT*, arXiv:2010.11929, for learned positions;
    Chen et al. 2023, *Position Interpolation*, arXiv:2306.15595, for rotary ones). Computed in float32 at
    least.

    Args:
        trained: ``[positions, width]``.
        length: number of positions wanted.
        mode: ``"linear"``, or ``"cubic"`` for cubic convolution (Keys 1981).

    Raises:
        ValueError: another mode.

    """
    if mode not in ("linear", "cubic"):
        raise ValueError(f"mode must be linear or cubic, got {mode!r}")
    wide = trained.to(torch.promote_types(trained.dtype, torch.float32))
    # torch interpolates the last dimensions of [batch, channels, …]; it knows cubic in two of them alone.
    rows = wide.T[None, :, :, None]
    kernel = "bilinear" if mode == "linear" else "bicubic"
    spread = torch.nn.functional.interpolate(rows, size=(length, 1), mode=kernel, align_corners=True)
    return spread[0, :, :, 0].T.to(trained.dtype).contiguous()


def truncate_and_normal(trained: Tensor, length: int, *, seed: int = 0) -> Tensor:
    """Keep the trained positions and draw the rows after them from a normal distribution.

    Each dimension has the mean and the standard deviation that the trained rows have in it. Drawn in float32
    on the CPU, so the same seed gives the same rows on every device.

    Args:
        trained: ``[positions, width]``.
        length: number of positions wanted.
        seed: of the draw.

    """
    wide = trained.to("cpu", torch.float32)
    mean, spread = wide.mean(0), wide.std(0, correction=0)
    generator = torch.Generator().manual_seed(seed)
    fresh = mean + spread * torch.randn(length - len(wide), wide.shape[1], generator=generator)
    return torch.cat([trained, fresh.to(trained)])


def zero(trained: Tensor, length: int) -> Tensor:
    """Keep the trained positions; the rows after them are zero, for training to fill.

    Args:
        trained: ``[positions, width]``.
        length: number of positions wanted.

    """
    return torch.cat([trained, trained.new_zeros(length - trained.shape[0], trained.shape[1])])


METHODS: dict[str, Callable[..., Tensor]] = {
    "tile": tile,
    "interpolate": interpolate,
    "truncate-and-normal": truncate_and_normal,
    "zero": zero,
}


def options_of(method: str) -> tuple[str, ...]:
    """Return the names of a method's own options."""
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def extend_table(table: Tensor, reserved: int, length: int, method: str, **options: object) -> Tensor:
    """Make the table of a longer model.

    Args:
        table: the trained table ``[reserved + positions, width]``.
        reserved: rows before the first position; they are kept as they are.
        length: number of positions wanted, at least as many as there are.
        method: a key of `METHODS`.
        options: the method's own.

    Returns:
        ``[reserved + length, width]`` in the dtype and on the device of the table.

    Raises:
        ValueError: fewer positions than there are, an unknown method, or an option that the method does not
            take.

    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    unknown = sorted(set(options) - set(options_of(method)))
    if unknown:
        known = ", ".join(options_of(method)) or "none"
        raise ValueError(f"method {method!r} has no option {', '.join(unknown)}; its options: {known}")
    positions = table.shape[0] - reserved
    if length < positions:
        raise ValueError(
            f"max_positions must be at least {positions}, the positions that the model has; got {length}"
        )
    extended = METHODS[method](table[reserved:], length, **options)
    return torch.cat([table[:reserved], extended]) if length > positions else table.clone()
