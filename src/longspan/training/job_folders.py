"""Which folder of a sweep belongs to which job: the one whose run had the same settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from longspan.training.plain import IGNORED
from longspan.training.results import FILE, read_result
from longspan.training.sweep import FAILURE_FILE

log = logging.getLogger(__name__)

# What Hydra writes into a job's folder as it begins, the overrides last.
CONFIG = Path(".hydra") / "config.yaml"
OVERRIDES = Path(".hydra") / "overrides.yaml"
LOCK = ".lock"


def job_settings(config: DictConfig) -> dict[str, Any]:
    """Return the settings of a job as a file would give them back, without what is ignored.

    Args:
        config: of the job, without Hydra's own part; interpolations stay what they are.

    """
    settings = yaml.safe_load(OmegaConf.to_yaml(config))
    for name in IGNORED:
        *path, last = name.split(".")
        node = settings
        for key in path:
            node = node.get(key) or {}
        node.pop(last, None)
    return settings


class JobFolders:
    """The folders of a sweep, and which of them is whose.

    A folder is given away once: two jobs of the same settings have two.

    Args:
        sweep_dir: the folder of the sweep; it need not be there.

    """

    def __init__(self, sweep_dir: str | Path) -> None:
        self.sweep_dir = Path(sweep_dir)
        self._settings: dict[str, dict[str, Any]] = {}
        self._taken: set[str] = set()
        if self.sweep_dir.is_dir():
            for folder in sorted(self.sweep_dir.iterdir(), key=lambda path: number_of(path.name)):
                settings = _read_settings(folder)
                if settings is not None:
                    self._settings[folder.name] = settings

    def of(self, config: DictConfig) -> str | None:
        """Give away the folder of the job with this configuration; None where it has none yet."""
        wanted = job_settings(config)
        for name, settings in self._settings.items():
            if name not in self._taken and settings == wanted:
                self._taken.add(name)
                return name
        return None

    def is_free(self, name: str) -> bool:
        """Whether no job has begun in this folder, or one of its number, and none was given such a one."""
        used = {*self._settings, *self._taken}
        number = number_of(name)[0]
        return name not in used and (number < 0 or number not in {number_of(other)[0] for other in used})

    def give(self, name: str) -> None:
        """Give away a folder that is free."""
        self._taken.add(name)

    def next_number(self) -> int:
        """Return a number above those of all folders."""
        numbers = [number_of(name)[0] for name in {*self._settings, *self._taken}]
        return max((number for number in numbers if number >= 0), default=-1) + 1


def number_of(name: str) -> tuple[int, str]:
    """Return the number a job's folder begins with, to sort by; -1 for a folder without one."""
    number = name.partition("_")[0]
    return (int(number) if number.isdecimal() else -1, name)


def finished_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a job that ended as it should; None for one that did not, or has not yet."""
    if (folder / FAILURE_FILE).exists() or not (folder / FILE).is_file():
        return None
    result = read_result(folder)
    return result if result["status"] == "finished" else None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no other process train in a job's folder; wait for one that does, since its sweep was cut.

    The lock is gone when its process is, however it died.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that trains in {folder}", flush=True)
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        log.warning("%s cannot be locked (%s): see to it that no other process trains there", folder, error)
    try:
        yield
    finally:
        lock.release()


def _read_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings of a job that has begun; None where Hydra had not come to writing them."""
    if not (folder / CONFIG).is_file() or not (folder / OVERRIDES).is_file():
        return None
    try:
        return job_settings(OmegaConf.load(folder / CONFIG))  # type: ignore[arg-type]
    except (yaml.YAMLError, AttributeError):
        return None
