"""The backends by name, and which one serves a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan_kernels.arguments import Arguments
from longspan_kernels.torch_backend import attention as reference


@dataclass(frozen=True)
class Backend:
    """An implementation of block-sparse attention.

    Attributes:
        forward: ``(q, k, v, arguments) -> (out, lse)``, as `torch_backend.attention.forward`.
        backward: as `longspan_kernels.torch_backend.attention.backward`.

    """

    forward: Callable[[Tensor, Tensor, Tensor, Arguments], tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]]


def _triton_forward(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
    from longspan_kernels.triton_backend import (
        backend as triton_backend,  # imports Triton, at the first call that needs it
    )

    return triton_backend.forward(q, k, v, arguments)


def _triton_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    from longspan_kernels.triton_backend import backend as triton_backend

    return triton_backend.backward(*arguments)


BACKENDS: dict[str, Backend] = {
    "reference": Backend(reference.forward, reference.backward),
    "triton": Backend(_triton_forward, _triton_backward),
}


def available_backends() -> tuple[str, ...]:
    """Return the names that ``backend=`` takes besides "auto"."""
    return tuple(BACKENDS)


def resolve_backend(name: str, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """Return the name of the backend that serves a call: the name itself, or the choice behind "auto".

    "auto" is Triton on a GPU, for every dtype but float64, and the reference elsewhere.

    Raises:
        ValueError: no backend has that name.

    """
    if name == "auto":
        return "triton" if device.type == "cuda" and dtype != torch.float64 else "reference"
    if name not in BACKENDS:
        allowed = ", ".join(repr(one) for one in ("auto", *BACKENDS))
        raise ValueError(f"backend must be one of {allowed}, got {name!r}")
    return name
