"""The sweep of tile sizes behind the table of `longspan_kernels.triton_backend.kernel_configs`, on a GPU.

    python experiments/attention_speed/tune.py --head-dim 64 --blocks 16 64 --minutes 5 --out FILE
    python experiments/attention_speed/tune.py --plan               # what would be timed; needs no GPU
    python experiments/attention_speed/tune.py --table --out FILE   # the fastest, as Python and as a table

bfloat16, 4 sequences of 16,384 tokens, 16 heads, on `PATTERNS` (never on the suite's held-out ones). Sizes
are timed in groups, in turn over several rounds. In each group is the base, the present size, and what counts
is the time over its own; on a GPU without a table the base is the size that runs on anything. dq, and dk with
dv, are timed in a whole backward whose other kernel stays at its base. Sizes next to the present one come
first, so that a sweep that is cut off has seen the likeliest. A line of ``--out`` is one size of one kernel
with one head dimension and block; what is there of the same GPU, versions and sources is not timed again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any
from unittest import mock

import timing
import torch
from measure import DeviceLostError, failure
from suite import HELD_OUT, TUNING_LENGTH, Cell
from tune_table import KERNELS, append, literal, load, name_of, name_of_record, table

from longspan_kernels.architecture import architecture_of
from longspan_kernels.triton_backend import kernel_configs
from longspan_kernels.triton_backend.kernel_configs import KernelConfig, KernelConfigs
from longspan_kernels.triton_backend.tuning import config_cache

HERE = Path(__file__).parent
PATTERNS = ("bigbird", "local_sliding_window", "dense")
# Of blocks that are gathered; a dense layout of them is that of larger blocks.
PATTERNS_OF_SMALL = ("bigbird", "local_sliding_window", "fixed")
# Sizes that are timed in turn, the base besides.
GROUP = 23
ROUNDS = 7

FUNCTIONS = {
    "forward": "attention_fwd_kernel",
    "queries": "attention_bwd_dq_kernel",
    "keys": "attention_bwd_dkdv_kernel",
}

Task = tuple[str, int, int, KernelConfig]  # kernel, head dimension, block, size


class SizeLostError(DeviceLostError):
    """The device answers no more since a size was tried on it."""

    def __init__(self, size: KernelConfig, message: str) -> None:
        super().__init__(message)
        self.size = size


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time tile sizes of the kernels on a GPU.")
    parser.add_argument("--head-dim", type=int, nargs="+", default=[64], choices=kernel_configs.DIMS)
    parser.add_argument("--blocks", type=int, nargs="+", default=[16, 64], choices=(16, 32, 64, 128))
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=KERNELS)
    parser.add_argument(
        "--nearest", type=int, help="so many sizes a kernel, those like the present one first"
    )
    parser.add_argument("--minutes", type=float, help="stop before so long (default: when all is done)")
    parser.add_argument("--out", type=Path, default=HERE / "tune.jsonl", help="JSON lines, appended to")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="that compile")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="print what would be timed")
    what.add_argument("--table", action="store_true", help="print the fastest of what was timed")
    options = parser.parse_args(argv)
    if options.nearest is not None and options.nearest < 1:
        parser.error(f"--nearest must be at least 1, got {options.nearest}")
    if options.workers < 0:
        parser.error(f"--workers must not be negative, got {options.workers}")
    return options


def grid(kernel: str, block: int, present: KernelConfig) -> list[KernelConfig]:
    """List the sizes to time beside the present one, those that differ from it in the least first.

    Before them all comes that of one small block a tile and step, which serves scattered layouts.
    """
    # Tokens of the tile and of a step, warps. Tiles under 64 take the products of a warp, not a warp group's.
    pairs = [(64, 64, 4), (64, 32, 4)]
    pairs += [(64, 128, 4), (128, 64, 8)] if block >= 64 else [(32, 64, 4), (32, 32, 1), (16, 16, 1)]
    found = []
    for tile, step, warps in pairs:
        bounds = (None, 168 if kernel == "keys" else 128) if tile == 64 and step < 128 else (None,)
        for stages in (1, 2, 3) if tile == 64 and step < 128 else (2, 3):
            for registers in bounds:
                q_tile, k_tile = (step, tile) if kernel == "keys" else (tile, step)
                size = KernelConfig(q_tile, k_tile, stages, warps, registers)
                if size != present and size.serves(block):
                    found.append(size)

    def distance(size: KernelConfig) -> int:
        return sum(
            getattr(size, one.name) != getattr(present, one.name) for one in dataclasses.fields(KernelConfig)
        )

    scattered = KernelConfig(block, block, 3, 1)
    return sorted(found, key=lambda size: -1 if size == scattered else distance(size))  # stable


def present_sizes(dim: int, block: int) -> KernelConfigs:
    """Give the sizes that calls have now, by a table: the GPU's own, or the nearest."""
    architecture = architecture_of(torch.device("cuda", 0))
    return kernel_configs.nearest_configs(architecture, kernel_configs.config_key(dim, block))


