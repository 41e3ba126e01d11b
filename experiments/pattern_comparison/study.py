"""Train dense attention and seven patterns, three seeds each, causal and masked, on the same tokens.

    python experiments/pattern_comparison/study.py                  # all CUDA GPUs; run again to go on
    python experiments/pattern_comparison/study.py --minutes 8      # begin nothing after so long
    python experiments/pattern_comparison/study.py --scale cpu      # two cores
    python experiments/pattern_comparison/study.py --report         # tables and figures, from what is there

First each pattern trains for some steps alone on its device, which gives speed and memory. Then the runs that
are compared train, several at once on a GPU that one small model does not fill. Each is a run of train.py, in
``runs/``; what it reached is a line of ``<scale>.jsonl``, which ``longspan.analysis.compare`` reads too. Runs
that are there are left out; a half-done one goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from plan import SCALES, Cell, Scale, overrides, timings, trainings

HERE = Path(__file__).parent


def occupy(devices: Any) -> None:
    """Take the next device of a queue for this process, before anything here asks for one."""
    device = devices.get()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def train_cell(scale: Scale, cell: Cell, folder: str, until: float) -> bool:
    """Train a cell in its folder, or go on with it; gives False where it is too late to begin."""
    if time.time() > until:
        return False
    # Imported in the process that trains: torch, Lightning and Hydra are heavy, and CUDA starts with them.
    import torch

    from longspan.config.compose import compose
    from longspan.training.run import train

    if scale.trainer == "cpu":
        torch.set_num_threads(1)
    asked = overrides(scale, cell, folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / "train.log", "a") as log, contextlib.redirect_stdout(log):
        train(compose(asked), asked[:-1], resume=True)
    return True


class Study:
    """The results of a scale, and the processes that add to them."""

    def __init__(self, name: str, out: Path, processes: int | None, minutes: float | None) -> None:
        self.scale, self.out = SCALES[name], out
        self.results, self.alone = out / f"{name}.jsonl", out / f"{name}_alone.json"
        self.folder = (out / "runs" / name).resolve()
        self.until = time.time() + 60 * minutes if minutes else float("inf")
        self.processes = processes
        self.timed: dict[str, Any] = json.loads(self.alone.read_text()) if self.alone.exists() else {}
        self.runs = self._read()

    def _read(self) -> dict[str, Any]:
        from longspan.analysis.comparison.runs import read_runs

        if not self.results.exists():
            return {}
        return {run.name: run for run in read_runs([self.results])[0]}

    def measure(self) -> None:
        """Make what is missing: the timings, one at a time on a device, then the trainings."""
        if self.scale.trainer == "gpu":
            import torch

            if not torch.cuda.is_available():
                raise SystemExit("--scale gpu needs a CUDA device; --scale cpu runs on two cores")
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            devices = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
            together = self.processes or 5
        else:
            devices, together = [None], self.processes or 2
        self._run([cell for cell in timings(self.scale) if cell.name not in self.timed], devices, 1)
        cells = [cell for cell in trainings(self.scale) if cell.name not in self.runs]
        self._run(cells, devices, together)

    def _run(self, cells: list[Cell], devices: list[Any], together: int) -> None:
        """Train cells, so many at a time on each device; what each reached is kept at once."""
        # Done, but cut before it was kept.
        for cell in [cell for cell in cells if (self.folder / cell.name / "result.json").exists()]:
            if self._keep(cell):
                cells.remove(cell)
        if not cells or time.time() > self.until:
            return
        context = multiprocessing.get_context("spawn")
        places = context.Queue()
        workers = min(len(devices) * together, len(cells))
        for number in range(workers):
            places.put(devices[number % len(devices)])
        failed = []
        with ProcessPoolExecutor(workers, context, initializer=occupy, initargs=(places,)) as pool:
            waiting: dict[Future[bool], Cell] = {
                pool.submit(train_cell, self.scale, cell, str(self.folder / cell.name), self.until): cell
                for cell in cells
            }
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    cell = waiting.pop(future)
                    error = future.exception()
                    if error is not None:
                        failed.append(cell.name)
                        print(f"{cell.name} failed: {type(error).__name__}: {error}", flush=True)
                    elif future.result() and not self._keep(cell):
                        failed.append(cell.name)
        if failed:
            raise SystemExit(f"{len(failed)} runs failed: {', '.join(failed)}; run again to go on")

    def _keep(self, cell: Cell) -> bool:
        """Add a run to the results, where it is done."""
        from longspan.analysis.comparison.runs import Run, read_run

        folder = self.folder / cell.name
        run = read_run(folder)
        if not isinstance(run, Run):
            return False
        print(f"{cell.name}: {run.result['metrics']['val_loss']:.4f} nats a token", flush=True)
        if cell.seed is None:
            kept = ("throughput", "device", "date", "steps")
            self.timed[cell.name] = {key: run.result[key] for key in kept}
            partial = self.alone.with_suffix(".part")
            partial.write_text(json.dumps(self.timed, indent=1) + "\n")
            partial.replace(self.alone)
            return True
        self.runs[cell.name] = told_apart(run, cell.name, str(folder))
        self.save()
        return True

    def save(self) -> None:
        """Write the results in the order of the plan, with the speed that each pattern has alone."""
        from longspan.analysis.comparison.runs import write_runs

        ordered = [cell for cell in trainings(self.scale) if cell.name in self.runs]
        for cell in ordered:
            timed = self.timed.get(Cell(cell.objective, cell.pattern).name)
            self.runs[cell.name] = with_speed(self.runs[cell.name], timed)
        write_runs([self.runs[cell.name] for cell in ordered], self.results, points=60)


def told_apart(run: Any, name: str, folder: str) -> Any:
    """A run under its name in the experiment, without this machine's paths."""
    from dataclasses import replace

    result = json.loads(json.dumps(run.result).replace(json.dumps(folder)[1:-1], name))
    for key in ("files", "checkpoints"):
        result.pop(key, None)
    return replace(run, name=name, result=result)


