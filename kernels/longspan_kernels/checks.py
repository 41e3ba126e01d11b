"""What `block_sparse_attention` refuses, and the forms that it brings its arguments into.

Shapes in this file: B batch, H query heads, K key heads, L queries, M keys, D width of q and k, E width of v.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longspan_kernels.layout.csr import LayoutHandle, check_lengths
from longspan_kernels.relative import Alibi, RelativeBias, T5Buckets

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuse anything but q ``[B, H, L, D]``, k ``[B, K, M, D]`` and v ``[B, K, M, E]`` of one dtype."""
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(f"q, k and v must be [batch, heads, length, dim], {_shapes(q, k, v)}")
    if q.dtype not in _DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            "q, k and v must be of one dtype, float64, float32, bfloat16 or float16, got "
            f"{q.dtype}, {k.dtype}, {v.dtype}"
        )
    if k.device != q.device or v.device != q.device:
        raise ValueError(f"q, k and v must be on one device, got {q.device}, {k.device}, {v.device}")
    if k.shape[0] != q.shape[0] or k.shape[:3] != v.shape[:3] or k.shape[3] != q.shape[3]:
        raise ValueError(
            "k must be [batch, kv_heads, k_len, dim] with q's batch and dim, v as k but for its dim, "
            + _shapes(q, k, v)
        )
    if k.shape[1] < 1 or q.shape[1] % k.shape[1]:
        raise ValueError(f"the heads of q must be a multiple of those of k and v, {_shapes(q, k, v)}")


def check_layout(handle: LayoutHandle, q: Tensor, k: Tensor) -> None:
    """Refuse a layout of other heads or lengths than those of q and k."""
    if q.shape[1] != handle.heads:
        raise ValueError(f"the layout is for {handle.heads} heads, but q has {q.shape[1]}: q is {_shape(q)}")
    check_lengths(handle, q.shape[2], k.shape[2])


def check_key_padding_mask(mask: Tensor, q: Tensor, k: Tensor) -> None:
    """Refuse anything but ``[B, M]``, bool or floating point, without a gradient."""
    _check_per_key("key_padding_mask", mask, q, k)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(
            "key_padding_mask must be bool (True where a key may be attended) or floating point (added "
            f"to the scores), got {mask.dtype}"
        )
    _check_no_gradient("key_padding_mask", mask)