def base_sizes(dim: int, block: int) -> KernelConfigs:
    """Give the sizes that others are held to: the present ones, or ones that run on any GPU."""
    from longspan_kernels.triton_backend.tuning.autotune import SAFE

    architecture = architecture_of(torch.device("cuda", 0))
    if architecture is None or architecture in kernel_configs.TABLE:
        return present_sizes(dim, block)
    return KernelConfigs(SAFE, SAFE, SAFE, SAFE)


def planned(
    dims: Sequence[int], blocks: Sequence[int], kernels: Sequence[str], nearest: int | None = None
) -> Iterator[tuple[str, int, int, KernelConfig, list[KernelConfig]]]:
    """Yield kernel, head dimension, block, present size and the sizes to time beside it."""
    for dim in dims:
        for block in blocks:
            for kernel in kernels:
                present = getattr(present_sizes(dim, block), kernel)
                yield kernel, dim, block, present, grid(kernel, block, present)[:nearest]


def identity(device: torch.device) -> dict[str, Any]:
    """Say what times hold for: plain JSON types."""
    architecture = architecture_of(device)
    versions = {name: one for name, one in timing.versions().items() if name in ("torch", "triton", "cuda")}
    return {
        "device": torch.cuda.get_device_name(device),
        "architecture": list(architecture) if isinstance(architecture, tuple) else architecture,
        "versions": versions,
        "source": config_cache.source_hash(),
    }


@functools.lru_cache(maxsize=1)
def problems(dim: int, block: int) -> dict[str, Any]:
    """Make the calls of a head dimension and block, by pattern."""
    from longspan_kernels.arguments import Arguments
    from longspan_kernels.triton_backend.kernel_configs import ConfigChoice
    from longspan_kernels.triton_backend.prepared import prepare_forward
    from longspan_kernels.triton_backend.tuning.autotune import Problem

    device = torch.device("cuda", 0)
    generator = torch.Generator(device).manual_seed(0)
    made = {}
    for pattern in PATTERNS_OF_SMALL if block < 64 else PATTERNS:
        cell = Cell(pattern, block, dim, TUNING_LENGTH)
        if not made:
            shape = (cell.batch, cell.heads, cell.length, dim)
            dtype = torch.bfloat16
            q, k, v, grad = (
                torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(4)
            )
        layout = cell.layout()
        call = Arguments(layout, dim**-0.5, right=0 if layout.causal else None)
        out, lse = prepare_forward(q, k, v, call, ConfigChoice(base_sizes(dim, block)))(q, k, v, call)
        made[pattern] = Problem(q, k, v, grad, call, out, lse)
    return made


def compile_one(task: Task) -> None:
    """Run a size once on each pattern, for what Triton keeps on disk; failures are for the timing to tell."""
    kernel, dim, block, size = task
    with contextlib.suppress(Exception), torch.no_grad():
        for problem in problems(dim, block).values():
            problem.run(kernel, size, base_sizes(dim, block))
            torch.cuda.synchronize()


