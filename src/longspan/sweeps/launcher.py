"""Starts the jobs of a sweep that are not finished, each in its own folder, through any launcher of Hydra."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from longspan.config import machine
from longspan.config.messages import EXTRAS
from longspan.errors import ConfigError
from longspan.records.run_folder import FAILURE_FILE
from longspan.sweeps import devices
from longspan.sweeps.job_folders import JobFolders, finished_result, is_of_job, locked, reserving
from longspan.sweeps.jobs import note_jobs, record_failure, sweep_name

# Launchers that start several jobs on this machine and give each of them all devices.
_SIDE_BY_SIDE = ("JoblibLauncher", "LocalLauncher")
# The one of them that starts all jobs at once.
_ALL_AT_ONCE = "LocalLauncher"


class ContinuingLauncher(Launcher):
    """Hands the jobs that are not finished to another launcher, each with the folder of its run.

    A job that is finished in the sweep's folder is not started. A job that has begun there gets its folder
    again, whatever its number is now. A new job gets its number in the list of jobs, or the next free one
    where a job of other settings has that number.

    Args:
        launcher: the launcher that starts the jobs.
        hydra_context: what jobs are composed with.
        config: of the sweep.

    """

    def __init__(self, launcher: Launcher, hydra_context: HydraContext, config: DictConfig) -> None:
        self._launcher, self._context, self._config = launcher, hydra_context, config
        self._names: list[str] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Do nothing: the other launcher has been set up."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Start the jobs of a batch that are not finished; return what each job of the batch reached.

        Raises:
            ConfigError: a job asks for several processes, or two jobs get the same folder.

        """
        sweep_dir = Path(str(self._config.hydra.sweep.dir))
        with reserving(sweep_dir) as folders:
            placed = [
                self._place(list(overrides), initial_job_idx + index, folders)
                for index, overrides in enumerate(job_overrides)
            ]
        jobs = [name for name, _ in placed]
        returns: dict[int, JobReturn] = {}
        for index, (name, task) in enumerate(placed):
            result = finished_result(sweep_dir / name)
            if result is not None and _is_known_to_be_of_job(result, task):
                returns[index] = _finished(job_overrides[index], result)
        left = [index for index in range(len(jobs)) if index not in returns]
        self._record(sweep_dir, jobs)
        self._offer_devices(sweep_dir)
        begun = sum((sweep_dir / jobs[index]).is_dir() for index in left)
        print(
            f"Sweep in {sweep_dir}: {len(left)} of {len(jobs)} runs to train, {begun} of them begun before, "
            f"{len(returns)} finished. Cut off, it goes on by the same command with {_where(sweep_dir)}",
            flush=True,
        )
        if left:
            started = [[*job_overrides[index], f"hydra.sweep.subdir='{jobs[index]}'"] for index in left]
            found = self._launcher.launch(started, initial_job_idx=initial_job_idx)
            returns |= dict(zip(left, found, strict=True))
        return [returns[index] for index in range(len(jobs))]

    def _place(self, overrides: list[str], number: int, folders: JobFolders) -> tuple[str, DictConfig]:
        """The folder of a job, an earlier one or a new name, and its configuration without Hydra's part."""
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        task = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        refuse_processes(task)
        name = folders.of(task)
        if name is None:
            name = _folder_name(config, number)
            if not folders.is_free(name):
                name = _folder_name(config, folders.next_number())
            if not folders.is_free(name):
                raise ConfigError(
                    f"hydra.sweep.subdir gives two jobs the folder {name}; put ${{hydra.job.num}} into it"
                )
            folders.give(name, task)
        return name, task

    def _record(self, sweep_dir: Path, names: list[str]) -> None:
        """Write down which jobs the sweep has now: its folder may hold others, from before."""
        self._names += names
        note_jobs(sweep_dir, self._names)

    def _offer_devices(self, sweep_dir: Path) -> None:
        launcher = type(self._launcher).__name__
        if launcher not in _SIDE_BY_SIDE:
            # Jobs of another command that runs in the same folder may still need what it offers.
            return
        gpus = machine.visible_gpus(self._config.trainer.accelerator)
        devices.offer(sweep_dir, gpus, machine.cores() if launcher == _ALL_AT_ONCE else 0)


