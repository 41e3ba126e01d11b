"""What attends in a measured model: ours, FlexAttention, torch's dense attention, or nothing.

`install` yields the variants of a contestant, best first. A variant is a dictionary: `name`; `install`, which
puts it into a model; `context`, a context manager for the step; `compile_options`, those of torch.compile.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

from longspan import sparsify
from longspan.sparsity import from_dict
from longspan_kernels import BlockLayout
from longspan_kernels.backends import resolve_backend

BLOCK = 64
# FlexAttention's default tiles do not divide blocks of 64; its autotuning has some that do. The model's
# matrix products stay with cuBLAS.
AUTOTUNE = {"max_autotune": True, "max_autotune_gemm_backends": "ATEN"}
DENSE_BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def install(
    name: str, length: int, heads: int, dim: int, causal: bool, device: torch.device, compiled: bool
) -> Iterator[dict[str, Any]]:
    """Yield the variants of `none`, `dense`, `longspan:PATTERN` or `flex:PATTERN`, best first."""
    kind, _, pattern = name.partition(":")
    plain = {"context": contextlib.nullcontext, "compile_options": None}
    if kind == "none":
        yield {**plain, "name": "none", "install": registered(nothing)}
    elif kind == "dense":
        for backend in dense_order(length, heads, dim, causal, device):
            context = contextlib.nullcontext if backend == "math" else _sdpa(DENSE_BACKENDS[backend])
            yield {**plain, "name": backend, "install": registered(dense), "context": context}
    elif kind == "longspan":
        config = make_pattern(pattern, heads, causal)
        backend = resolve_backend("auto", device)
        yield {**plain, "name": backend, "install": lambda model: sparsify(model, config)}
    else:
        layout = make_pattern(pattern, heads, causal).layout(length)
        for label, coarse, options in (
            ("blocks of 64, autotuned", False, AUTOTUNE),
            ("blocks of 128 with a mask function, autotuned", True, AUTOTUNE),
            ("blocks of 128 with a mask function", True, None),
        ):
            mask = coarse_mask(layout, device) if coarse else block_mask(layout, device)
            attend = flex(mask, options, compiled, device)
            yield {**plain, "name": label, "install": registered(attend), "compile_options": options}


def make_pattern(name: str, heads: int, causal: bool) -> Any:
    """A pattern with its default arguments, blocks of 64."""
    attention = "unidirectional" if causal else "bidirectional"
    return from_dict({"name": name, "num_heads": heads, "block": BLOCK, "attention": attention})


def registered(function: Callable[..., tuple[Tensor, None]]) -> Callable[[Any], None]:
    """Make a model attend through a function; transformers makes no mask for a name it does not know."""

    def put(model: Any) -> None:
        AttentionInterface.register("training_speed", function)
        model.set_attn_implementation("training_speed")

    return put


def nothing(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **_: Any
) -> tuple[Tensor, None]:
    """No attention: the sum, so that all three projections keep their forward and their backward."""
    return (query + key + value).transpose(1, 2), None


def dense(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: Any = None, **_: Any
) -> tuple[Tensor, None]:
    """Torch's attention, without a mask."""
    out = scaled_dot_product_attention(query, key, value, is_causal=module.is_causal, scale=scaling)
    return out.transpose(1, 2), None


def _sdpa(backend: SDPBackend) -> Callable[[], Any]:
    return lambda: sdpa_kernel(backend)


def dense_order(length: int, heads: int, dim: int, causal: bool, device: torch.device) -> list[str]:
    """Torch's fused backends by the time of one layer, forward and backward; those that fail are left out."""
    if device.type != "cuda":
        return ["math"]
    q, k, v, grad = (
        torch.randn(1, heads, length, dim, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(4)
    )
    times = {}
    for name, backend in DENSE_BACKENDS.items():
        try:
            with sdpa_kernel(backend):
                for repeat in range(4):
                    if repeat == 1:
                        torch.cuda.synchronize()
                        begin = time.perf_counter()
                    out = scaled_dot_product_attention(q, k, v, is_causal=causal)
                    torch.autograd.grad(out, (q, k, v), grad)
                torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"dense attention with {name}: {error}")
            continue
        times[name] = time.perf_counter() - begin
    return sorted(times, key=times.__getitem__)


def flex(
    mask: BlockMask, options: dict[str, Any] | None, compiled: bool, device: torch.device
) -> Callable[..., tuple[Tensor, None]]:
    """FlexAttention under a mask; compiled by itself where the model is not: else it keeps all scores."""
    call: Any = flex_attention
    if device.type == "cuda" and not compiled:
        call = torch.compile(flex_attention, dynamic=False, options=options)

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        scaling: Any = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        out = call(query, key, value, block_mask=mask, scale=scaling)
        return out.transpose(1, 2), None

    return attend


def _kept(layout: BlockLayout, device: torch.device) -> Tensor:
    """Bool [1, layouts that differ, blocks, blocks]: 1 for all heads where they share theirs."""
    kept = layout.to_dense().bool()
    return (kept[:1] if layout.layouts == 1 else kept)[None].to(device)


def _blocks(kept: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row keeps, and which: kept columns first."""
    order = kept.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return kept.sum(-1, dtype=torch.int32), order.to(torch.int32)


def block_mask(layout: BlockLayout, device: torch.device) -> BlockMask:
    """The pattern as FlexAttention takes it; only diagonal blocks of a causal one need a mask function."""
    kept = _kept(layout, device)
    diagonal = torch.eye(kept.shape[-1], dtype=torch.bool, device=device)
    partial = kept & diagonal if layout.causal else torch.zeros_like(kept)
    size = kept.shape[-1] * layout.block
    return BlockMask.from_kv_blocks(
        *_blocks(partial),
        *_blocks(kept & ~partial),
        BLOCK_SIZE=layout.block,
        mask_mod=_causal if layout.causal else None,
        seq_lengths=(size, size),
    )


def coarse_mask(layout: BlockLayout, device: torch.device) -> BlockMask:
    """Blocks of 128 over those of 64: whole where all four are kept, else looked up token by token."""
    kept = _kept(layout, device)
    four = kept.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))
    whole = four.all(-1).all(-2)
    if layout.causal:
        whole = whole & ~torch.eye(whole.shape[-1], dtype=torch.bool, device=device)
    partial = four.any(-1).any(-2) & ~whole
    table, per_head, causal = kept[0], kept.shape[1] > 1, layout.causal

    def look_up(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = table[head if per_head else head * 0, query // BLOCK, key // BLOCK]
        return seen & (query >= key) if causal else seen

    size = kept.shape[-1] * layout.block
    return BlockMask.from_kv_blocks(
        *_blocks(partial), *_blocks(whole), BLOCK_SIZE=2 * BLOCK, mask_mod=look_up, seq_lengths=(size, size)
    )


def _causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key