@contextlib.contextmanager
def workers(number: int) -> Iterator[Executor | None]:
    """Start processes that compile, None for fewer than two."""
    if number < 2:
        yield None
        return
    context = multiprocessing.get_context("spawn")  # a forked process cannot use the GPU
    with concurrent.futures.ProcessPoolExecutor(number, mp_context=context) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def compile_ahead(
    tasks: Sequence[Task], pool: Executor | None
) -> dict[Task, concurrent.futures.Future[None]]:
    """Begin to compile in all processes at once."""
    return {} if pool is None else {task: pool.submit(compile_one, task) for task in tasks}


def wait_for(
    waiting: dict[Task, concurrent.futures.Future[None]], tasks: Sequence[Task], seconds: float
) -> None:
    """Wait until tasks are compiled; what is not by then, as after the time is over, is compiled later on."""
    with contextlib.suppress(concurrent.futures.BrokenExecutor):
        mine = [waiting[task] for task in tasks if task in waiting]
        concurrent.futures.wait(mine, timeout=None if math.isinf(seconds) else max(0, seconds))


@contextlib.contextmanager
def compiled_kernels() -> Iterator[dict[str, Any]]:
    """Collect by name the compiled kernels that are launched inside the ``with``."""
    from triton.runtime.jit import JITFunction

    found: dict[str, Any] = {}
    run = JITFunction.run

    def watch(self: Any, *values: Any, **options: Any) -> Any:
        found[self.__name__] = run(self, *values, **options)
        return found[self.__name__]

    with mock.patch.object(JITFunction, "run", watch):
        yield found


def resources(compiled: Any) -> dict[str, int]:
    """Give registers a thread, spills and bytes of shared memory of a kernel, as far as Triton tells."""
    told = {
        "registers": getattr(compiled, "n_regs", None),
        "spills": getattr(compiled, "n_spills", None),
        "shared": getattr(getattr(compiled, "metadata", None), "shared", None),
    }
    return {name: value for name, value in told.items() if isinstance(value, int)}


