"""`block_sparse_attention`: the one function that everything else calls."""

from __future__ import annotations

import math
import operator
from typing import Any, Literal, overload

import torch
from torch import Tensor

from longspan_kernels.backends import resolve_backend
from longspan_kernels.layout import BlockLayout, handles
from longspan_kernels.layout.csr import check_lengths
from longspan_kernels.layout.handles import LayoutHandle
from longspan_kernels.ops import attend
from longspan_kernels.relative import Alibi, RelativeBias, T5Buckets

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@handles.constant_in_graphs
def _pinned(digest: str) -> tuple[Any, ...]:
    """Run by Dynamo while it traces: the graph holds the numbers, so the layout has to stay.

    It takes the digest, which Dynamo guards by value: a layout of other content compiles again, an equal one
    in another object does not.
    """
    return handles.keep_for_graph(handles.by_digest(digest))


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout | LayoutHandle,
    *,
    causal: bool | None = ...,
    scale: float | None = ...,
    key_padding_mask: Tensor | None = ...,
    attn_mask: Tensor | None = ...,
    bias: Tensor | None = ...,
    document_ids: Tensor | None = ...,
    relative_bias: RelativeBias | None = ...,
    window: tuple[int | None, int | None] | None = ...,
    dropout_p: float = ...,
    dropout_seed: int | Tensor | None = ...,
    return_lse: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout | LayoutHandle,
    *,
    causal: bool | None = ...,
    scale: float | None = ...,
    key_padding_mask: Tensor | None = ...,
    attn_mask: Tensor | None = ...,
    bias: Tensor | None = ...,
    document_ids: Tensor | None = ...,
    relative_bias: RelativeBias | None = ...,
    window: tuple[int | None, int | None] | None = ...,
    dropout_p: float = ...,
    dropout_seed: int | Tensor | None = ...,
    return_lse: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout | LayoutHandle,
    *,
    causal: bool | None = None,
    scale: float | None = None,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    bias: Tensor | None = None,
    document_ids: Tensor | None = None,
    relative_bias: RelativeBias | None = None,
    window: tuple[int | None, int | None] | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int | Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over the kept blocks of a layout; time and memory in proportion to them.

    The last query meets the last key: query ``i`` stands at position ``i + k_len - q_len``. A query that sees
    no key gets zeros, a log-sum-exp of ``-inf``, and zero gradients. Under autocast q, k and v are cast to
    its dtype. Twice differentiable it is not.

    Args:
        q: ``[batch, heads, q_len, dim]``, float64, float32, bfloat16 or float16; any strides.
        k: ``[batch, kv_heads, k_len, dim]``, ``heads`` a multiple of ``kv_heads``: query head ``h`` reads
            key head ``h // (heads // kv_heads)``.
        v: ``[batch, kv_heads, k_len, v_dim]``.
        layout: the kept blocks, of as many heads as q has, covering ``q_len`` and ``k_len``; or the
            handle of one that stays alive.
        causal: whether a query sees only keys at or before its position, to the token; None: as the layout
            says.
        scale: factor of the scores, ``dim ** -0.5`` if None.
        key_padding_mask: ``[batch, k_len]``; bool, True where a key may be attended, or floating point, added
            to the scores. It must not require a gradient.
        attn_mask: broadcasts to ``[batch, heads, q_len, k_len]``; bool, True where a key may be attended, or
            floating point, added to the scores. It must not require a gradient: a learned mask is
            a ``bias``.
        bias: floating point, broadcasts to ``[batch, heads, q_len, k_len]``, added to the scaled scores; only
            kept blocks are read. Its gradient has its own shape.
        document_ids: integers ``[batch, k_len]``; a query attends keys of its own number only. With
            ``q_len < k_len`` the queries take the last ``q_len`` numbers.
        relative_bias: added to the scaled scores by the distance of query and key alone, without anything of
            ``[q_len, k_len]``: `T5Buckets`, whose table has a gradient, or `Alibi`.
        window: ``(left, right)`` tokens, each None for no bound: key ``j`` is seen from position ``i`` if
            ``i - left <= j <= i + right``.
        dropout_p: probability of dropping an attention weight, ``0 <= p < 1``; those kept are scaled by
            ``1 / (1 - p)``. The draw is a pure function of seed and positions (`longspan_kernels.philox`).
        dropout_seed: int in ``[0, 2**64)``, or an int64 tensor of no dimension on q's device; None draws one
            from torch's default generator of that device.
        return_lse: whether the natural logarithm of each softmax's denominator is returned too.
        backend: "auto", or a name of `available_backends`.

    Returns:
        The context ``[batch, heads, q_len, v_dim]`` in q's dtype, contiguous or, by the Triton backend, in
        memory as q is; with ``return_lse`` also ``[batch, heads, q_len]`` in float32 (float64 for float64),
        differentiable.

    Raises:
        ValueError: shapes, dtypes, devices, lengths or numbers that do not fit, or an unknown backend.

    """
    if isinstance(layout, LayoutHandle):
        handle = layout
    elif torch.compiler.is_compiling():
        handle = LayoutHandle(*_pinned(layout.digest))
    else:
        handle = layout.handle
    q, k, v = _autocast(q, k, v)
    _check_qkv(q, k, v)
    q_len, k_len = q.shape[2], k.shape[2]
    if q.shape[1] != handle.heads:
        raise ValueError(f"the layout is for {handle.heads} heads, but q has {q.shape[1]}: q is {_shape(q)}")
    check_lengths(handle, q_len, k_len)
    if key_padding_mask is not None:
        _check_per_key("key_padding_mask", key_padding_mask, q, k)
        if key_padding_mask.dtype != torch.bool and not key_padding_mask.is_floating_point():
            raise ValueError(
                "key_padding_mask must be bool (True where a key may be attended) or floating point (added "
                f"to the scores), got {key_padding_mask.dtype}"
            )
        _check_no_gradient("key_padding_mask", key_padding_mask)
    if attn_mask is not None:
        _check_no_gradient("attn_mask", attn_mask)
        attn_mask = _four_dimensional("attn_mask", attn_mask, q, k_len)
        if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
            raise ValueError(
                "attn_mask must be bool (True where a key may be attended) or floating point (added to the "
                f"scores), got {attn_mask.dtype}"
            )
    if bias is not None:
        if not bias.is_floating_point():
            raise ValueError(f"bias must be floating point (added to the scaled scores), got {bias.dtype}")
        bias = _four_dimensional("bias", bias, q, k_len)
    relative = (None, None, None) if relative_bias is None else _relative(relative_bias, q)
    if document_ids is not None:
        _check_per_key("document_ids", document_ids, q, k)
        if document_ids.is_floating_point() or document_ids.is_complex() or document_ids.dtype == torch.bool:
            raise ValueError(f"document_ids must be integers, got {document_ids.dtype}")
        if q_len > k_len:
            raise ValueError(
                f"document_ids need a number for each query, the last of [batch, k_len]: got {q_len} queries "
                f"and {k_len} keys"
            )
    if causal is not None and not isinstance(causal, bool):
        raise ValueError(f"causal must be True, False or None, got {causal!r}")
    left, right = _window(window)
    if causal or (causal is None and handle.causal):
        right = 0 if right is None else min(right, 0)
    out, lse = attend(
        q,
        k,
        v,
        key_padding_mask,
        attn_mask,
        bias,
        document_ids,
        _seed(dropout_p, dropout_seed, q.device),
        *relative,
        operator.index(handle.number),  # a number that Dynamo took for variable: one again, guarded
        q.shape[3] ** -0.5 if scale is None else _scale(scale),
        left,
        right,
        float(dropout_p),
        resolve_backend(backend, q.device, q.dtype),
    )
    return (out, lse) if return_lse else out


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)


def _shapes(q: Tensor, k: Tensor, v: Tensor) -> str:
    return f"got q {_shape(q)}, k {_shape(k)}, v {_shape(v)}"


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to autocast's dtype, as torch's own attention does; float64 stays."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
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


def _check_per_key(name: str, x: Tensor, q: Tensor, k: Tensor) -> None:
    expected = [q.shape[0], k.shape[2]]
    if _shape(x) != expected:
        raise ValueError(f"{name} must be [batch, k_len] = {expected}, got {_shape(x)}")
    if x.device != q.device:
        raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}")


def _check_no_gradient(name: str, x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires a gradient, but has none: pass what is learned as bias")


def _four_dimensional(name: str, x: Tensor, q: Tensor, k_len: int) -> Tensor:
    """View a mask that broadcasts to ``[batch, heads, q_len, k_len]`` as one of four dimensions."""
    full = [q.shape[0], q.shape[1], q.shape[2], k_len]
    sizes = [1] * (4 - x.ndim) + _shape(x)
    if len(sizes) != 4 or any(size not in (1, side) for size, side in zip(sizes, full, strict=True)):
        raise ValueError(f"{name} must broadcast to [batch, heads, q_len, k_len] = {full}, got {_shape(x)}")
    if x.device != q.device:
        raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}")
    return x[(None,) * (4 - x.ndim)]


def _relative(bias: RelativeBias, q: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Check a relative bias: its table and buckets, or its slopes."""
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


def _window(window: tuple[int | None, int | None] | None) -> tuple[int | None, int | None]:
    if window is None:
        return None, None
    sides = window if isinstance(window, tuple | list) else ()
    if len(sides) != 2 or any(
        side is not None and not (isinstance(side, int) and side >= 0) for side in sides
    ):
        raise ValueError(
            f"window must be (left, right), each None or a whole number of at least 0 tokens, got {window!r}"
        )
    left, right = sides
    return left, right


def _scale(scale: float) -> float:
    # A tensor would lose its gradient.
    if not isinstance(scale, int | float) or not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be a finite number or None, got {scale!r}")
    return float(scale)


def _seed(dropout_p: float, seed: int | Tensor | None, device: torch.device) -> Tensor | None:
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
