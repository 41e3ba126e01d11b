"""The jobs of a sweep: which ones were asked for, what they left, and why some left nothing."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from longspan.records.run_folder import FAILURE_FILE, JOBS_FILE, RESULT_FILE, read_result

log = logging.getLogger(__name__)

# The jobs that this process asked for, by the sweep's folder: another command may use the folder as well.
_asked_for: dict[Path, list[str]] = {}


@dataclass
class Sweep:
    """The jobs of a sweep: the results of those that finished, and why the others have none, by name."""

    results: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def sweep_name() -> str | None:
    """Name of the sweep whose job this process runs, that of its folder; None outside of a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


def note_jobs(folder: Path, names: list[str]) -> None:
    """Write into a sweep's folder which jobs it has now: those of earlier commands may lie there too."""
    _asked_for[folder.resolve()] = names
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOBS_FILE).write_text(json.dumps(names) + "\n")


def record_failure(folder: str | Path, error: BaseException) -> None:
    """Write why a job failed into its folder, and the traceback into its log; call while handling `error`."""
    log.error("this job failed\n%s", traceback.format_exc())
    message = (str(error).strip() or "no message").splitlines()[0]
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / FAILURE_FILE).write_text(json.dumps({"error": f"{type(error).__name__}: {message}"}) + "\n")


def collect(folder: Path) -> Sweep:
    """Read what the jobs of a sweep left in its folder, in the order of their numbers.

    A job is named by its folder and its overrides. A job counts as failed if it left neither a result nor a
    failure, since its process was killed, or if it was interrupted: its loss is not that of the steps it was
    asked for. A job of an earlier command that failed, and was not asked for again, is left out.
    """
    sweep = Sweep()
    jobs = folder / JOBS_FILE
    asked_for = _asked_for.get(folder.resolve())
    if asked_for is None and jobs.is_file():
        asked_for = json.loads(jobs.read_text())
    for job in sorted(folder.iterdir(), key=lambda path: _by_number(path.name)):
        overrides = job / ".hydra" / "overrides.yaml"
        if not overrides.is_file():
            continue
        result = read_result(job) if (job / RESULT_FILE).is_file() else None
        finished = result is not None and result["status"] == "finished"
        if asked_for is not None and job.name not in asked_for and not finished:
            continue
        name = f"{job.name} ({' '.join(OmegaConf.load(overrides))})"
        if (job / FAILURE_FILE).is_file():
            sweep.failures[name] = json.loads((job / FAILURE_FILE).read_text())["error"]
        elif result is None:
            sweep.failures[name] = "it left no result"
        elif finished:
            sweep.results.append(result)
        else:
            sweep.failures[name] = f"{result['status']} after {result['steps']} steps"
    return sweep


def _by_number(name: str) -> tuple[int, str]:
    """A key to sort folders by: the number at the beginning of the name, folders without one last."""
    number = name.partition("_")[0]
    return (int(number) if number.isdecimal() else sys.maxsize, name)