def checked_attn_mask(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Return a mask that broadcasts to ``[B, H, L, M]`` with four dimensions; refuse any other."""
    _check_no_gradient("attn_mask", mask)
    mask = _four_dimensional("attn_mask", mask, q, k)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(
            "attn_mask must be bool (True where a key may be attended) or floating point (added to the "
            f"scores), got {mask.dtype}"
        )
    return mask


def checked_bias(bias: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Return a bias that broadcasts to ``[B, H, L, M]`` with four dimensions; refuse any other."""
    if not bias.is_floating_point():
        raise ValueError(f"bias must be floating point (added to the scaled scores), got {bias.dtype}")
    return _four_dimensional("bias", bias, q, k)


def check_document_ids(document_ids: Tensor, q: Tensor, k: Tensor) -> None:
    """Refuse anything but integers ``[B, M]``, and more queries than keys."""
    _check_per_key("document_ids", document_ids, q, k)
    if document_ids.is_floating_point() or document_ids.is_complex() or document_ids.dtype == torch.bool:
        raise ValueError(f"document_ids must be integers, got {document_ids.dtype}")
    if q.shape[2] > k.shape[2]:
        raise ValueError(
            f"document_ids need a number for each query, the last of [batch, k_len]: got {q.shape[2]} "
            f"queries and {k.shape[2]} keys"
        )


def checked_relative_bias(
    bias: RelativeBias, q: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return table and buckets, or slopes, of a relative bias; refuse one for other heads or devices."""
    if not isinstance(bias, T5Buckets | Alibi):
        raise ValueError(f"relative_bias must be T5Buckets, Alibi or None, got {bias!r}")
    name, x = ("table", bias.table) if isinstance(bias, T5Buckets) else ("slopes", bias.slopes)
    if x.shape[-1] != q.shape[1]:
        raise ValueError(f"relative_bias.{name} is for {x.shape[-1]} heads, but q has {q.shape[1]}")
    if x.device != q.device:
        raise ValueError(f"relative_bias.{name} must be on q's device {q.device}, got {x.device}")
    if isinstance(bias, T5Buckets):
        return x, bias.buckets(), None
    _check_no_gradient("relative_bias.slopes", x)
    return None, None, x


def checked_bounds(
    window: tuple[int | None, int | None] | None, causal: bool | None, layout_causal: bool
) -> tuple[int | None, int | None]:
    """Return how many tokens a query sees to the left and to the right of its position, None for all."""
    if causal is not None and not isinstance(causal, bool):
        raise ValueError(f"causal must be True, False or None, got {causal!r}")
    left, right = None, None
    if window is not None:
        sides = window if isinstance(window, tuple | list) else ()
        if len(sides) != 2 or any(
            side is not None and not (isinstance(side, int) and side >= 0) for side in sides
        ):
            raise ValueError(
                "window must be (left, right), each None or a whole number of at least 0 tokens, got "
                f"{window!r}"
            )
        left, right = sides
    if causal or (causal is None and layout_causal):
        right = 0 if right is None else min(right, 0)
    return left, right


def checked_scale(scale: float | None, q: Tensor) -> float:
    """Return the factor of the scores, ``D ** -0.5`` for None; refuse what is no finite number."""
    if scale is None:
        return q.shape[3] ** -0.5
    # A tensor would lose its gradient.
    if not isinstance(scale, int | float) or not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be a finite number or None, got {scale!r}")
    return float(scale)


def checked_seed(dropout_p: float, seed: int | Tensor | None, device: torch.device) -> Tensor | None:
    """Return dropout's seed as an int64 tensor of no dimension, drawn if not given; None without dropout."""
    if not isinstance(dropout_p, int | float) or not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be a number in [0, 1), got {dropout_p!r}")
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.ndim or seed.device != device:
            raise ValueError(
                f"dropout_seed must be an int64 tensor of no dimension on q's device {device}, got "
                f"{seed.dtype} {_shape(seed)} on {seed.device}"
            )
    elif seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**64):
        raise ValueError(f"dropout_seed must be a whole number in [0, 2**64), got {seed!r}")
    if not dropout_p:
        return None
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    if isinstance(seed, Tensor):
        return seed
    return torch.full((), seed if seed < 2**63 else seed - 2**64, dtype=torch.int64, device=device)


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)


def _shapes(q: Tensor, k: Tensor, v: Tensor) -> str:
    return f"got q {_shape(q)}, k {_shape(k)}, v {_shape(v)}"


def _check_per_key(name: str, x: Tensor, q: Tensor, k: Tensor) -> None:
    expected = [q.shape[0], k.shape[2]]
    if _shape(x) != expected:
        raise ValueError(f"{name} must be [batch, k_len] = {expected}, got {_shape(x)}")
    if x.device != q.device:
        raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}")


def _check_no_gradient(name: str, x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires a gradient, but has none: pass what is learned as bias")


def _four_dimensional(name: str, x: Tensor, q: Tensor, k: Tensor) -> Tensor:
    full = [q.shape[0], q.shape[1], q.shape[2], k.shape[2]]
    sizes = [1] * (4 - x.ndim) + _shape(x)
    if len(sizes) != 4 or any(size not in (1, side) for size, side in zip(sizes, full, strict=True)):
        raise ValueError(f"{name} must broadcast to [batch, heads, q_len, k_len] = {full}, got {_shape(x)}")
    if x.device != q.device:
        raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}")
    return x[(None,) * (4 - x.ndim)]
