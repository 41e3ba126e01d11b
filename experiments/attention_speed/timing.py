"""Clocks: what one call takes, on the device and on the host, and what the machine is."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# Calls longer than that fill the L2 many times over: a few of them say as much as many.
LONG_MS = 30.0


def milliseconds(call: Callable[[], object], device: torch.device, repeat_ms: int = 100) -> float:
    """Median time of a call that is warm, the L2 cache flushed before each; on a CPU by the wall."""
    if device.type != "cuda":
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times)
    first = _events(call)
    if first > LONG_MS:
        return statistics.median([first] + [_events(call) for _ in range(2)])
    from triton.testing import do_bench

    return float(do_bench(call, warmup=25, rep=repeat_ms, return_mode="median"))  # type: ignore[arg-type]


def _events(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def host_microseconds(call: Callable[[], object], device: torch.device, calls: int = 100) -> float:
    """Time that the host needs to start one call, mean of many with nothing waited for between them."""
    for _ in range(10):
        call()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    taken = time.perf_counter() - start
    synchronize(device)
    return taken / calls * 1e6


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device, mebibytes: int) -> float:
    """Bytes a second of a copy within the device's memory, read and written both counted."""
    source = torch.empty(mebibytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> Tensor:
        return target.copy_(source)

    copy()
    return 2 * source.numel() / (milliseconds(copy, device) * 1e-3)


class PeakMemory:
    """Bytes taken at the highest point inside the ``with``, beyond what was taken before; 0 on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the body once it has run for so long (main thread only)."""

    def expire(*_: object) -> None:
        raise TimeoutError(f"took over {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def clocks() -> dict[str, str]:
    """Clocks, power and temperature of the first GPU as its driver tells them; empty where it does not."""
    fields = ["clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_throttle_reasons.active"]
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (value.strip() for value in done.stdout.strip().split(",")), strict=False))


def versions() -> dict[str, str]:
    """Versions of what takes part."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["triton"] = importlib.metadata.version("triton")
    if torch.backends.cudnn.is_available():
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def today() -> str:
    """Date, UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def machine(device: torch.device) -> dict[str, Any]:
    """Name the device and the versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    return {"device": name, "versions": versions(), "date": today()}
