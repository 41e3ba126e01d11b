"""The end of a sweep: a table that compares its runs, printed and written beside them."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from longspan.records.run_folder import TABLE_FILE
from longspan.sweeps.jobs import collect


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
    # Hydra makes its callbacks for every command: what they import is paid for by each of them.
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