def with_speed(run: Any, timed: dict[str, Any] | None) -> Any:
    """A run with the speed and the memory of the one that was alone, and its time as if it had been alone."""
    from dataclasses import replace

    unknown = {"tokens_per_second": None, "step_seconds": None, "peak_memory_bytes": None}
    throughput = timed["throughput"] if timed else unknown
    step = throughput["step_seconds"]
    curves = {
        side: [{**point, "seconds": None if step is None else point["step"] * step} for point in curve]
        for side, curve in run.curves.items()
    }
    result = {**run.result, "throughput": throughput}
    if result.get("cost"):
        seconds = None if step is None else result["steps"] * step
        # Where a step's time goes, and how much of the device it uses, were taken while others ran beside it.
        shared = {"mfu": None, "dense_mfu": None, "split": None}
        result["cost"] = {**result["cost"], **shared, "seconds": seconds}
    note = (
        "Runs trained beside each other on a device. Speed and memory are those of a run of "
        f"{timed['steps']} steps that had it alone; times are its median step times the steps."
        if timed
        else "Runs trained beside each other on a device; their speed was not measured."
    )
    return replace(run, result=result, curves=curves, notes=(note,))


def main() -> None:
    """Train what is missing, then write tables and figures."""
    parser = argparse.ArgumentParser(description="Compare patterns by training them.")
    parser.add_argument("--scale", choices=SCALES, default="gpu")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results, figures and runs")
    parser.add_argument("--minutes", type=float, help="begin no run after so long")
    parser.add_argument(
        "--processes", type=int, help="runs at once on a device; by default 5 on a GPU, else 2"
    )
    parser.add_argument("--report", action="store_true", help="train nothing: tables and figures alone")
    parser.add_argument("--no-report", action="store_true", help="train alone: needs no plotting library")
    options = parser.parse_args()
    if options.processes is not None and options.processes < 1:
        parser.error(f"--processes must be at least 1, got {options.processes}")
    options.out.mkdir(parents=True, exist_ok=True)
    study = Study(options.scale, options.out, options.processes, options.minutes)
    if not options.report:
        study.measure()
    left = [cell.name for cell in trainings(study.scale) if cell.name not in study.runs]
    print(
        f"{len(study.runs)} runs are there, {len(left)} are left" + (": run again to go on" if left else "")
    )
    if study.runs and not options.no_report:
        study.save()
        from tables import write_report

        write_report(study.results, options.scale, options.out)


if __name__ == "__main__":
    main()
