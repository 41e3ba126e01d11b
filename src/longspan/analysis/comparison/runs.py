"""Reads the files of runs below a path, and writes many runs into one small file."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longspan.records.jsonable import to_jsonable
from longspan.records.run_folder import EVALUATION_FILE, FAILURE_FILE, METRICS_FILE, RESULT_FILE

HYDRA = Path(".hydra") / "overrides.yaml"
# Folders within the folder of a run that are not searched for runs.
_NOT_SEARCHED = frozenset({".hydra", "checkpoints", "wandb"})
# Keys of curves and of their points -> columns of metrics.csv.
_LOSSES = {"train": "train/loss", "val": "val/loss"}
_AXES = {"tokens": "train/tokens", "seconds": "cost/seconds", "flops": "cost/flops"}


class NoRuns(ValueError):
    """A path holds no run."""


@dataclass(frozen=True)
class Run:
    """A run that has a result.

    Attributes:
        name: its folder, the name in lists.
        result: the content of result.json, from `longspan.training.reports.results.collect_result`.
        curves: under "train" and "val", points by ascending step. A point is a dictionary of `step`, `loss`
            (nats per token), `tokens`, `seconds` (of training) and `flops`; a value that was not recorded is
            None.
        evaluation: the content of evaluation.json; empty if the file is missing or cannot be read.
        notes: sentences for the reader of its figures.

    """

    name: str
    result: dict[str, Any]
    curves: dict[str, list[dict[str, Any]]]
    evaluation: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def seed(self) -> int | None:
        """The seed of the run; None if its configuration has none."""
        return self.result.get("config", {}).get("seed")


@dataclass(frozen=True)
class Unfinished:
    """A run that is not compared, with the reason."""

    name: str
    reason: str


def read_runs(paths: Sequence[str | Path]) -> tuple[list[Run], list[Unfinished]]:
    """Read all runs below the paths, in the order of the paths and of the names of folders.

    Args:
        paths: folders of runs or sweeps, searched to any depth; a result.json; or a file of `write_runs`. A
            run below several paths counts once.

    Returns:
        The finished runs, and the runs that failed, were interrupted or have no result.

    Raises:
        NoRuns: a path does not exist or holds no run.

    """
    runs: list[Run] = []
    unfinished: list[Unfinished] = []
    seen: set[Path] = set()
    for path in map(Path, paths):
        if not path.exists():
            raise NoRuns(f"{path} does not exist")
        if path.is_file() and path.name != RESULT_FILE:
            if path.resolve() not in seen:
                seen.add(path.resolve())
                runs += _read_file(path)
            continue
        folders = list(find_runs(path.parent if path.is_file() else path))
        if not folders:
            raise NoRuns(f"{path} holds no run: no folder in it has {RESULT_FILE} or {HYDRA.parent}")
        for folder in folders:
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            run = read_run(folder)
            if isinstance(run, Run):
                runs.append(run)
            else:
                unfinished.append(run)
    return runs, unfinished


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs in `folder`, itself included, sorted by leading number and name."""
    if (folder / RESULT_FILE).is_file() or (folder / HYDRA).is_file() or (folder / FAILURE_FILE).is_file():
        yield folder
    for child in sorted(folder.iterdir(), key=_number_and_name):
        if child.is_dir() and not child.is_symlink() and child.name not in _NOT_SEARCHED:
            yield from find_runs(child)


def read_run(folder: Path) -> Run | Unfinished:
    """Read the run of one folder."""
    name = str(folder)
    try:
        result = _read_json(folder / RESULT_FILE)
    except FileNotFoundError:
        return Unfinished(name, _why(folder))
    except (OSError, ValueError) as error:
        return Unfinished(name, f"{RESULT_FILE} cannot be read: {error}")
    if not isinstance(result, dict) or not isinstance(result.get("metrics"), dict):
        return Unfinished(name, f"{RESULT_FILE} is not that of a run: it has no metrics")
    if result.get("status") != "finished":
        steps = result.get("steps")
        after = f"after {steps:,} steps" if isinstance(steps, int) else "after an unknown number of steps"
        return Unfinished(name, f"{result.get('status')} {after}")
    evaluation, notes = _read_evaluation(folder / EVALUATION_FILE)
    return Run(
        name=name,
        result=result,
        curves=read_curves(folder / METRICS_FILE, result),
        evaluation=evaluation,
        notes=notes,
    )


