"""What each kernel of a call takes on a GPU: times of the whole suite's cells, kernel by kernel.

    python experiments/attention_speed/contenders.py bigbird/b64/d64/16384 dense/b64/d64/16384
    python experiments/attention_speed/contenders.py --once CELL   # one call, to run under a profiler
    python experiments/attention_speed/contenders.py --table experiments/attention_speed/kernels.jsonl

For instance, where Nsight Compute is there:

    ncu --clock-control none --set full -k regex:attention_ \
        python experiments/attention_speed/contenders.py --once bigbird/b64/d64/16384

bfloat16, the public autograd call; the mean over ten calls, the L2 cache flushed before each. TFLOP/s count
kept pairs of a query and a key: 4 operations a pair and dimension forward, 6 for dq and 8 for dk and dv.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import suite
import timing
import torch
from measure import both, inputs, ours
from torch.profiler import ProfilerActivity, profile

from longspan_kernels.triton_backend.tuning import config_cache

CALLS = 10
# Matrix products of a kept pair, by kernel: 2 operations a dimension each.
PRODUCTS = {"attention_fwd_kernel": 2, "attention_bwd_dq_kernel": 3, "attention_bwd_dkdv_kernel": 4}
KERNELS = (*PRODUCTS, "combine_splits_kernel", "sum_splits_kernel")


def cell_named(name: str) -> suite.Cell:
    """Find a cell of the suite.

    Raises:
        SystemExit: there is none of that name.

    """
    cells = {cell.name: cell for cell in suite.suite()}
    if name not in cells:
        raise SystemExit(f"no cell is named {name!r}; gpu.py --list prints them")
    return cells[name]


def kernel_times(cell: suite.Cell, once: bool = False) -> dict[str, Any]:
    """Give the mean milliseconds of each kernel that a forward and backward launches, and its TFLOP/s."""
    device = torch.device("cuda", 0)
    layout = cell.layout()
    qkv, grad = inputs(cell, device)
    call = ours(cell, layout).attend
    both(call, qkv, grad)
    if once:
        torch.cuda.synchronize()
        return {}
    flush = torch.empty(2**28, dtype=torch.uint8, device=device)
    both(call, qkv, grad)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(CALLS):
            flush.zero_()
            both(call, qkv, grad)
        torch.cuda.synchronize()
    operations = cell.batch * layout.flops(cell.length, cell.dim)  # of the forward: two products
    found = {}
    for event in recorded.key_averages():
        if event.key not in KERNELS:
            continue  # of the profiler, the driver, or the flush
        ms = event.device_time_total / CALLS / 1e3
        found[event.key] = {"ms": round(ms, 4)}
        if event.key in PRODUCTS:
            found[event.key]["tflops"] = round(operations * PRODUCTS[event.key] / 2 / ms * 1e-9, 1)
    return found


def table(path: Path) -> str:
    """Write milliseconds in Markdown: a row a cell, a column a version of the sources, in their order."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    sources = list(dict.fromkeys(record["source"] for record in records))
    at = {(record["cell"], record["source"]): record["kernels"] for record in records}
    what = "forward, dq, dk and dv, adding up"
    lines = [
        "| cell | " + " | ".join(f"`{source[:7]}`: {what}" for source in sources) + " |",
        "| --- |" + " ---: |" * len(sources),
    ]
    for cell in dict.fromkeys(record["cell"] for record in records):
        cells = []
        for source in sources:
            ms = {name: one["ms"] for name, one in at.get((cell, source), {}).items()}
            added = ms.get("combine_splits_kernel", 0.0) + ms.get("sum_splits_kernel", 0.0)
            parts = [f"{ms[name]:.3f}" for name in PRODUCTS if name in ms]
            cells.append(", ".join([*parts, f"{added:.3f}"]) if ms else "")
        lines.append(f"| {cell} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print a line of JSON a cell."""
    parser = argparse.ArgumentParser(description="Time the kernels of a call one by one.")
    parser.add_argument("cells", nargs="*", help="names as gpu.py --list prints them")
    parser.add_argument("--once", action="store_true", help="call once and stop, for a profiler around it")
    parser.add_argument("--out", type=Path, help="a file to append the lines to")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print what such a file holds, and stop")
    options = parser.parse_args()
    if options.table is not None:
        print(table(options.table))
        return
    for name in options.cells:
        found = kernel_times(cell_named(name), options.once)
        about = {**timing.machine(torch.device("cuda", 0)), "source": config_cache.source_hash()}
        line = json.dumps({"cell": name, **about, "kernels": found})
        print(line if not options.once else f"{name}: called", flush=True)
        if options.out is not None and not options.once:
            with options.out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
