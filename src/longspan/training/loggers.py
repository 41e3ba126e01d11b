"""Loggers whose files lie in the run's directory and nowhere else: a CSV file, and Weights & Biases."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Characters of a tag and of a run's name that Weights & Biases takes.
MAX_TAG, MAX_NAME = 64, 128


class _MetricsFile(ExperimentWriter):
    """Writes below what a file already holds, which Lightning's writer deletes: a resumed run keeps it."""

    def _check_log_dir_exists(self) -> None:
        if self._fs.isfile(self.metrics_file_path):
            with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
                self.metrics_keys = next(csv.reader(file), [])


class CsvLogger(CSVLogger):
    """Writes `<run_dir>/metrics.csv`, a row at each log, on the disk at once, and `<run_dir>/hparams.yaml`.

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
        """Take out of the file what was logged after so many optimizer steps; call it before the first log.

        A line that was cut off in the middle goes too.
        """
        path = Path(self.metrics_file)
        if not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            names = list(rows.fieldnames or [])
            # Counted from 0: the row of the last of them has the number below.
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


class WandbRun(WandbLogger):
    """Logs to Weights & Biases, offline unless asked otherwise: no account, no network, no output.

    All its files, cache and settings too, lie in `<run_dir>/wandb`. `wandb sync` uploads an offline run. A
    run that is resumed in the same directory goes on under the id that it had, which is kept in
    `<run_dir>/wandb/run_id`.

    Args:
        run_dir: the run's directory.
        project: the project the run belongs to.
        name: the run's name; null: pattern, length and seed.
        group: groups runs; null: the name of the sweep that the run belongs to, or none.
        tags: labels; null: the pattern and the length.
        entity: the user or team; null for the account's own. Matters online alone.
        offline: log to files alone.

    """

    def __init__(
        self,
        run_dir: str,
        project: str = "longspan",
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        entity: str | None = None,
        offline: bool = True,
    ) -> None:
        self.folder = Path(run_dir) / "wandb"
        super().__init__(
            name=name,
            save_dir=run_dir,
            offline=offline,
            project=project,
            group=group,
            tags=None if tags is None else list(tags),
            entity=entity,
            mode="offline" if offline else "online",
            # A run of its own, whatever else is open in this process: a sweep has one after the other.
            reinit="create_new",
            settings={
                "silent": offline,
                "console": "off",
                "disable_git": True,
                "disable_code": True,
            },
        )

        # Lightning hands on this argument, which Weights & Biases warns of, given or not.
        self._wandb_init.pop("anonymous", None)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, opened at the first use."""
        if self._experiment is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Weights & Biases keeps these in the home directory otherwise, and reads them when a run opens.
            places = {
                name: str(self.folder / name.lower()) for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")
            }
            folders = {f"WANDB_{name}_DIR": place for name, place in places.items()}
            before = {name: os.environ.get(name) for name in [*folders, "WANDB_MODE"]}
            os.environ.update(folders)
            kept = self.folder / "run_id"
            if self._wandb_init["id"] is None and kept.is_file():
                self._wandb_init["id"] = kept.read_text().strip()
            try:
                run = super().experiment
                kept.write_text(f"{run.id}\n")
                return run
            finally:
                # Lightning leaves WANDB_MODE=dryrun behind, which a later online run here would obey.
                for name, value in before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
        return self._experiment

    def introduce(self, name: str, tags: Sequence[str], group: str | None) -> None:
        """Fill in what the configuration left open; call it before anything is logged.

        Args:
            name: of the run.
            tags: labels; what is longer than Weights & Biases allows is cut.
            group: of the run, or None.

        """
        given = {"name": name, "tags": [tag[:MAX_TAG] for tag in tags], "group": group}
        for key, value in given.items():
            if self._wandb_init[key] is None:
                self._wandb_init[key] = value

    def close(self, failed: bool = False) -> None:
        """Finish the run: write what is left and mark how it ended."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(failed))
            self._experiment = None

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Finish the run when training failed; a success may still log, until `close_loggers`."""
        super().finalize(status)
        if status == "failed":
            self.close(failed=True)


def log_configuration(loggers: Iterable[Logger], configuration: Mapping[str, Any]) -> None:
    """Write the configuration, nested as it is, and whatever else describes the run, to every logger.

    Args:
        loggers: the trainer's loggers.
        configuration: nested mappings, lists, strings and numbers; for instance the resolved configuration
            with the facts of the corpus beside it.

    """
    for logger in loggers:
        logger.log_hyperparams(dict(configuration))  # type: ignore[arg-type]
        logger.save()


def log_summary(loggers: Iterable[Logger], figures: Mapping[str, float | None]) -> None:
    """Write figures of the whole run to the summaries of Weights & Biases, those that are known."""
    known = {name: value for name, value in figures.items() if value is not None}
    for logger in loggers:
        if isinstance(logger, WandbRun):
            _update_summary(logger, known)


def log_picture(loggers: Iterable[Logger], name: str, draw: Callable[[], Figure]) -> None:
    """Log a picture to Weights & Biases.

    Args:
        loggers: the trainer's loggers.
        name: what to call it.
        draw: makes the figure; called only where it is logged.

    """
    for logger in loggers:
        if isinstance(logger, WandbRun):
            _log_figure(logger, name, draw)


@rank_zero_only
def _update_summary(logger: WandbRun, figures: Mapping[str, float]) -> None:
    logger.experiment.summary.update(dict(figures))


@rank_zero_only
def _log_figure(logger: WandbRun, name: str, draw: Callable[[], Figure]) -> None:
    from PIL import Image

    file = io.BytesIO()
    draw().savefig(file, format="png", dpi=100)
    logger.log_image(name, [Image.open(file)])


def close_loggers(loggers: Iterable[Logger]) -> None:
    """Finish the loggers of a run, so that the next run of this process starts its own."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbRun):
            logger.close()
