"""Measure one cell: ours, FlexAttention and dense attention in one process, in turn, as users call them."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flex
import timing
import torch
from flex import Options
from suite import HELD_OUT, TUNING_LENGTH, TUNING_PATTERN, Cell
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from longspan_kernels import BlockLayout, block_sparse_attention

ROUNDS = 3
# Dense attention that takes longer is measured once a length and not again beside every pattern.
DENSE_AGAIN_MS = 60.0
# A mask size that is so much slower than the best on the layout of the tuning is not tried on others.
HOPELESS = 1.5
DENSE = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class DeviceLostError(RuntimeError):
    """The device answers no more, as after a fault in a kernel: the process has to be started again."""


@dataclass
class Contender:
    """One way to compute a cell: the call, and the context that selects it."""

    attend: Attend
    about: dict[str, Any] = field(default_factory=dict)
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    key: Any = None  # what its compilation is kept under


@dataclass
class Session:
    """What one run keeps from cell to cell.

    Attributes:
        device: where it runs.
        winners: FlexAttention's tuned options by ``b{block}/d{dim}/{direction}``: plain JSON types.
        tune_seconds: what the tuning of one such key may take; 0 takes the first candidate untried.
        compile_seconds: what one compilation may take.
        bandwidth: bytes a second of a copy.

    """

    device: torch.device
    winners: dict[str, Any]
    tune_seconds: float
    compile_seconds: float
    bandwidth: float = 0.0
    compiled: dict[Any, Any] = field(default_factory=dict)
    refused: dict[Any, str] = field(default_factory=dict)
    dense: dict[Any, dict[str, Any]] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU to measure on."""
        return self.device.type == "cuda"


