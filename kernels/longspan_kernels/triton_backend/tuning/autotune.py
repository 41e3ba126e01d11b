"""Configurations for a GPU without a table: a few are timed at the first call, and the fastest is remembered.

The kernels are timed on a layout like BigBird's (Zaheer et al. 2020, arXiv:2007.14062). A configuration is
left out if it does not compile (it may need more shared memory than there is) or its result is not that of
the torch backend. ``LONGSPAN_AUTOTUNE=0`` switches timing off; nothing is timed while a CUDA graph is
captured or a call is traced. Then the nearest known table stands in.
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
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from longspan_kernels import architecture
from longspan_kernels.arguments import Arguments
from longspan_kernels.layout import BlockLayout
from longspan_kernels.torch_backend import attention
from longspan_kernels.triton_backend.kernel_configs import (
    BLOCKS,
    ConfigChoice,
    ConfigKey,
    KernelConfig,
    KernelConfigs,
    nearest_configs,
)
from longspan_kernels.triton_backend.prepared import Backward, Forward, prepare_backward, prepare_forward
from longspan_kernels.triton_backend.tuning import config_cache

logger = logging.getLogger(__name__)

KERNELS = ("forward", "queries", "keys")
Timer = Callable[[Callable[[], object]], float]
TOKENS, HEADS = 4096, 16
ROUNDS = 9
# Largest error, over the largest value of a result. The half types round to 2^-8 and 2^-11; a wrong tile is
# off by whole values.
TOLERANCE = 0.03
# Runs on any GPU: the other kernel of a backward takes it while one is timed.
SAFE = KernelConfig(32, 32, 1, 4)
# (tokens of the tile, tokens of a step, stages, warps) beside the nearest known one, by head dimension.
_TRIED = {
    64: [(64, 64, 3, 4), (64, 64, 2, 4), (128, 64, 2, 8), (64, 32, 2, 4)],
    128: [(64, 64, 2, 4), (128, 64, 2, 8), (64, 32, 2, 4), (64, 64, 2, 8)],
    256: [(64, 32, 2, 4), (64, 32, 2, 8), (64, 64, 1, 8), (32, 32, 2, 4)],
}
_lock = threading.Lock()  # autograd runs backwards in threads of its own
_thread = threading.local()
_tuned: dict[str, KernelConfigs] = {}  # by the text of `cache_key_of`
_failed: set[str] = set()
_announced = False


@dataclass(frozen=True, eq=False)
class Problem:
    """A call, to run its kernels with any configuration.

    Attributes:
        q: ``[batch, heads, q_len, dim]``, contiguous; k and v likewise.
        grad: gradient of the context.
        arguments: the options.
        out: the context, an input of the backward.
        lse: the log-sum-exp, float32 ``[batch, heads, q_len]``.

    """

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    arguments: Arguments
    out: Tensor
    lse: Tensor
    # Preparing a call takes longer than a launch, and must not be timed.
    _forwards: dict[KernelConfigs, Forward] = field(default_factory=dict, init=False, repr=False)
    _backwards: dict[KernelConfigs, Backward] = field(default_factory=dict, init=False, repr=False)

    def run(
        self, kernel: str, config: KernelConfig, others: KernelConfigs | None = None
    ) -> tuple[Tensor, ...]:
        """Run a kernel of `KERNELS` with a configuration: context and log-sum-exp, dq, or dk and dv.

        Both kernels of the backward run in one call, so the time of either contains that of the other. The
        other one always runs with its configuration of ``others``, the safest if not given.
        """
        configs = dataclasses.replace(others or KernelConfigs(SAFE, SAFE, SAFE, SAFE), **{kernel: config})
        q, k, v, grad, arguments = self.q, self.k, self.v, self.grad, self.arguments
        if kernel == "forward":
            if configs not in self._forwards:
                self._forwards[configs] = prepare_forward(q, k, v, arguments, ConfigChoice(configs))
            return self._forwards[configs](q, k, v, arguments)
        if configs not in self._backwards:
            choice = ConfigChoice(configs)
            self._backwards[configs] = prepare_backward(q, k, v, grad, arguments, False, False, choice)
        dq, dk, dv, *_ = self._backwards[configs](q, k, v, self.out, self.lse, grad, None, arguments)
        return (dq,) if kernel == "queries" else (dk, dv)

    def expected(self) -> dict[str, tuple[Tensor, ...]]:
        """Results of the torch backend, by kernel."""
        dq, dk, dv, *_ = attention.backward(
            self.q, self.k, self.v, self.out, self.lse, self.grad, None, self.arguments, False
        )
        return {"forward": (self.out, self.lse), "queries": (dq,), "keys": (dk, dv)}


def typical_layout(block: int, heads: int, tokens: int) -> BlockLayout:
    """Make a layout like BigBird's: a window of three blocks, two global blocks, three random ones a row."""
    count = -(-tokens // block)
    row, column = torch.arange(count)[:, None], torch.arange(count)
    kept = ((row - column).abs() <= 1) | (row < 2) | (column < 2)
    drawn = torch.randint(count, (count, 3), generator=torch.Generator().manual_seed(0))
    kept = kept.scatter(1, drawn, True)
    return BlockLayout.from_dense(kept.expand(heads, -1, -1), block)


def typical_problem(
    config_key: ConfigKey, dtype: torch.dtype, device: torch.device, tokens: int = TOKENS, heads: int = HEADS
) -> Problem:
    """Make a call that keeps a large GPU busy; torch's random state is left alone."""
    generator = torch.Generator(device).manual_seed(0)
    batch = max(1, 4 * 64 // config_key.dim)
    shape = (batch, heads, tokens, config_key.dim)
    q, k, v, grad = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(4))
    arguments = Arguments(typical_layout(config_key.block, heads, tokens), config_key.dim**-0.5)
    out, lse = attention.forward(q, k, v, arguments)
    return Problem(q, k, v, grad, arguments, out, lse)


def candidates(kernel: str, config_key: ConfigKey, known: KernelConfig) -> list[KernelConfig]:
    """List the configurations that are tried for a kernel: the known one first, the safest last."""
    by_keys = kernel == "keys"  # its tiles are of keys, its steps of queries
    tried = [
        KernelConfig(step if by_keys else tile, tile if by_keys else step, stages, warps)
        for tile, step, stages, warps in _TRIED[config_key.dim]
    ]
    return [config for config in dict.fromkeys([known, *tried, SAFE]) if config.serves(config_key.block)]


def largest_error(results: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Return the largest difference over the largest expected value, of all tensors; NaN if any is NaN."""
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
    configs: Sequence[KernelConfig],
    run: Callable[[KernelConfig], tuple[Tensor, ...]],
    expected: tuple[Tensor, ...],
    timer: Timer,
    rounds: int = ROUNDS,
) -> tuple[dict[KernelConfig, float], dict[KernelConfig, str]]:
    """Time the configurations that work, one after another in each of several rounds.

    Args:
        configs: what is tried.
        run: runs the kernel with a configuration and returns its results.
        expected: what the results must be, to `TOLERANCE`.
        timer: returns the milliseconds of a call.
        rounds: how often each is timed.

    Returns:
        The median milliseconds of each configuration that works, and for each other one why it does not.

    Raises:
        torch.OutOfMemoryError: the device's memory is full, which tells nothing of a configuration.

    """
    times: dict[KernelConfig, list[float]] = {}
    failed: dict[KernelConfig, str] = {}
    for config in configs:
        try:
            error = largest_error(run(config), expected)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # compilers and drivers raise many types
            failed[config] = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
            continue
        if error <= TOLERANCE:
            times[config] = []
        else:  # also if it is NaN
            failed[config] = f"wrong result: off by {error:.3g} of the largest value"
    for number in range(rounds):
        # Every other round backwards, so that none always follows the same one.
        for config in list(times)[:: 1 if number % 2 == 0 else -1]:
            times[config].append(timer(lambda config=config: run(config)))
    return {config: statistics.median(each) for config, each in times.items()}, failed


def enabled() -> bool:
    """Whether `LONGSPAN_AUTOTUNE` lets configurations be timed: "1" (the default) or "0".

    Raises:
        ValueError: it is anything else.

    """
    value = os.environ.get("LONGSPAN_AUTOTUNE", "1")
    if value not in ("0", "1"):
        raise ValueError(f"LONGSPAN_AUTOTUNE must be 0 or 1, got {value!r}")
    return value == "1"


def may_time() -> bool:
    """Whether calls can be timed now: not in a capture or a trace, and not while timing already."""
    if getattr(_thread, "is_tuning", False) or torch.compiler.is_compiling():
        return False
    # Fake tensors hold no numbers; modes that count or replay operations must not see those of the timing.
    if _get_current_dispatch_mode() is not None:
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def cache_key_of(config_key: ConfigKey, device: torch.device) -> dict[str, Any]:
    """Return what tuned configurations hold for: GPU, software and kind of call, plain JSON types."""
    gpu = architecture.architecture_of(device)
    return {
        "gpu": torch.cuda.get_device_name(device),
        "architecture": list(gpu) if isinstance(gpu, tuple) else gpu,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "longspan_kernels": config_cache.source_hash(),
        "dtype": "half",
        "dim": config_key.dim,
        "block": config_key.block,
    }


def tuned_configs(
    config_key: ConfigKey,
    dtype: torch.dtype,
    device: torch.device,
    *,
    timer: Timer = cuda_milliseconds,
    make_problem: Callable[[ConfigKey, torch.dtype, torch.device], Any] = typical_problem,
) -> KernelConfigs | None:
    """Return the configurations for a GPU: those remembered, or else the fastest of a few timed now.

    Args:
        config_key: head dimension and block.
        dtype: bfloat16 or float16, which share their configurations; timing is in this one.
        device: the GPU.
        timer: returns the milliseconds of a call.
        make_problem: makes the call that is timed, as `typical_problem`.

    Returns:
        The configurations, or None where a known table has to do: timing is switched off, nothing may be
        timed now, or the attempt has failed before in this process.

    """
    if not enabled():
        return None
    key = cache_key_of(config_key, device)
    text = repr(key)
    if text in _tuned:
        return _tuned[text]
    if text in _failed:
        return None
    if not may_time():
        return config_cache.read(key)
    with _lock:
        if text in _tuned or text in _failed:  # another thread was first
            return _tuned.get(text)
        configs = config_cache.read(key)
        if configs is None:
            _thread.is_tuning = True
            try:
                configs = _tune(config_key, dtype, device, key, timer, make_problem)
            except Exception as error:  # the call itself can still run, or raises what is wrong
                logger.warning("tuning failed, the nearest known sizes are used: %r", error)
            finally:
                _thread.is_tuning = False
        if configs is None:
            _failed.add(text)
        else:
            _tuned[text] = configs
        return configs


def _tune(
    config_key: ConfigKey,
    dtype: torch.dtype,
    device: torch.device,
    key: dict[str, Any],
    timer: Timer,
    make_problem: Callable[[ConfigKey, torch.dtype, torch.device], Any],
) -> KernelConfigs | None:
    """Time and remember; None if no configuration works for some kernel."""
    global _announced
    # A warning, since the default level hides anything less and the first call takes a while.
    logger.log(
        logging.INFO if _announced else logging.WARNING,
        "%s has no table of tile sizes: timing some for head dimensions up to %d and blocks of %d tokens%s, "
        "once; remembered in %s (LONGSPAN_AUTOTUNE=0 switches this off)",
        key["gpu"], config_key.dim, config_key.block, " and more" if config_key.block == BLOCKS[-1] else "",
        config_cache.path_of(key),
    )  # fmt: skip
    _announced = True
    started = time.monotonic()
    base = nearest_configs(architecture.architecture_of(device), config_key)
    best: dict[str, KernelConfig] = {}
    about: dict[str, Any] = {}
    # Events and launches are those of the current device, whatever device the tensors are on.
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with torch.no_grad(), torch.autocast(device.type, enabled=False), current:
        problem = make_problem(config_key, dtype, device)
        expected = problem.expected()
        for kernel in KERNELS:
            times, failed = measure(
                candidates(kernel, config_key, getattr(base, kernel)),
                lambda config, kernel=kernel: problem.run(kernel, config),
                expected[kernel],
                timer,
            )
            for config, reason in failed.items():
                logger.info("%s: %s left out: %s", kernel, config, reason)
            if not times:
                logger.warning(
                    "no size tried works for %s; the nearest known sizes are used: %s", kernel, failed
                )
                return None
            best[kernel] = min(times, key=lambda config, times=times: times[config])
            about[kernel] = {
                "milliseconds": {str(config): ms for config, ms in times.items()},
                "failed": {str(config): reason for config, reason in failed.items()},
            }
    # Of several processes that tune at once, the first to finish decides for all, and for later ones.
    other = config_cache.read(key)
    if other is not None:
        return other
    configs = dataclasses.replace(base, **best)
    config_cache.write(key, configs, {"timed": about})
    logger.info("tuned in %.1f s: %s", time.monotonic() - started, configs)
    return configs
