"""Block-sparse attention against FlexAttention and dense attention on a GPU, in one process, interleaved.

    python experiments/attention_speed/gpu.py           # a subset, in at most eight minutes
    python experiments/attention_speed/gpu.py --all     # everything; run again to go on where it stopped
    python experiments/attention_speed/gpu.py --tiny --out /tmp/try   # on a CPU, to try the command
    python experiments/attention_speed/gpu.py --report  # table and drawings anew from what was measured

bfloat16, 16 heads, 65,536 tokens a batch (one sequence at 131,072), the public autograd call of each. Every
cell is a line of gpu.jsonl in ``--out``; cells that are there already are left out.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import report
import suite
import timing
import torch
from measure import DeviceLostError, Session, compile_cell, launch_overhead, measure
from readme import splice

HERE = Path(__file__).parent


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time attention on a GPU, cell by cell.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--all", action="store_true", help="the whole suite, FlexAttention tuned")
    what.add_argument("--tiny", action="store_true", help="a few small cells on the CPU, as a trial")
    what.add_argument("--report", action="store_true", help="measure nothing, write table and drawings")
    what.add_argument("--list", action="store_true", help="print the names of all cells")
    parser.add_argument("--cells", help="of all cells those whose name this regular expression finds")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--minutes", type=float, help="stop before so long (default: 8, with --all none)")
    parser.add_argument("--again", action="store_true", help="measure cells that are there already, too")
    parser.add_argument(
        "--tune-seconds",
        type=float,
        help="for FlexAttention's tuning, a block size, head dimension and direction (default: 90 with "
        "--all, else 0: the likeliest options, if no earlier run left tuned ones)",
    )
    parser.add_argument(
        "--warm",
        type=int,
        default=0,
        metavar="N",
        help="compile everything in so many processes first: what they leave on disk shortens the measuring",
    )
    parser.add_argument("--compile-part", help=argparse.SUPPRESS)  # I/N: every N-th cell from the I-th
    parser.add_argument("--compile-seconds", type=float, default=120, help="limit of one compilation")
    options = parser.parse_args()
    if options.warm < 0:
        parser.error(f"--warm must not be negative, got {options.warm}")
    return options


def chosen(options: argparse.Namespace) -> list[suite.Cell]:
    """Return the cells that were asked for."""
    if options.tiny:
        cells = suite.tiny()
    elif options.all or options.cells or options.list:
        cells = list(suite.suite())
    else:
        cells = suite.quick()
    if options.cells:
        cells = [cell for cell in cells if re.search(options.cells, cell.name)]
        if not cells:
            raise SystemExit(f"no cell's name matches {options.cells!r}; --list prints them")
    return cells


def measured(options: argparse.Namespace) -> set[str]:
    """Names of the cells that are there already, or were lost with the device."""
    if options.again:
        return set()
    files = (options.out / "gpu.jsonl", options.out / "lost.jsonl")
    return {record["cell"] for file in files for record in report.load(file)}


def missing(options: argparse.Namespace) -> list[suite.Cell]:
    """Return the cells that were asked for and are not there."""
    done = measured(options)
    return [cell for cell in chosen(options) if cell.name not in done]


def stored(path: Path) -> dict[str, Any]:
    """Read a JSON object, empty if there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_report(folder: Path) -> None:
    """Write the table, into the README where there is one, and the drawings."""
    records = report.load(folder / "gpu.jsonl")
    if not records:
        print("nothing measured yet")
        return
    launch = stored(folder / "machine.json").get("launch")
    (folder / "gpu.md").write_text(report.table(records, launch) + "\n")
    if (folder / "README.md").exists():
        splice(folder / "README.md", "gpu", report.table(report.short(records), launch))
    try:
        report.draw(records, folder)
    except ImportError as missing:
        print(f"no drawings: {missing}")
    for text, value, over in report.targets(records):
        print(f"{text}: {value} ({over})")


def line(record: dict[str, Any]) -> str:
    """Sum a cell up for the terminal."""
    parts = [f"{record['cell']:42}"]
    figures = report.derive(record)
    for kind in ("forward", "both"):
        one = figures[kind]
        parts.append(f"{kind} {report.cell_text(one['ms'], '{:.3f} ms')}")
        parts.append(f"flex {report.cell_text(one['flex_ms'], '{:.3f} ms')}")
        parts.append(report.cell_text(one["speedup"], "{:.2f}x"))
        parts.append(f"of cuDNN {report.cell_text(one['of_cudnn'])}")
    parts.append(f"{record['seconds']:.0f} s")
    for name, one in {"longspan": record["longspan"], **record["flex"], **record["dense"]}.items():
        parts += [f"\n    {name}: {one[key]}" for key in ("failed", "backward_failed") if key in one]
    for name, found in record["relative_errors"].items():
        if not all(error < 0.02 for error in found.values()):
            parts.append(f"\n    DIFFERS from {name}: {found}")
    return "  ".join(parts)