def failure(error: BaseException, device: torch.device) -> str:
    """Say what failed in a line, after making sure that the device still answers."""
    try:
        timing.synchronize(device)
    except RuntimeError as lost:
        raise DeviceLostError(f"{type(error).__name__}: {error}") from lost
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def inputs(cell: Cell, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
    """Query, key and value ``[batch, heads, length, dim]``, which require gradients, and a gradient."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    shape = (cell.batch, cell.heads, cell.length, cell.dim)
    q, k, v, grad = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(4))
    return tuple(x.requires_grad_() for x in (q, k, v)), grad


def both(attend: Attend, qkv: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward: the context and the three gradients."""
    out = attend(*qkv)
    return out, *torch.autograd.grad(out, qkv, grad)


def rounds(
    contenders: dict[str, Contender], qkv: tuple[Tensor, ...], grad: Tensor, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Time all contenders in turn, several rounds; the ones that fail say so."""
    results: dict[str, dict[str, Any]] = {
        name: {**one.about, "forward_ms": [], "both_ms": []} for name, one in contenders.items()
    }
    for turn in range(ROUNDS):
        # Every other round backwards, so that none always follows the same one.
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            one, result = contenders[name], results[name]
            if "failed" in result:
                continue
            try:
                with one.context():
                    forward = timing.milliseconds(lambda one=one: one.attend(*qkv), device)
                    result["forward_ms"].append(forward)
                    if "backward_failed" not in result:
                        step = timing.milliseconds(lambda one=one: both(one.attend, qkv, grad), device)
                        result["both_ms"].append(step)
            except Exception as error:
                result["failed"] = failure(error, device)
    return results


def warm_up(
    one: Contender, qkv: tuple[Tensor, ...], grad: Tensor, device: torch.device
) -> tuple[Tensor, ...] | None:
    """Run for compilation, plans and results, and record what it takes; None if already the forward fails."""
    start = time.perf_counter()
    try:
        with one.context():
            one.attend(*qkv)
            timing.synchronize(device)
    except Exception as error:
        one.about["failed"] = failure(error, device)
        return None
    try:
        with one.context():
            results = both(one.attend, qkv, grad)
            timing.synchronize(device)
            one.about["first_call_s"] = time.perf_counter() - start
            del results
            with timing.PeakMemory(device) as peak:
                results = both(one.attend, qkv, grad)
            one.about["peak_bytes"] = peak.bytes
            return results
    except Exception as error:
        one.about["backward_failed"] = failure(error, device)
        return ()


def relative_errors(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> dict[str, float]:
    """Norm of the difference over the norm, of the context and each gradient; nan if there is a nan."""
    errors = {}
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, theirs, strict=True):
        a, b = a.detach().float(), b.detach().float()
        errors[name] = float((a - b).norm() / b.norm())
    return errors


def ours(cell: Cell, layout: BlockLayout) -> Contender:
    """Longspan, by the backend that the device gets without asking."""
    return Contender(lambda q, k, v: block_sparse_attention(q, k, v, layout))


def dense(name: str, causal: bool) -> Contender:
    """Torch's dense attention by one of its backends."""
    return Contender(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=causal),
        context=lambda: sdpa_kernel([DENSE[name]]),
    )


def flex_contender(
    session: Session, cell: Cell, layout: BlockLayout, size: int, options: Options
) -> Contender:
    """FlexAttention under a mask of blocks of ``size`` tokens; what is compiled is kept for like cells."""
    start = time.perf_counter()
    mask = flex.block_mask(layout, size, cell.length, session.device)
    timing.synchronize(session.device)
    taken = time.perf_counter() - start
    native = size == cell.block
    per_head = layout.layouts > 1
    shape = (cell.batch, cell.heads, cell.length, cell.dim)
    key = (size, 0 if native else cell.block, layout.causal, per_head, shape, options)
    if key not in session.compiled:
        session.compiled[key] = flex.compiled(options, safe=native)
    attend = session.compiled[key]
    about = {"size": size, "options": options.as_dict(), "mask_s": taken, "mask_bytes": flex.mask_bytes(mask)}
    return Contender(lambda q, k, v: attend(q, k, v, mask), about, key=key)


def compile_flex(
    session: Session, one: Contender, options: Options, qkv: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor, ...] | None:
    """Warm FlexAttention up with its options pinned and a limit of time; what failed is not tried again."""
    if one.key in session.refused:
        one.about["failed"] = f"as before: {session.refused[one.key]}"
        return None
    results = None
    try:
        with timing.limit(session.compile_seconds), flex.pinned(options):
            results = warm_up(one, qkv, grad, session.device)
    except DeviceLostError:
        raise
    except Exception as error:
        one.about["failed"] = failure(error, session.device)
    if "failed" in one.about:
        session.refused[one.key] = one.about["failed"]
    return results


def mask_sizes(block: int) -> tuple[int, ...]:
    """Block sizes of the masks under which FlexAttention is tried: its own first."""
    return (block,) if block >= 64 else (block, 64, 128)


def tuned(session: Session, cell: Cell) -> dict[int, Options]:
    """Options of FlexAttention by size of mask, tuned once a block size, head dimension and direction."""
    key = f"b{cell.block}/d{cell.dim}/{'causal' if cell.causal else 'bidirectional'}"
    if key not in session.winners:
        if session.tune_seconds <= 0:
            return {size: flex.candidates(size, cell.dim)[0] for size in mask_sizes(cell.block)}
        session.winners[key] = _tune(session, cell)
    found = session.winners[key]
    sizes = {int(size): one for size, one in found.items() if one["kept"]}
    return {size: Options(tuple(one["forward"]), tuple(one["backward"])) for size, one in sizes.items()}


def _tune(session: Session, cell: Cell) -> dict[str, Any]:
    """Try the candidates one by one; forward and backward have each their own winner."""
    case = Cell(TUNING_PATTERN[cell.causal], cell.block, cell.dim, TUNING_LENGTH)
    layout, deadline = case.layout(), time.monotonic() + session.tune_seconds
    qkv, grad = inputs(case, session.device)
    found: dict[str, Any] = {}
    for size in mask_sizes(cell.block):
        seen, failed = [], []
        for number, options in enumerate(flex.candidates(size, cell.dim)):
            if number and time.monotonic() > deadline:
                break
            one = flex_contender(session, case, layout, size, options)
            results = compile_flex(session, one, options, qkv, grad)
            del results
            if "failed" in one.about or "backward_failed" in one.about:
                why = one.about.get("failed") or one.about["backward_failed"]
                failed.append({**options.as_dict(), "why": why})
                continue
            forward = timing.milliseconds(lambda one=one: one.attend(*qkv), session.device)
            step = timing.milliseconds(lambda one=one: both(one.attend, qkv, grad), session.device)
            seen.append((forward, step - forward, options))
        first = flex.candidates(size, cell.dim)[0]
        forward = min(seen, key=lambda x: x[0], default=(float("inf"), 0.0, first))
        backward = min(seen, key=lambda x: x[1], default=(0.0, float("inf"), first))
        found[str(size)] = {
            "forward": list(forward[2].forward),
            "backward": list(backward[2].backward),
            "forward_ms": forward[0],
            "both_ms": forward[0] + backward[1],
            "tried": [{**o.as_dict(), "forward_ms": f, "backward_ms": b} for f, b, o in seen],
            "failed": failed,
        }
    for kind in ("forward_ms", "both_ms"):
        best = min(one[kind] for one in found.values())
        for one in found.values():
            # A size that failed here is tried again in each cell, where its failure is recorded.
            one["kept"] = one.get("kept", False) or not one["tried"] or one[kind] <= HOPELESS * best
        for one in found.values():  # JSON has no infinity
            one[kind] = one[kind] if one[kind] < float("inf") else None
    return found


def dense_contenders(session: Session, cell: Cell, qkv: tuple[Tensor, ...], grad: Tensor) -> dict[str, Any]:
    """Measure dense attention by every backend, once a shape and direction."""
    key = (cell.causal, *qkv[0].shape)
    if key not in session.dense:
        names = ("cudnn", "flash") if session.on_gpu else ("math",)
        contenders = {name: dense(name, cell.causal) for name in names}
        for one in contenders.values():
            warm_up(one, qkv, grad, session.device)
        session.dense[key] = rounds(contenders, qkv, grad, session.device)
    return session.dense[key]


def compile_cell(session: Session, cell: Cell) -> None:
    """Compile what the measuring of a cell calls, ours and FlexAttention, for what is kept on disk."""
    layout, device = cell.layout(), session.device
    qkv, grad = inputs(cell, device)
    warm_up(ours(cell, layout), qkv, grad, device)
    for size, options in tuned(session, cell).items():
        one = flex_contender(session, cell, layout, size, options)
        compile_flex(session, one, options, qkv, grad)


def measure(session: Session, cell: Cell) -> dict[str, Any]:
    """Measure a cell; whatever fails is told in the record."""
    start, device = time.monotonic(), session.device
    before = timing.clocks() if session.on_gpu else {}
    layout = cell.layout()
    qkv, grad = inputs(cell, device)
    yardsticks = dense_contenders(session, cell, qkv, grad)
    contenders = {"longspan": ours(cell, layout)}
    mine = warm_up(contenders["longspan"], qkv, grad, device)
    errors: dict[str, Any] = {}
    for size, options in tuned(session, cell).items() if session.on_gpu else ():
        name = f"flex{size}"
        try:
            one = flex_contender(session, cell, layout, size, options)
        except Exception as error:
            contenders[name] = Contender(contenders["longspan"].attend, {"failed": failure(error, device)})
            continue
        contenders[name] = one
        theirs = compile_flex(session, one, options, qkv, grad)
        if mine and theirs:
            errors[name] = relative_errors(mine, theirs)
        del theirs
    alive = {name: one for name, one in yardsticks.items() if one["both_ms"]}
    best = min(alive, key=lambda name: sum(alive[name]["both_ms"]), default=None)
    if best is not None:
        if min(alive[best]["both_ms"]) <= DENSE_AGAIN_MS:
            contenders[best] = dense(best, cell.causal)
        if mine and cell.pattern == "dense":
            one = dense(best, cell.causal)
            with one.context():
                errors[best] = relative_errors(mine, both(one.attend, qkv, grad))
    del mine
    results = rounds(contenders, qkv, grad, device)
    return {
        "cell": cell.name,
        "pattern": cell.pattern,
        "block": cell.block,
        "dim": cell.dim,
        "length": cell.length,
        "batch": cell.batch,
        "heads": cell.heads,
        "causal": cell.causal,
        "held_out": cell.pattern in HELD_OUT,
        "config": cell.config.to_dict(),
        "density": layout.density,
        "row_blocks": layout.nnz / (layout.heads * layout.q_blocks),
        "forward_flops": cell.batch * layout.flops(cell.length, cell.dim),
        "io_bytes": 4 * qkv[0].numel() * qkv[0].element_size(),
        "longspan": results.pop("longspan"),
        "flex": {name: one for name, one in results.items() if name.startswith("flex")},
        "dense": {name: {**one, "reused": False} for name, one in results.items() if name in DENSE}
        or {name: {**one, "reused": True} for name, one in yardsticks.items()},
        "dense_of_shape": yardsticks,
        "relative_errors": errors,
        "copy_bandwidth": session.bandwidth,
        "clocks": [before, timing.clocks() if session.on_gpu else {}],
        "seconds": time.monotonic() - start,
        **timing.machine(device),
    }


def launch_overhead(device: torch.device) -> dict[str, float]:
    """Host time of one forward call of a small case with its plan cached, in microseconds."""
    size = (64, 64, 1024, 16, 1024) if device.type == "cuda" else (16, 16, 256, 2, 256)
    cell = Cell("bigbird", *size)
    layout = cell.layout()
    qkv, _ = inputs(cell, device)
    found = {}
    for name, one in (("longspan", ours(cell, layout)), ("dense", Contender(scaled_dot_product_attention))):
        found[f"{name}_us"] = timing.host_microseconds(lambda one=one: one.attend(*qkv), device)
        with torch.no_grad():
            found[f"{name}_no_grad_us"] = timing.host_microseconds(lambda one=one: one.attend(*qkv), device)
    return found
