"""The logger that writes metrics.csv in the run's directory."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only


class _MetricsFile(ExperimentWriter):
    """Appends to an existing file, which Lightning's writer would delete: a resumed run keeps its rows."""

    def _check_log_dir_exists(self) -> None:
        if self._fs.isfile(self.metrics_file_path):
            with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
                self.metrics_keys = next(csv.reader(file), [])


class CsvLogger(CSVLogger):
    """Writes `<run_dir>/metrics.csv`, flushed after each row, and `<run_dir>/hparams.yaml`.

    Args:
        run_dir: the run's directory.

    """

    def __init__(self, run_dir: str) -> None:
        super().__init__(save_dir=run_dir, name="", version="", flush_logs_every_n_steps=1)

    @property
    def log_dir(self) -> str:
        """The run's directory."""
        return self.save_dir

    @property
    def metrics_file(self) -> str:
        """Path of the file of metrics."""
        return str(Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE)

    @rank_zero_only
    def keep_until(self, steps: int) -> None:
        """Remove rows after `steps` optimizer steps and incomplete ones; call it before the first log."""
        path = Path(self.metrics_file)
        if not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            names = list(rows.fieldnames or [])
            # Steps are counted from 0: the last row to keep has the number `steps - 1`.
            kept = [row for row in rows if None not in row.values() and int(row["step"] or steps) < steps]
        unfinished = path.with_suffix(".tmp")
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(kept)
        os.replace(unfinished, path)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of the file, made at the first use."""
        if self._experiment is None:
            os.makedirs(self.log_dir, exist_ok=True)
            self._experiment = _MetricsFile(log_dir=self.log_dir)
        return self._experiment  # type: ignore[return-value]