def run(options: argparse.Namespace, deadline: float) -> None:
    """Measure what is asked for and not there yet."""
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "gpu.jsonl"
    cells = missing(options)
    print(f"{len(cells)} cells to measure, {len(measured(options))} there already", flush=True)
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --tiny runs on the CPU")
    if options.warm and cells:
        warm(options, deadline)
    device = torch.device("cpu" if options.tiny else "cuda")
    torch._dynamo.config.recompile_limit = 64
    tune = options.tune_seconds if options.tune_seconds is not None else 90.0 * options.all
    winners = folder / "flex.json"
    session = Session(device, stored(winners), tune, options.compile_seconds)
    session.bandwidth = timing.copy_bandwidth(device, 1024 if session.on_gpu else 16)
    try:
        launch: dict[str, Any] | None = launch_overhead(device)
    except Exception as error:
        launch = None
        print(f"launch overhead not measured: {error}")
    machine = {**timing.machine(device), "copy_bandwidth": session.bandwidth, "launch": launch}
    (folder / "machine.json").write_text(json.dumps(machine, indent=1) + "\n")
    longest: dict[int, float] = {}
    for cell in cells:
        # The next one may take what its longest like has taken, and compile something besides.
        expected = 1.2 * longest.get(cell.length, 20.0)
        if time.monotonic() + expected > deadline:
            print(f"stopped before {cell.name}: no time left; run again to go on")
            break
        before = time.monotonic()
        try:
            record = measure(session, cell)
        except DeviceLostError as lost:
            # A line of its own, so that the next run goes past the cell, and a new process for what follows.
            with (folder / "lost.jsonl").open("a") as file:
                file.write(json.dumps({"cell": cell.name, "error": str(lost)}) + "\n")
            print(f"{cell.name}: {lost}\nthe device is lost; run again to go on after this cell")
            sys.exit(3)
        except Exception as error:
            print(f"{cell.name}: not measured: {type(error).__name__}: {error}", flush=True)
            continue
        longest[cell.length] = max(longest.get(cell.length, 0.0), time.monotonic() - before)
        with results.open("a") as file:
            file.write(json.dumps({**record, "derived": report.derive(record)}) + "\n")
        if session.winners:
            winners.write_text(json.dumps(session.winners, indent=1) + "\n")
        print(line(record), flush=True)


def warm(options: argparse.Namespace, deadline: float) -> None:
    """Compile what the run will need in processes beside each other; whatever fails there is told later."""
    # The tuning goes through its candidates itself; here it would be done by each process.
    command = [sys.executable, __file__, *sys.argv[1:], "--tune-seconds", "0", "--compile-part"]
    end = (time.monotonic() + deadline) / 2  # at most half of the time
    parts = [f"{number}/{options.warm}" for number in range(options.warm)]
    running = [subprocess.Popen([*command, part], stdout=subprocess.DEVNULL) for part in parts]
    for one in running:
        try:
            one.wait(max(0.0, end - time.monotonic()) if end < float("inf") else None)
        except subprocess.TimeoutExpired:
            one.kill()
            one.wait()
    print(f"compiled in {options.warm} processes", flush=True)


def compile_part(options: argparse.Namespace) -> None:
    """Compile what a part of the cells needs, and measure nothing."""
    number, parts = map(int, options.compile_part.split("/"))
    torch._dynamo.config.recompile_limit = 64
    winners = stored(options.out / "flex.json")
    session = Session(torch.device("cuda"), winners, 0.0, options.compile_seconds)
    for cell in missing(options)[number::parts]:
        try:
            compile_cell(session, cell)
        except Exception as error:
            print(f"{cell.name}: {error}")


def main() -> None:
    """Measure and report."""
    started = time.monotonic()
    options = arguments()
    if options.compile_part:
        compile_part(options)
        return
    if options.list:
        print("\n".join(cell.name for cell in chosen(options)))
        return
    if not options.report:
        minutes = options.minutes if options.minutes is not None else (None if options.all else 8.0)
        run(options, float("inf") if minutes is None else started + 60 * minutes)
    write_report(options.out)


if __name__ == "__main__":
    main()
