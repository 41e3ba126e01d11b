"""The end of a sweep: what its runs reached as tables, printed and written beside them."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from longspan.records.run_folder import FAILURE_FILE, JOBS_FILE, RESULT_FILE, TABLE_FILE, read_result

log = logging.getLogger(__name__)

# Those that this process asked for, by the sweep's folder: another command may run there at the same time.
_asked: dict[Path, list[str]] = {}


@dataclass
class Sweep:
    """The jobs of a sweep: the results of those that have one, and why the others have none."""

    results: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def note_jobs(folder: Path, names: list[str]) -> None:
    """Write down which jobs a sweep has now: its folder may hold others, from before."""
    _asked[folder.resolve()] = names
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOBS_FILE).write_text(json.dumps(names) + "\n")


def record_failure(folder: str | Path, error: BaseException) -> None:
    """Write why a job failed into its folder, its traceback to its log; call it while handling `error`."""
    log.error("this job failed\n%s", traceback.format_exc())
    message = (str(error).strip() or "no message").splitlines()[0]
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / FAILURE_FILE).write_text(json.dumps({"error": f"{type(error).__name__}: {message}"}) + "\n")


def collect(folder: Path) -> Sweep:
    """Read what the jobs of a sweep left in its folder, in the order of their numbers.

    A job is named by its folder and its overrides. One that left neither a result nor a failure, since its
    process was killed, counts as failed, and so does one that was interrupted: its loss is not that of the
    steps it was asked for. What failed of an earlier command in the same folder, and was not
    asked for again, is left out.
    """
    sweep = Sweep()
    jobs = folder / JOBS_FILE
    asked = _asked.get(folder.resolve())
    if asked is None and jobs.is_file():
        asked = json.loads(jobs.read_text())
    for job in sorted(folder.iterdir(), key=lambda path: _number(path.name)):
        overrides = job / ".hydra" / "overrides.yaml"
        if not overrides.is_file():
            continue
        result = read_result(job) if (job / RESULT_FILE).is_file() else None
        finished = result is not None and result["status"] == "finished"
        if asked is not None and job.name not in asked and not finished:
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


def _number(name: str) -> tuple[int, str]:
    number = name.partition("_")[0]
    return (int(number) if number.isdecimal() else sys.maxsize, name)


def sweep_name() -> str | None:
    """Name of the sweep whose job this process runs, that of its folder; None outside of a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


class SweepTable(Callback):
    """Hydra's callback: compares the runs when all jobs of a sweep are over, and names those that failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table and write it to `comparison.txt`; ends the process with 1 where a job failed."""
        # Hydra turns an exception of a callback into a warning, and the command would end well.
        try:
            failed = compare(Path(config.hydra.sweep.dir))
        except Exception:
            traceback.print_exc()
            failed = True
        if failed:
            sys.exit(1)


def compare(folder: Path) -> bool:
    """Print the comparison of a sweep's runs and write it into its folder; gives whether a job failed."""
    # Imported here: Hydra makes its callbacks for every command, and reports bring Lightning along.
    from longspan.console import print_report
    from longspan.sweeps.seeds_table import seeds_table
    from longspan.training.reports.report import comparison_table

    sweep = collect(folder)
    tables = [comparison_table(sweep.results, f"Sweep of {len(sweep.results) + len(sweep.failures)} runs")]
    over_seeds = seeds_table(sweep.results, "Over seeds: mean ± standard deviation")
    if over_seeds is not None:
        tables.append(over_seeds)
    with (folder / TABLE_FILE).open("w", encoding="utf-8") as file:
        for table in tables:
            print_report(table, file)
        for name, error in sweep.failures.items():
            print(f"failed: {name}: {error}", file=file)
    for table in tables:
        print_report(table)
    print(f"The runs and this table are in {folder}")
    for name, error in sweep.failures.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    return bool(sweep.failures)