def _read_evaluation(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read evaluation.json; if it cannot be read, return an empty dictionary and a note that says why."""
    if not path.is_file():
        return {}, ()
    try:
        content = _read_json(path)
        if isinstance(content, dict):
            return content, ()
        why = f"it must hold an object, got {type(content).__name__}"
    except (OSError, ValueError) as error:
        why = str(error)
    return {}, (f"No evaluation by position and distance of {path.parent}: {path} cannot be read: {why}.",)


def _read_json(path: Path) -> Any:
    """Read a JSON file; numbers that are not finite, which older runs wrote, become None."""
    return to_jsonable(json.loads(path.read_text(encoding="utf-8")))


def read_curves(path: Path, result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Read the curves of a run from its metrics.csv; see `Run.curves`.

    If a resumed run repeats steps, the later rows replace the earlier ones. A row without tokens, seconds or
    FLOPs gets them by interpolation between rows, which is exact if all steps cost the same. Before the first
    and after the last row with such a value, tokens follow from the step, and seconds and FLOPs are None.

    Args:
        path: metrics.csv; if it is missing, the curves are empty.
        result: the result of the run, of which `tokens_per_step` is read.

    """
    rows: list[dict[str, float]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            for raw in csv.DictReader(file):
                row = {key: _number(value) for key, value in raw.items() if key}
                if math.isnan(row.get("step", math.nan)):
                    continue
                # A killed run resumes from its checkpoint and repeats the steps after it.
                while rows and rows[-1]["step"] > row["step"]:
                    rows.pop()
                rows.append(row)
    steps = np.array([row["step"] for row in rows])
    axes = {
        axis: _interpolated(steps, np.array([row.get(column, math.nan) for row in rows]))
        for axis, column in _AXES.items()
    }
    # Lightning counts steps from 0: the row of `step` follows `step + 1` steps.
    per_step = result.get("tokens_per_step")
    if per_step and rows:
        missing = np.isnan(axes["tokens"])
        axes["tokens"][missing] = (steps[missing] + 1) * per_step
    curves: dict[str, list[dict[str, Any]]] = {}
    for side, column in _LOSSES.items():
        by_step: dict[int, dict[str, Any]] = {}
        for number, row in enumerate(rows):
            loss = row.get(column, math.nan)
            if math.isfinite(loss):
                step = int(row["step"])
                point = {axis: _finite_or_none(values[number]) for axis, values in axes.items()}
                by_step[step] = {"step": step + 1, "loss": loss, **point}
        curves[side] = list(by_step.values())
    return curves


def write_runs(runs: Iterable[Run], path: str | Path, points: int = 100) -> None:
    """Write runs into one file of JSON lines for `read_runs`, with at most `points` points per curve."""
    lines = []
    for run in runs:
        curves = {side: _thinned(curve, points) for side, curve in run.curves.items()}
        lines.append(json.dumps(asdict(run) | {"curves": curves}, allow_nan=False))
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    partial.replace(path)


def _read_file(path: Path) -> list[Run]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [to_jsonable(json.loads(line)) for line in lines if line.strip()]
        runs = [Run(**{**record, "notes": tuple(record["notes"])}) for record in records]
    except (ValueError, TypeError, KeyError) as error:
        raise NoRuns(
            f"{path} is neither a folder, a {RESULT_FILE} nor a file of --collect: {error}"
        ) from error
    if not runs:
        raise NoRuns(f"{path} is empty")
    return runs


def _why(folder: Path) -> str:
    """Return the reason why a run has no result."""
    if (folder / FAILURE_FILE).is_file():
        try:
            return f"failed: {json.loads((folder / FAILURE_FILE).read_text(encoding='utf-8'))['error']}"
        except (ValueError, KeyError, TypeError):
            return f"failed; {FAILURE_FILE} cannot be read"
    curve = read_curves(folder / METRICS_FILE, {})["train"]
    if not curve:
        return "no result: it was killed before its first logged step, or has not come to it"
    return f"no result: killed or still running; last logged step {curve[-1]['step']:,}"


def _interpolated(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Fill in missing values by interpolation between known ones; NaN before the first and after the last."""
    known = np.isfinite(values)
    if not known.any():
        return np.full(steps.size, math.nan)
    filled = np.interp(steps, steps[known], values[known], left=math.nan, right=math.nan)
    return np.where(known, values, filled)


def _thinned(curve: list[dict[str, Any]], points: int) -> list[dict[str, Any]]:
    if len(curve) <= points:
        return curve
    return [curve[index] for index in np.unique(np.linspace(0, len(curve) - 1, points).round().astype(int))]


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number_and_name(path: Path) -> tuple[float, str]:
    number = path.name.partition("_")[0]
    return (int(number) if number.isdecimal() else math.inf, path.name)
