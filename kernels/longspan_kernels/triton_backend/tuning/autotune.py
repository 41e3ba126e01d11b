"""Sizes for a GPU without a table: a few are timed at the first call of a kind, and the fastest remembered.

What is timed are calls of the backend, on a layout like BigBird's (Zaheer et al. 2020, arXiv:2007.14062). A
size that does not compile, as one that needs more shared memory than there is, or whose result is not that of
the reference backend, is left out. ``LONGSPAN_AUTOTUNE=0`` switches it off; it does not happen while a CUDA
graph is captured or a call is traced. Then the nearest known table stands in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from longspan_kernels.arguments import Arguments
from longspan_kernels.layout import BlockLayout
from longspan_kernels.torch_backend import attention as reference
from longspan_kernels.triton_backend import backend as triton_backend
from longspan_kernels.triton_backend import kernel_configs as tuning
from longspan_kernels.triton_backend.kernel_configs import Kind, Size, Sizes
from longspan_kernels.triton_backend.tuning import config_cache as tuning_cache

logger = logging.getLogger(__name__)

KERNELS = ("forward", "queries", "keys")
Timer = Callable[[Callable[[], object]], float]
TOKENS, HEADS = 4096, 16
ROUNDS = 9
# Of the largest value of a result. The half types round to 2^-8 and 2^-11, a tile gone wrong is off by its
# whole size.
TOLERANCE = 0.03
# Runs on anything: the other kernel of a backward takes it while one is timed.
SAFE = Size(32, 32, 1, 4)
# (tokens of the tile, tokens of a step, stages, warps) beside the nearest known size, by head dimension.
_TRIED = {
    64: [(64, 64, 3, 4), (64, 64, 2, 4), (128, 64, 2, 8), (64, 32, 2, 4)],
    128: [(64, 64, 2, 4), (128, 64, 2, 8), (64, 32, 2, 4), (64, 64, 2, 8)],
    256: [(64, 32, 2, 4), (64, 32, 2, 8), (64, 64, 1, 8), (32, 32, 2, 4)],
}
_lock = threading.Lock()  # autograd runs backwards in threads of its own
_busy = threading.local()
_found: dict[str, Sizes] = {}  # by the key's text
_given_up: set[str] = set()
_announced = False


@dataclass(frozen=True)
class Problem:
    """A call whose kernels can be run with any sizes.

    Attributes:
        q: ``[batch, heads, q_len, dim]``; k and v likewise.
        grad: gradient of the context.
        arguments: the options.
        out: the context, which the backward starts from.
        lse: the log-sum-exp, float32 ``[batch, heads, q_len]``.

    """

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    arguments: Arguments
    out: Tensor
    lse: Tensor

    def run(self, kernel: str, size: Size, others: Sizes | None = None) -> tuple[Tensor, ...]:
        """Run a kernel of `KERNELS` with a size: context and log-sum-exp, dq, or dk and dv.

        The two of the backward run in one call, so the time of one has that of the other in it, which is the
        same whatever the size: it runs with its size of ``others``, the safest if not given.
        """
        sizes = dataclasses.replace(others or Sizes(SAFE, SAFE, SAFE, SAFE), **{kernel: size})
        q, k, v, arguments = self.q, self.k, self.v, self.arguments
        if kernel == "forward":
            return triton_backend.forward(q, k, v, arguments, sizes=sizes)
        dq, dk, dv, *_ = triton_backend.backward(
            q, k, v, self.out, self.lse, self.grad, None, arguments, False, sizes=sizes
        )
        return (dq,) if kernel == "queries" else (dk, dv)

    def expected(self) -> dict[str, tuple[Tensor, ...]]:
        """Results of the reference backend, by kernel."""
        dq, dk, dv, *_ = reference.backward(
            self.q, self.k, self.v, self.out, self.lse, self.grad, None, self.arguments, False
        )
        return {"forward": (self.out, self.lse), "queries": (dq,), "keys": (dk, dv)}


def typical_layout(block: int, heads: int, tokens: int) -> BlockLayout:
    """Make a layout like BigBird's: a window of three blocks, two global and three random ones a row."""
    count = -(-tokens // block)
    row, column = torch.arange(count)[:, None], torch.arange(count)
    kept = ((row - column).abs() <= 1) | (row < 2) | (column < 2)
    drawn = torch.randint(count, (count, 3), generator=torch.Generator().manual_seed(0))
    kept = kept.scatter(1, drawn, True)
    return BlockLayout.from_dense(kept.expand(heads, -1, -1), block)


def typical_problem(
    kind: Kind, dtype: torch.dtype, device: torch.device, tokens: int = TOKENS, heads: int = HEADS
) -> Problem:
    """Make a call of a kind, of a size that keeps a large GPU busy; torch's random state is left alone."""
    generator = torch.Generator(device).manual_seed(0)
    batch = max(1, 4 * 64 // kind.dim)
    shape = (batch, heads, tokens, kind.dim)
    q, k, v, grad = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(4))
    arguments = Arguments(typical_layout(kind.block, heads, tokens), kind.dim**-0.5)
    out, lse = reference.forward(q, k, v, arguments)
    return Problem(q, k, v, grad, arguments, out, lse)


def candidates(kernel: str, kind: Kind, known: Size) -> list[Size]:
    """List the sizes that are tried for a kernel: the known one first, the safest last."""
    turned = kernel == "keys"  # its tiles are of keys, its steps of queries
    tried = [
        Size(step if turned else tile, tile if turned else step, stages, warps)
        for tile, step, stages, warps in _TRIED[kind.dim]
    ]
    return [size for size in dict.fromkeys([known, *tried, SAFE]) if size.serves(kind.block)]


def largest_error(results: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Give the largest difference over the largest expected value, of all tensors; NaN if anything is NaN."""
    pairs = [(one.float(), other.float()) for one, other in zip(results, expected, strict=True)]
    errors = [(one - other).abs().amax() / other.abs().amax() for one, other in pairs]
    return float(torch.stack(errors).amax())


def cuda_milliseconds(call: Callable[[], object]) -> float:
    """Time one call between two events; the device waits first, so that the host stays ahead of it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(4_000_000)  # cycles: about two milliseconds
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def measure(
    sizes: Sequence[Size],
    run: Callable[[Size], tuple[Tensor, ...]],
    expected: tuple[Tensor, ...],
    timer: Timer,
    rounds: int = ROUNDS,
) -> tuple[dict[Size, float], dict[Size, str]]:
    """Time the sizes that work, in turn over several rounds.

    Args:
        sizes: what is tried.
        run: runs the kernel with a size and gives its results.
        expected: what the results must be, to `TOLERANCE`.
        timer: gives the milliseconds of a call.
        rounds: how often each is timed.

    Returns:
        The median milliseconds of each size that works, and for each other one why it does not.

    Raises:
        torch.OutOfMemoryError: the device's memory is full, which says nothing of a size.

    """
    times: dict[Size, list[float]] = {}
    failed: dict[Size, str] = {}
    for size in sizes:
        try:
            error = largest_error(run(size), expected)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # compilers and drivers raise whatever they like
            failed[size] = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
            continue
        if error <= TOLERANCE:
            times[size] = []
        else:  # also if it is NaN
            failed[size] = f"wrong result: off by {error:.3g} of the largest value"
    for turn in range(rounds):
        # Every other round backwards, so that none always follows the same one.
        for size in list(times)[:: 1 if turn % 2 == 0 else -1]:
            times[size].append(timer(lambda size=size: run(size)))
    return {size: statistics.median(each) for size, each in times.items()}, failed


def enabled() -> bool:
    """Whether `LONGSPAN_AUTOTUNE` lets sizes be timed and remembered: "1", as without it, or "0".

    Raises:
        ValueError: it is anything else.

    """
    value = os.environ.get("LONGSPAN_AUTOTUNE", "1")
    if value not in ("0", "1"):
        raise ValueError(f"LONGSPAN_AUTOTUNE must be 0 or 1, got {value!r}")
    return value == "1"


def may_time() -> bool:
    """Whether calls can be timed here and now: not in a capture or a trace, and not while timing already."""
    if getattr(_busy, "tuning", False) or torch.compiler.is_compiling():
        return False
    # Fake tensors hold no numbers; other modes, as those that count or replay operations, must not see ours.
    if _get_current_dispatch_mode() is not None:
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def key_of(kind: Kind, device: torch.device) -> dict[str, Any]:
    """Say what sizes hold for: the GPU, the software and the kind, plain JSON types."""
    architecture = tuning.architecture_of(device)
    return {
        "gpu": torch.cuda.get_device_name(device),
        "architecture": list(architecture) if isinstance(architecture, tuple) else architecture,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "longspan_kernels": tuning_cache.source_hash(),
        "dtype": "half",
        "dim": kind.dim,
        "block": kind.block,
    }


def tuned_sizes(
    kind: Kind,
    dtype: torch.dtype,
    device: torch.device,
    *,
    timer: Timer = cuda_milliseconds,
    make_problem: Callable[[Kind, torch.dtype, torch.device], Any] = typical_problem,
) -> Sizes | None:
    """Give the sizes for a kind of call on a GPU: those remembered, or else the fastest of a few timed now.

    Args:
        kind: the kind.
        dtype: bfloat16 or float16, which share their sizes; it is timed in this one.
        device: the GPU.
        timer: gives the milliseconds of a call.
        make_problem: makes the call that is timed, as `typical_problem`.

    Returns:
        The sizes, or None where a known table has to do: it is switched off, nothing may be timed now, or
        the attempt has failed before in this process.

    """
    if not enabled():
        return None
    key = key_of(kind, device)
    text = repr(key)
    if text in _found:
        return _found[text]
    if text in _given_up:
        return None
    if not may_time():
        return tuning_cache.read(key)
    with _lock:
        if text in _found or text in _given_up:  # another thread was first
            return _found.get(text)
        found = tuning_cache.read(key)
        if found is None:
            _busy.tuning = True
            try:
                found = _tune(kind, dtype, device, key, timer, make_problem)
            except Exception as error:  # the call itself can still be served, or says what is wrong
                logger.warning("tuning failed, the nearest known sizes are used: %r", error)
            finally:
                _busy.tuning = False
        if found is None:
            _given_up.add(text)
        else:
            _found[text] = found
        return found


def _tune(
    kind: Kind,
    dtype: torch.dtype,
    device: torch.device,
    key: dict[str, Any],
    timer: Timer,
    make_problem: Callable[[Kind, torch.dtype, torch.device], Any],
) -> Sizes | None:
    """Time and remember; None if no size works for some kernel."""
    global _announced
    # A warning, since the default level hides anything less and the first call stands still for a while.
    logger.log(
        logging.INFO if _announced else logging.WARNING,
        "%s has no table of tile sizes: timing some for head dimensions up to %d and blocks of %d tokens%s, "
        "once; remembered in %s (LONGSPAN_AUTOTUNE=0 switches this off)",
        key["gpu"], kind.dim, kind.block, " and more" if kind.block == tuning.BLOCKS[-1] else "",
        tuning_cache.path_of(key),
    )  # fmt: skip
    _announced = True
    started = time.monotonic()
    base = tuning.nearest_sizes(tuning.architecture_of(device), kind)
    best: dict[str, Size] = {}
    about: dict[str, Any] = {}
    # Events are those of the current device, whatever the tensors'.
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with torch.no_grad(), torch.autocast(device.type, enabled=False), current:
        problem = make_problem(kind, dtype, device)
        expected = problem.expected()
        for kernel in KERNELS:
            times, failed = measure(
                candidates(kernel, kind, getattr(base, kernel)),
                lambda size, kernel=kernel: problem.run(kernel, size),
                expected[kernel],
                timer,
            )
            for size, why in failed.items():
                logger.info("%s: %s left out: %s", kernel, size, why)
            if not times:
                logger.warning(
                    "no size tried works for %s; the nearest known sizes are used: %s", kernel, failed
                )
                return None
            best[kernel] = min(times, key=lambda size, times=times: times[size])
            about[kernel] = {
                "milliseconds": {str(size): ms for size, ms in times.items()},
                "failed": {str(size): why for size, why in failed.items()},
            }
    # Of several processes that tune at once the first to finish decides for all, also for those that come.
    other = tuning_cache.read(key)
    if other is not None:
        return other
    sizes = dataclasses.replace(base, **best)
    tuning_cache.write(key, sizes, {"timed": about})
    logger.info("tuned in %.1f s: %s", time.monotonic() - started, sizes)
    return sizes
