"""Train small models on needle, recall and ListOps with each pattern, beside what reachability predicts.

    python experiments/long_range_tasks/separate.py                  # all CUDA GPUs; run again to go on
    python experiments/long_range_tasks/separate.py --scale cpu      # two cores
    python experiments/long_range_tasks/separate.py --minutes 4      # begin no cell after four minutes
    python experiments/long_range_tasks/separate.py --cells recall   # those it finds
    python experiments/long_range_tasks/separate.py --table          # only the table and the figure

Every cell of `plan.cells`, as recall/bigbird/0, is a line of ``<scale>.jsonl``, written when it is done;
those that are there are left out. The models are too small to fill a GPU: ``--workers`` of them train beside
each other on each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import time
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from datetime import date
from pathlib import Path
from typing import Any

import torch
from learning import measure, prepare
from plan import SCALES, Scale, cells, name_of
from tables import write_tables

import longspan

HERE = Path(__file__).parent


def job(cell: dict[str, Any], scale: str, texts: Path, threads: int, place: int) -> dict[str, Any]:
    """Measure a cell in a process of its own kind, on the GPU whose turn it is; returns its line."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    if scale == "gpu":
        device = torch.device("cuda", place % torch.cuda.device_count())
        torch.cuda.set_device(device)
    found = measure(cell, SCALES[scale], texts, device)
    return {
        "cell": cell, **found, "date": date.today().isoformat(), "torch": torch.__version__,
        "longspan": longspan.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
    }  # fmt: skip


def processor() -> str:
    """Name the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def texts_of(cell: dict[str, Any], folder: Path) -> Path:
    """File of the texts that a cell is trained on: those of its task and seed, whatever the pattern."""
    return folder / f"{cell['task']}-{cell['seed']}.pt"


class Inline(Executor):
    """Does each job at once, in this process."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def processes(count: int) -> Executor:
    """So many processes; spawned, since one that has been forked cannot use a GPU."""
    return Inline() if count == 1 else ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))


def run(
    scale: str, todo: list[dict[str, Any]], path: Path, workers: int, minutes: float | None
) -> list[dict[str, Any]]:
    """Measure cells in their order, so many at a time, and append each to the file as it is done."""
    sizes: Scale = SCALES[scale]
    folder = path.parent / "texts" / scale
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    cores = os.cpu_count() or 1
    missing = {texts_of(cell, folder): cell for cell in todo if not texts_of(cell, folder).exists()}
    with processes(1 if workers == 1 or scale == "tiny" else cores) as pool:
        for texts, cell in missing.items():
            prepare(sizes.lessons[cell["task"]], cell["seed"], sizes.validation, texts, pool)
    found: list[dict[str, Any]] = []
    waiting, running = list(todo), dict[Future[dict[str, Any]], int]()
    places = list(range(workers))
    threads = max(1, cores // workers)
    with processes(workers) as pool:
        while waiting or running:
            if minutes is not None and time.perf_counter() - started > 60 * minutes:
                waiting = []
            while waiting and places:
                cell, place = waiting.pop(0), places.pop(0)
                running[pool.submit(job, cell, scale, texts_of(cell, folder), threads, place)] = place
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                places.append(running.pop(future))
                record = future.result()
                with path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                found.append(record)
                shown = {key: round(record[key], 3) for key in ("accuracy", "loss", "steps", "seconds")}
                print(json.dumps({"cell": name_of(record["cell"]), **shown}), flush=True)
    return found


def main() -> None:
    """Measure what is missing, or write the tables."""
    parser = argparse.ArgumentParser(
        description="Which pattern solves which task, and which reachability says."
    )
    parser.add_argument("--scale", choices=SCALES, default="gpu")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results and of the texts")
    parser.add_argument("--cells", help="only cells whose name, as recall/bigbird/0, this finds")
    parser.add_argument("--minutes", type=float, help="begin no cell after so long")
    parser.add_argument("--workers", type=int, help="cells at a time: 6 for each GPU, 2 elsewhere")
    parser.add_argument("--table", action="store_true", help="measure nothing, write tables and figure")
    options = parser.parse_args()
    every = cells(SCALES[options.scale])
    if options.cells and not any(re.search(options.cells, name_of(cell)) for cell in every):
        parser.error(f"--cells: {options.cells!r} finds no cell")
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers: {options.workers} must be at least 1")
    path = options.out / f"{options.scale}.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if options.table:
        write_tables(done, SCALES[options.scale], options.scale, options.out)
        return
    if options.scale == "gpu" and not torch.cuda.is_available():
        raise SystemExit("--scale gpu needs a CUDA device; --scale cpu runs on two cores")
    known = [record["cell"] for record in done]
    todo = [c for c in every if c not in known and re.search(options.cells or "", name_of(c))]
    workers = options.workers or (6 * torch.cuda.device_count() if options.scale == "gpu" else 2)
    run(options.scale, todo, path, workers, options.minutes)


if __name__ == "__main__":
    main()