def try_size(
    kernel: str, size: KernelConfig, base: KernelConfigs, calls: dict[str, Any], expected: dict[str, Any]
) -> dict[str, Any]:
    """Run a size once on each pattern: what the compiler says of it, or ``error``.

    Raises:
        DeviceLostError: the device answers no more.

    """
    from longspan_kernels.triton_backend.tuning.autotune import TOLERANCE, largest_error

    record: dict[str, Any] = {"size": dataclasses.asdict(size)}
    try:
        with compiled_kernels() as launched:
            for name, call in calls.items():
                error = largest_error(call.run(kernel, size, base), expected[name])
                if not error <= TOLERANCE:  # NaN too
                    raise ArithmeticError(f"{name}: off by {error:.3g} of the largest value")
        record.update(resources(launched.get(FUNCTIONS[kernel])))
    except torch.OutOfMemoryError:
        raise  # it says nothing of the size
    except Exception as error:
        record["error"] = failure(error, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return record


def time_group(
    kernel: str,
    sizes: Sequence[KernelConfig],
    base: KernelConfigs,
    calls: dict[str, Any],
    timer: Callable[..., float],
) -> list[dict[str, Any]]:
    """Time sizes of a kernel in turn with the base.

    Args:
        kernel: the kernel.
        sizes: the sizes.
        base: what results and times are held to, and what the other kernels run with.
        calls: a `longspan_kernels.triton_backend.tuning.autotune.Problem` for each pattern.
        timer: gives the milliseconds of a call.

    Returns:
        For the base and each size: ``size``, ``ms`` and ``base_ms`` (medians by pattern) and what the
        compiler says of it, or ``error``.

    Raises:
        SizeLostError: the device answers no more since a size was tried.

    """
    own = getattr(base, kernel)
    with torch.no_grad():
        expected = {name: call.run(kernel, own, base) for name, call in calls.items()}
        records: dict[KernelConfig, dict[str, Any]] = {}
        for size in dict.fromkeys([own, *sizes]):
            try:
                records[size] = try_size(kernel, size, base, calls, expected)
            except DeviceLostError as lost:
                raise SizeLostError(size, str(lost)) from lost
        del expected
        times: dict[KernelConfig, dict[str, list[float]]] = {
            size: {name: [] for name in calls} for size, record in records.items() if "error" not in record
        }
        for turn in range(ROUNDS):
            # Every other round backwards, so that none always follows the same one.
            for size in list(times)[:: 1 if turn % 2 == 0 else -1]:
                for name, call in calls.items():
                    taken = timer(lambda call=call, size=size: call.run(kernel, size, base))
                    times[size][name].append(taken)
    for size, by_pattern in times.items():
        for field, one in (("ms", by_pattern), ("base_ms", times.get(own, {}))):
            records[size][field] = {name: statistics.median(each) for name, each in one.items()}
    return list(records.values())


def sweep(options: argparse.Namespace, deadline: float) -> None:
    """Time what is asked for and not there yet."""
    if not torch.cuda.is_available():
        raise SystemExit("no GPU that torch can use; --plan and --table need none")
    from longspan_kernels.triton_backend.tuning.autotune import cuda_milliseconds

    who = identity(torch.device("cuda", 0))
    there = [one for one in load(options.out) if all(one[name] == value for name, value in who.items())]
    done = {name_of_record(record) for record in there}
    slowest = 0.0
    groups = []
    wanted = planned(options.head_dim, options.blocks, options.kernels, options.nearest)
    for kernel, dim, block, _, sizes in wanted:
        missing = [size for size in sizes if name_of(kernel, dim, block, size) not in done]
        label = f"{kernel}, head dimension {dim}, block {block}"
        print(f"{label}: {len(missing)} sizes to time, {len(sizes) - len(missing)} there", flush=True)
        groups += [(kernel, dim, block, missing[i : i + GROUP]) for i in range(0, len(missing), GROUP)]
    tasks = {
        number: [(kernel, dim, block, size) for size in (getattr(base_sizes(dim, block), kernel), *sizes)]
        for number, (kernel, dim, block, sizes) in enumerate(groups)
    }
    with workers(options.workers) as pool:
        waiting = compile_ahead([task for its in tasks.values() for task in its], pool)
        for number, (kernel, dim, block, sizes) in enumerate(groups):
            if time.monotonic() + 1.2 * slowest > deadline:
                print("no time left; run again to go on")
                return
            wait_for(waiting, tasks[number], deadline - time.monotonic())
            began, base = time.monotonic(), base_sizes(dim, block)
            about = {"kernel": kernel, "dim": dim, "block": block, **who, "date": timing.today()}
            try:
                records = time_group(kernel, sizes, base, problems(dim, block), cuda_milliseconds)
            except SizeLostError as lost:
                # A line of its own, so that the next run goes past the size.
                append(options.out, [{**about, "size": dataclasses.asdict(lost.size), "error": str(lost)}])
                print(f"{lost.size}: {lost}\nthe device is lost; run again to go on after this size")
                sys.exit(3)
            append(options.out, [{**about, **record} for record in records])
            slowest = max(slowest, time.monotonic() - began)
            for record in records:
                print(
                    f"  {KernelConfig(**record['size'])}: {record.get('error') or record['ms']}", flush=True
                )


def plan(options: argparse.Namespace) -> str:
    """Write what would be timed."""
    lines = [f"patterns: {', '.join(PATTERNS)} at {TUNING_LENGTH} tokens; held out: {', '.join(HELD_OUT)}"]
    total = 0
    wanted = planned(options.head_dim, options.blocks, options.kernels, options.nearest)
    for kernel, dim, block, present, sizes in wanted:
        total += len(sizes)
        lines.append(f"{kernel}, head dimension {dim}, block {block}: {len(sizes)} beside {literal(present)}")
        lines += [f"    {literal(size)}" for size in sizes]
    lines.append(f"{total} sizes, {ROUNDS} rounds, in groups of {GROUP}")
    return "\n".join(lines)


def main() -> None:
    """Time, or print."""
    started = time.monotonic()
    options = arguments()
    if options.plan:
        print(plan(options))
    elif options.table:
        print(table(load(options.out)))
    else:
        deadline = math.inf if options.minutes is None else started + 60 * options.minutes
        sweep(options, deadline)
        print(table(load(options.out)))


if __name__ == "__main__":
    main()
