"""The backends by name: which one computes a call, and its module, loaded at its first use.

A backend is a module with two functions, `longspan_kernels.torch_backend.attention` is the model:
``forward(q, k, v, arguments) -> (out, lse)`` and ``backward(q, k, v, out, lse, grad_out, grad_lse, arguments,
bias_gradient, table_gradient) -> (dq, dk, dv, dbias, dtable)``.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

_MODULES = {
    "torch": "longspan_kernels.torch_backend.attention",
    "triton": "longspan_kernels.triton_backend.backend",
}
# Names from earlier versions, in saved models and configurations.
_OLD_NAMES = {"reference": "torch"}
_loaded: dict[str, Any] = {}


def available_backends() -> tuple[str, ...]:
    """Return the names that ``backend=`` takes besides "auto"."""
    return tuple(_MODULES)


def resolve_backend(name: str, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """Return the name of the backend that computes a call: the name itself, or the choice behind "auto".

    "auto" is "triton" on a GPU, for every dtype but float64, and "torch" elsewhere. "reference", the old name
    of "torch", is taken too.

    Raises:
        ValueError: no backend has that name.

    """
    if name == "auto":
        return "triton" if device.type == "cuda" and dtype != torch.float64 else "torch"
    name = _OLD_NAMES.get(name, name)
    if name not in _MODULES:
        allowed = ", ".join(repr(one) for one in ("auto", *_MODULES))
        raise ValueError(f"backend must be one of {allowed}, got {name!r}")
    return name


def load_backend(name: str) -> Any:
    """Return the module of a backend; Triton is imported here, by the first call that needs it."""
    module = _loaded.get(name)
    if module is None:
        module = _loaded[name] = importlib.import_module(_MODULES[_OLD_NAMES.get(name, name)])
    return module
