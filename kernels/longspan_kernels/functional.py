"""`block_sparse_attention`, the public function: it checks its arguments and hands them to `ops.attend`."""

from __future__ import annotations

from typing import Any, Literal, cast, overload

import torch
from torch import Tensor

from longspan_kernels import checks
from longspan_kernels.arguments import Arguments
from longspan_kernels.backends import resolve_backend
from longspan_kernels.layout import BlockLayout
from longspan_kernels.layout.csr import LayoutHandle
from longspan_kernels.layout.handles import (
    by_digest,
    constant_in_graphs,
    keep_for_graph,
    layout_of,
)
from longspan_kernels.ops import attend
from longspan_kernels.relative import RelativeBias


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
    its dtype. It is not differentiable twice.

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
    if torch.compiler.is_compiling():
        # A graph holds numbers, no layout: `ops` reads the number alone.
        handle = layout if isinstance(layout, LayoutHandle) else LayoutHandle(*_kept_for_graph(layout.digest))
        kept_blocks = cast("BlockLayout", handle)
    else:
        kept_blocks = layout_of(layout.number) if isinstance(layout, LayoutHandle) else layout
        handle = kept_blocks.handle
    q, k, v = _autocast(q, k, v)
    checks.check_qkv(q, k, v)
    checks.check_layout(handle, q, k)
    if key_padding_mask is not None:
        checks.check_key_padding_mask(key_padding_mask, q, k)
    if attn_mask is not None:
        attn_mask = checks.checked_attn_mask(attn_mask, q, k)
    if bias is not None:
        bias = checks.checked_bias(bias, q, k)
    table, buckets, slopes = None, None, None
    if relative_bias is not None:
        table, buckets, slopes = checks.checked_relative_bias(relative_bias, q)
    if document_ids is not None:
        checks.check_document_ids(document_ids, q, k)
    left, right = checks.checked_bounds(window, causal, handle.causal)
    seed = checks.checked_seed(dropout_p, dropout_seed, q.device)
    arguments = Arguments(
        layout=kept_blocks,
        scale=checks.checked_scale(scale, q),
        left=left,
        right=right,
        dropout_p=float(dropout_p),
        key_padding_mask=key_padding_mask,
        attn_mask=attn_mask,
        bias=bias,
        document_ids=document_ids,
        dropout_seed=seed,
        relative_table=table,
        relative_buckets=buckets,
        slopes=slopes,
    )
    out, lse = attend(q, k, v, arguments, resolve_backend(backend, q.device, q.dtype))
    return (out, lse) if return_lse else out


@constant_in_graphs
def _kept_for_graph(digest: str) -> tuple[Any, ...]:
    """Return a layout's handle and keep the layout; Dynamo runs this while it traces.

    The argument is the digest, which Dynamo guards by value: a layout of other content compiles again, an
    equal one in another object does not.
    """
    return keep_for_graph(by_digest(digest))


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to autocast's dtype, as torch's own attention does; float64 stays."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)
