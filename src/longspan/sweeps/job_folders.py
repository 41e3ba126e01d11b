"""Which folder of a sweep belongs to which job: that of the run with the same settings."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf, read_write

from longspan.records.jsonable import to_jsonable
from longspan.records.run_folder import FAILURE_FILE, RESULT_FILE, read_result
from longspan.records.settings import NOT_PART_OF_A_JOBS_IDENTITY

log = logging.getLogger(__name__)

# What Hydra writes into a job's folder as it begins, the overrides last.
CONFIG = Path(".hydra") / "config.yaml"
OVERRIDES = Path(".hydra") / "overrides.yaml"
LOCK = ".lock"
# The settings of the jobs that have a folder in a sweep, by the folder's name; and the lock of that file.
RESERVED = ".folders.json"
RESERVED_LOCK = ".folders.lock"
# The settings that say where a run's files lie.
_PLACES = ("output_dir", "sweep")


def job_settings(config: DictConfig) -> dict[str, Any]:
    """Return the settings that make a job what it is, in the types that a file gives back.

    Args:
        config: of the job, without Hydra's own part; interpolations stay what they are.

    """
    settings = _identity(yaml.safe_load(OmegaConf.to_yaml(config)))
    # Keys are strings in RESERVED.
    return json.loads(json.dumps(settings, default=str))


def is_of_job(result: dict[str, Any], config: DictConfig) -> bool:
    """Whether a result is that of the job with this configuration; True where it holds no configuration.

    Args:
        result: as `longspan.records.run_folder.read_result` reads it; an old one holds no configuration.
        config: of the job, as for `job_settings`; resolved here, as that of the result was.

    Raises:
        OmegaConfBaseException: the configuration cannot be resolved in this process.

    """
    before = copy.deepcopy(result.get("config"))
    if not before:
        return True
    config = copy.deepcopy(config)
    with read_write(config):
        # Other settings are interpolated from these two, and the sweep's folder may have been moved.
        config.update({key: before[key] for key in _PLACES if key in before and key in config})
    settings = to_jsonable(OmegaConf.to_container(config, resolve=True))
    return _identity(settings) == _identity(before)


def _identity(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that make no other job; the dictionary itself is changed."""
    for name in NOT_PART_OF_A_JOBS_IDENTITY:
        *path, last = name.split(".")
        node = settings
        for key in path:
            node = node.get(key) or {}
        node.pop(last, None)
    return settings


class JobFolders:
    """The folders of a sweep, and which job has which.

    A folder is given away once: two jobs of the same settings have two. Folders of jobs that have not begun
    stand in RESERVED, which wins over Hydra's file in a folder: that is written when the job begins. Another
    command may give away folders of the same sweep: see `reserving`.

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
            reserved = self.sweep_dir / RESERVED
            self._settings |= json.loads(reserved.read_text()) if reserved.is_file() else {}

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

    def give(self, name: str, config: DictConfig) -> None:
        """Give away a folder that is free to the job with this configuration."""
        self._taken.add(name)
        self._settings[name] = job_settings(config)

    def reserve(self) -> None:
        """Write down whose folders are given away, for commands that begin before these jobs have."""
        unfinished = self.sweep_dir / f"{RESERVED}.tmp"
        unfinished.write_text(json.dumps(self._settings) + "\n")
        os.replace(unfinished, self.sweep_dir / RESERVED)

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
    if (folder / FAILURE_FILE).exists() or not (folder / RESULT_FILE).is_file():
        return None
    result = read_result(folder)
    return result if result["status"] == "finished" else None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no other process train in a job's folder; wait for one that still does.

    The lock ends with its process, however that ends.
    """
    with _lock_of(folder, LOCK, "trains"):
        yield


@contextmanager
def reserving(sweep_dir: Path) -> Iterator[JobFolders]:
    """Let no other command give away folders of a sweep meanwhile; those given are written down at the end.

    Two commands that are started at once for one sweep would otherwise both give the next number.
    """
    with _lock_of(sweep_dir, RESERVED_LOCK, "gives its jobs folders"):
        folders = JobFolders(sweep_dir)
        yield folders
        folders.reserve()


@contextmanager
def _lock_of(folder: Path, name: str, doing: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that {doing} in {folder}", flush=True)
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        log.warning(
            "%s cannot be locked (%s): see to it that no other process %s there", folder, error, doing
        )
    try:
        yield
    finally:
        lock.release()


def _read_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings of a job that has begun; None where Hydra has not written them yet."""
    if not (folder / CONFIG).is_file() or not (folder / OVERRIDES).is_file():
        return None
    try:
        return job_settings(OmegaConf.load(folder / CONFIG))  # type: ignore[arg-type]
    except (yaml.YAMLError, AttributeError):
        return None