def register() -> None:
    """Let Hydra start jobs through ContinuingLauncher, in this process; may be called again."""
    if Plugins.instantiate_launcher is not _instantiate_launcher:
        Plugins.instantiate_launcher = _instantiate_launcher  # type: ignore[method-assign]


_hydras_method = Plugins.instantiate_launcher


def _instantiate_launcher(
    self: Plugins, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
) -> Launcher:
    option = f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']}"
    if option in EXTRAS and config.hydra.launcher._target_ not in self.class_name_to_class:
        raise ConfigError(EXTRAS[option])
    launcher = _hydras_method(self, hydra_context=hydra_context, task_function=task_function, config=config)
    return ContinuingLauncher(launcher, hydra_context, config)


def train_job(config: DictConfig, overrides: Sequence[str]) -> float | None:
    """Train a job of a sweep, or go on with it; return its validation loss, None where it failed.

    A failure is recorded for the closing table, and the other jobs go on.

    Raises:
        ConfigError: the folder holds the finished run of another job.

    """
    from longspan.training.run import train

    folder = Path(config.output_dir)
    with locked(folder):
        result = finished_result(folder)
        if result is None:
            (folder / FAILURE_FILE).unlink(missing_ok=True)
            try:
                with _device():
                    _free_memory()
                    result = train(config, overrides, resume=True, sweep=sweep_name())
            except Exception as error:
                record_failure(folder, error)
                return None
        elif not is_of_job(result, config):
            # Not recorded: the failure would be that of the other job.
            raise ConfigError(
                f"{folder} holds the run of another job, finished with other settings; give this one another "
                "folder, by another name after sweep= or another hydra.sweep.subdir"
            )
    return result["metrics"]["val_loss"]


def _is_known_to_be_of_job(result: dict[str, Any], task: DictConfig) -> bool:
    """Whether a result is that of a job; False where only the process of the job can tell."""
    try:
        return is_of_job(result, task)
    except OmegaConfBaseException:
        return False


def _device() -> AbstractContextManager[str | None]:
    """A device that the sweep offers, where its launcher starts jobs beside each other."""
    hydra_config = HydraConfig.get()
    beside = str(hydra_config.launcher._target_).rpartition(".")[2] in _SIDE_BY_SIDE
    return devices.taken(Path(str(hydra_config.sweep.dir))) if beside else nullcontext()


def _free_memory() -> None:
    """Free what the job before left in this process, so that it is not in the peak memory of this one.

    A trainer, its loops and its module refer to each other: they go when the collector comes by.
    """
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def refuse_processes(config: DictConfig) -> None:
    """Refuse several processes for a job of a sweep; raises ConfigError."""
    for key, only in (("devices", 1), ("num_nodes", 1), ("strategy", "auto")):
        value = OmegaConf.select(config, f"trainer.{key}")
        if value is not None and str(value) != str(only):
            raise ConfigError(
                f"trainer.{key}={value}: a job of a sweep has one device (trainer.{key}={only}). Lightning "
                "starts the other processes of a run by running its command again, which would be the whole "
                "sweep. Train this one without -m, or several beside each other, a device each, with "
                "hydra/launcher=joblib"
            )


def _where(sweep_dir: Path) -> str:
    """The override that chooses a sweep's folder."""
    in_its_place = sweep_dir.parent == Path("logs/sweeps")
    return f"sweep={sweep_dir.name}" if in_its_place else f"hydra.sweep.dir={sweep_dir}"


def _folder_name(config: DictConfig, number: int) -> str:
    # The launcher makes the configuration of the job anew.
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.job.num = number
        config.hydra.job.id = str(number)
    before = HydraConfig.instance().cfg
    # `${hydra:…}` reads it.
    HydraConfig.instance().set_config(config)
    try:
        # A slash, as of sparsity=mine/one, would be a folder inside a folder, where no job is looked for.
        return str(config.hydra.sweep.subdir).replace("/", ".")
    finally:
        HydraConfig.instance().cfg = before


def _finished(overrides: Sequence[str], result: dict[str, Any]) -> JobReturn:
    return JobReturn(
        overrides=list(overrides), status=JobStatus.COMPLETED, _return_value=result["metrics"]["val_loss"]
    )
