"""Runs as they left their files: found below a path, read, and written together into one small file."""

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
# Folders of a run that hold no run.
_INSIDE = frozenset({".hydra", "checkpoints", "wandb"})
# Columns of metrics.csv, and what a point of a curve calls them.
_LOSSES = {"train": "train/loss", "val": "val/loss"}
_AXES = {"tokens": "train/tokens", "seconds": "cost/seconds", "flops": "cost/flops"}


class NoRuns(ValueError):
    """A path holds no run."""


@dataclass(frozen=True)
class Run:
    """A run that has a result.

    Attributes:
        name: what to call it in a list: its folder.
        result: what `longspan.training.reports.results.collect_result` wrote.
        curves: "train" and "val": points by step, each a dictionary of `step`, `loss` (nats a token),
            `tokens`, `seconds` (of training) and `flops`; what was not recorded is None.
        evaluation: what evaluation.json holds; empty where there is none that can be read.
        notes: what a reader must know of its figures.

    """

    name: str
    result: dict[str, Any]
    curves: dict[str, list[dict[str, Any]]]
    evaluation: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def seed(self) -> int | None:
        """The seed of the run; None where its configuration names none."""
        return self.result.get("config", {}).get("seed")


@dataclass(frozen=True)
class Unfinished:
    """A run that is not compared, and why."""

    name: str
    reason: str


def read_runs(paths: Sequence[str | Path]) -> tuple[list[Run], list[Unfinished]]:
    """Read all runs below some paths, in the order of the paths and of the names below them.

    Args:
        paths: folders of runs, of sweeps or of both, searched to any depth; a result.json; or a file that
            `write_runs` wrote. A run that several of them hold counts once.

    Returns:
        The finished runs, and those that failed, were interrupted or never came to an end.

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
            found = read_run(folder)
            if isinstance(found, Run):
                runs.append(found)
            else:
                unfinished.append(found)
    return runs, unfinished


def find_runs(folder: Path) -> Iterator[Path]:
    """Find the folders of runs in `folder`, itself included, by number and name."""
    if (folder / RESULT_FILE).is_file() or (folder / HYDRA).is_file() or (folder / FAILURE_FILE).is_file():
        yield folder
    for child in sorted(folder.iterdir(), key=_by_number):
        if child.is_dir() and not child.is_symlink() and child.name not in _INSIDE:
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
    """Read evaluation.json; one that cannot be read costs its own figures alone, and a note names it."""
    if not path.is_file():
        return {}, ()
    try:
        found = _read_json(path)
        if isinstance(found, dict):
            return found, ()
        why = f"it must hold an object, got {type(found).__name__}"
    except (OSError, ValueError) as error:
        why = str(error)
    return {}, (f"No evaluation by position and distance of {path.parent}: {path} cannot be read: {why}.",)


def _read_json(path: Path) -> Any:
    """Read a file of JSON; numbers that are not finite, which older runs wrote, become None."""
    return to_jsonable(json.loads(path.read_text(encoding="utf-8")))


def read_curves(path: Path, result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Read the curves of a run from its metrics.csv; of steps that a resumed run took twice, the later ones.

    A row that lacks tokens, seconds or FLOPs gets them from the rows around it, which is exact where steps
    cost the same. Outside of the rows that have them, tokens follow from the steps and the others are None.
    """
    rows: list[dict[str, float]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            for raw in csv.DictReader(file):
                row = {key: _number(value) for key, value in raw.items() if key}
                if math.isnan(row.get("step", math.nan)):
                    continue
                # A run that was killed and resumed goes back to its checkpoint: what followed is void.
                while rows and rows[-1]["step"] > row["step"]:
                    rows.pop()
                rows.append(row)
    steps = np.array([row["step"] for row in rows])
    axes = {
        axis: _along(steps, np.array([row.get(column, math.nan) for row in rows]))
        for axis, column in _AXES.items()
    }
    # Lightning counts steps from 0: row `step` stands behind `step + 1` of them.
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
                point = {axis: _known(values[number]) for axis, values in axes.items()}
                by_step[step] = {"step": step + 1, "loss": loss, **point}
        curves[side] = list(by_step.values())
    return curves


def write_runs(runs: Iterable[Run], path: str | Path, points: int = 100) -> None:
    """Write runs into one file of JSON lines, which `read_runs` reads; so many points a curve at most."""
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
    """Why a run has no result."""
    if (folder / FAILURE_FILE).is_file():
        try:
            return f"failed: {json.loads((folder / FAILURE_FILE).read_text(encoding='utf-8'))['error']}"
        except (ValueError, KeyError, TypeError):
            return f"failed; {FAILURE_FILE} cannot be read"
    curve = read_curves(folder / METRICS_FILE, {})["train"]
    if not curve:
        return "no result: it was killed before its first logged step, or has not come to it"
    return f"no result: killed or still running; last logged step {curve[-1]['step']:,}"


def _along(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Fill in values between those that are known; NaN outside."""
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


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _by_number(path: Path) -> tuple[float, str]:
    number = path.name.partition("_")[0]
    return (int(number) if number.isdecimal() else math.inf, path.name)
