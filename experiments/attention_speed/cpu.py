"""Block-sparse against dense attention on a CPU: forward and backward, in one process, interleaved.

    python experiments/attention_speed/cpu.py

BigBird with blocks of 64 (one random block, a window of three, one global block), 8 heads of 64, batch 1,
float32, through the public autograd call of each. Writes cpu.json and the table of README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from readme import splice
from timing import today
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import longspan
from longspan.sparsity import BigBirdSparsityConfig
from longspan_kernels import block_sparse_attention

HERE = Path(__file__).parent
HEADS, DIM, BLOCK = 8, 64, 64
PATTERN = BigBirdSparsityConfig(HEADS, BLOCK)


def inputs(length: int) -> list[Tensor]:
    """Query, key, value, which require gradients, and the gradient of the context."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, HEADS, length, DIM, generator=generator) for _ in range(4)]
    return [x.requires_grad_() for x in tensors[:3]] + tensors[3:]


def step(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> dict[str, float]:
    """One forward and one backward: seconds on the wall, and of the process on all cores."""
    times = [(time.perf_counter(), time.process_time())]
    out = attend(q, k, v)
    times.append((time.perf_counter(), time.process_time()))
    torch.autograd.grad(out, (q, k, v), grad)
    times.append((time.perf_counter(), time.process_time()))
    return {
        "forward_s": times[1][0] - times[0][0],
        "backward_s": times[2][0] - times[1][0],
        "total_s": times[2][0] - times[0][0],
        "cpu_s": times[2][1] - times[0][1],
    }


def measure(length: int, rounds: int, dense: bool) -> dict[str, Any]:
    """Median of interleaved rounds after one warm-up each."""
    layout = PATTERN.layout(length)
    contestants: dict[str, Callable[..., Tensor]] = {
        "longspan": lambda q, k, v: block_sparse_attention(q, k, v, layout)
    }
    if dense:
        contestants["dense"] = scaled_dot_product_attention
    tensors = inputs(length)
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, attend in contestants.items():
            seen[name].append(step(attend, *tensors))
    result: dict[str, Any] = {"length": length, "density": layout.density, "rounds": rounds}
    for name, steps in seen.items():
        kept = steps[1:]
        result[name] = {key: statistics.median(one[key] for one in kept) for key in kept[0]}
    return result


def peak(length: int) -> float:
    """Peak resident memory, in GiB, of a process that does one forward and backward of this length."""
    command = [sys.executable, __file__, "--memory-of", str(length)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(results: dict[str, Any]) -> str:
    """Markdown: a row a length."""
    lines = [
        f"{results['date']}, {results['device']}, {results['threads']} threads, torch {results['torch']}, "
        f"longspan {results['longspan']}; load average before the run {results['load_before']:.1f}.",
        "",
        "| tokens | kept blocks | dense, s | longspan, s | speed-up "
        "| CPU time: dense, s | longspan, s | ratio |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        ours, dense = row["longspan"], row.get("dense")
        cells = [f"{row['length']:,}", f"{row['density']:.2%}"]
        if dense is None:
            cells += ["", f"{ours['total_s']:.3f}", "", "", f"{ours['cpu_s']:.3f}", ""]
        else:
            for clock in ("total_s", "cpu_s"):
                theirs, mine = dense[clock], ours[clock]
                cells += [f"{theirs:.3f}", f"{mine:.3f}", f"{theirs / mine:.1f}x"]
        lines.append("| " + " | ".join(cells) + " |")
    memory = ", ".join(f"{gib:.2f} GiB at {int(length):,} tokens" for length, gib in results["peak"].items())
    lines += ["", f"Peak resident memory of a process of its own, torch itself included: {memory}."]
    return "\n".join(lines)


def device() -> str:
    """Name the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description="Time block-sparse and dense attention on the CPU.")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--sparse-lengths", type=int, nargs="*", default=[16384, 32768, 65536])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--memory-of", type=int, help="print the peak memory, in GiB, of one step of this length"
    )
    arguments = parser.parse_args()
    if arguments.memory_of:
        layout = PATTERN.layout(arguments.memory_of)
        step(lambda q, k, v: block_sparse_attention(q, k, v, layout), *inputs(arguments.memory_of))
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30)
        return
    results: dict[str, Any] = {
        "date": today(),
        "device": device(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "longspan": longspan.__version__,
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "pattern": str(PATTERN),
        # First, while this process is small: a child's peak begins at its parent's size.
        "peak": {str(length): peak(length) for length in (8192, 65536)},
    }
    lengths = [(length, True) for length in arguments.lengths]
    lengths += [(length, False) for length in arguments.sparse_lengths]
    results["rows"] = [measure(length, arguments.rounds, dense) for length, dense in lengths]
    (HERE / "cpu.json").write_text(json.dumps(results, indent=1) + "\n")
    text = table(results)
    splice(HERE / "README.md", "cpu", text)
    print(text)


if __name__ == "__main__":
    main()
