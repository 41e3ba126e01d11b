"""Find, with dense attention alone, at which learning rate and batch a task is learned at all.

    python experiments/long_range_tasks/tune.py --lr 1e-3 2e-3 4e-3 --batch 64 128   # one CUDA GPU
    python experiments/long_range_tasks/tune.py --tasks recall --steps 3000 --workers 4

Every pattern is then trained with what is best for dense attention: no pattern is tuned for itself. Each
training appends a line, with its losses, to ``<scale>_tune.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from learning import measure, prepare
from plan import SCALES
from separate import HERE, processes


def job(cell: dict[str, Any], scale: str, texts: Path, threads: int) -> dict[str, Any]:
    """Train dense attention with a learning rate, a batch and a number of steps; returns the line."""
    torch.set_num_threads(threads)
    sizes = SCALES[scale]
    lesson = replace(sizes.lessons[cell["task"]], steps=cell["steps"], batch=cell["batch"])
    sizes = replace(sizes, lr=cell["lr"], lessons={**sizes.lessons, cell["task"]: lesson})
    device = torch.device("cuda" if scale == "gpu" else "cpu")
    found = measure({"task": cell["task"], "pattern": "dense", "seed": 0}, sizes, texts, device)
    kept = ("accuracy", "loss", "train_losses", "by_cell", "seconds")
    return {"cell": {**cell, "steps": found["steps"]}, **{key: found[key] for key in kept}}


def main() -> None:
    """Train each setting."""
    parser = argparse.ArgumentParser(description="At which settings is a task learned at all?")
    parser.add_argument("--scale", choices=SCALES, default="gpu")
    parser.add_argument("--tasks", nargs="+", default=["needle", "recall", "listops"])
    parser.add_argument("--lr", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3], help="peak rates")
    parser.add_argument("--batch", nargs="+", type=int, default=[64], help="sequences a step")
    parser.add_argument("--steps", type=int, help="at the most; by default those of plan.py")
    parser.add_argument("--workers", type=int, default=6, help="trainings at a time")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results and of the texts")
    options = parser.parse_args()
    sizes = SCALES[options.scale]
    unknown = [task for task in options.tasks if task not in sizes.lessons]
    if unknown:
        parser.error(f"--tasks: {unknown[0]!r} must be one of {', '.join(sizes.lessons)}")
    folder = options.out / "texts" / f"{options.scale}_tune"
    folder.mkdir(parents=True, exist_ok=True)
    cells = []
    with processes(1 if options.workers == 1 else os.cpu_count() or 1) as pool:
        for task, batch in product(options.tasks, options.batch):
            lesson = sizes.lessons[task]
            lesson = replace(lesson, steps=options.steps or lesson.steps, batch=batch)
            texts = folder / f"{task}-{lesson.steps}-{batch}.pt"
            prepare(lesson, 0, sizes.validation, texts, pool)
            cells += [
                ({"task": task, "lr": lr, "batch": batch, "steps": lesson.steps}, texts) for lr in options.lr
            ]
    threads = max(1, (os.cpu_count() or 1) // options.workers)
    with processes(options.workers) as pool:
        waiting = [pool.submit(job, cell, options.scale, texts, threads) for cell, texts in cells]
        with (options.out / f"{options.scale}_tune.jsonl").open("a") as file:
            for future in waiting:
                record = future.result()
                file.write(json.dumps(record) + "\n")
                file.flush()
                shown = {key: round(record[key], 3) for key in ("accuracy", "loss", "seconds")}
                print(json.dumps({**record["cell"], **shown}), flush=True)


if __name__ == "__main__":
    main()
