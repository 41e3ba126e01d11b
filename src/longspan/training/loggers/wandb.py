"""The logger for Weights & Biases, with all of its files in the run's directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

# Characters of a tag and of a run's name that Weights & Biases takes.
MAX_TAG, MAX_NAME = 64, 128


class WandbRun(WandbLogger):
    """Logs to Weights & Biases, offline unless asked otherwise: no account, no network, no output.

    All files, cache and settings too, lie in `<run_dir>/wandb`. `wandb sync` uploads an offline run. A run
    that resumes in the same directory keeps its id, which is in `<run_dir>/wandb/run_id`.

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
            # A new run, also if another one is open in this process: the jobs of a sweep follow each other.
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
            # Weights & Biases would put these into the home directory; it reads them when a run opens.
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
                # Lightning leaves WANDB_MODE=dryrun, which would keep a later run of this process offline.
                for name, value in before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
        return self._experiment

    def introduce(self, name: str, tags: Sequence[str], group: str | None) -> None:
        """Set the name, tags and group that the configuration left open; call it before anything is logged.

        Args:
            name: of the run.
            tags: labels; cut to the length that Weights & Biases allows.
            group: of the run, or None.

        """
        given = {"name": name, "tags": [tag[:MAX_TAG] for tag in tags], "group": group}
        for key, value in given.items():
            if self._wandb_init[key] is None:
                self._wandb_init[key] = value

    def close(self, failed: bool = False) -> None:
        """Finish the run: write the remaining data and the exit status."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(failed))
            self._experiment = None

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Finish the run when training failed; a success may still log, until `close_loggers`."""
        super().finalize(status)
        if status == "failed":
            self.close(failed=True)
