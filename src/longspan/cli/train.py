"""The command that trains: overrides in, a run or a sweep out.

`python train.py`, `longspan train` and `longspan-train` are all this.
"""

from __future__ import annotations

import io
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from longspan import user_folders
from longspan.config import schemas, search_path
from longspan.config.additions import refuse_additions
from longspan.config.folders import config_dir
from longspan.config.messages import USER_ERRORS, describe
from longspan.errors import ConfigError
from longspan.training.checkpoints import NAMES

WIDTH = 110


class UserError(BaseException):
    """Carries a user's mistake past Hydra, which prints a line of its own about every Exception."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.cause = error


def main() -> None:
    """Run what sys.argv asks for; ends the process with status 1 and a message on a user's mistake.

    With HYDRA_FULL_ERROR=1 in the environment the message comes with its traceback.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    # Hydra would print a message of its own and exit: ours also says what is allowed.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = get_args_parser().parse_args()
    try:
        search_path.register()
        if arguments.config_dir is not None:
            add_folder(arguments.config_dir)
        # Help and completion list files and options: a file with a mistake is listed too.
        if not (arguments.help or arguments.shell_completion):
            schemas.register()
            refuse_additions(arguments.overrides, config_name=arguments.config_name or schemas.PRIMARY)
            if arguments.multirun:
                from longspan.sweeps import launcher

                launcher.register()
                refuse_last_in_a_sweep(arguments.overrides)
        command = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=schemas.PRIMARY)(
            job
        )
        with wrapped_lines() if arguments.help else nullcontext():
            command()
    except (*USER_ERRORS, UserError) as error:
        if before == "1":
            raise
        cause = error.cause if isinstance(error, UserError) else error
        print(f"\nlongspan: {describe(cause)}", file=sys.stderr)
        sys.exit(1)
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def wrapped_lines() -> Iterator[None]:
    """Wrap what is printed inside: Hydra writes all options of a group into one line."""
    written = io.StringIO()
    try:
        with redirect_stdout(written):
            yield
    finally:
        for line in written.getvalue().splitlines():
            print(
                "\n".join(textwrap.wrap(line, WIDTH, subsequent_indent="  ")) if len(line) > WIDTH else line
            )


def add_folder(folder: str) -> None:
    """Add the folder of --config-dir to those where code is found, too; raises ConfigError if it is none."""
    if not Path(folder).is_dir():
        raise ConfigError(f"--config-dir {folder}: there is no such folder")
    try:
        user_folders.add(folder)
    except ValueError as error:
        raise ConfigError(f"--config-dir: {error}") from error


def job(config: DictConfig) -> float | None:
    """Train as `config` says; return the validation loss, which a sweeper may minimise.

    In a sweep a job that fails is recorded for the closing table and the others go on.
    """
    hydra_config = HydraConfig.get()
    # Not resolved: an interpolation among them refers to the run's configuration, not to Hydra's.
    overrides = [str(one) for one in OmegaConf.to_container(hydra_config.overrides.task) or ()]
    if hydra_config.mode == RunMode.RUN:
        from longspan.training.run import train

        # A new run has a new folder, so the last checkpoint lies in one beside it.
        runs_dir = Path(config.output_dir).parent
        try:
            if config.sweep is not None:
                raise ConfigError(f"sweep={config.sweep} names the folder of a sweep: add -m")
            return train(config, overrides, runs_dir=runs_dir)["metrics"]["val_loss"]
        except USER_ERRORS as error:
            raise UserError(error) from error
    from longspan.sweeps.launcher import train_job

    return train_job(config, overrides)


def refuse_last_in_a_sweep(overrides: list[str]) -> None:
    """Refuse `ckpt_path=last` or `best` for the jobs of a sweep: each has a new folder and no run beside it.

    Raises ConfigError.
    """
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.key_or_group != "ckpt_path":
            continue
        values = override.sweep_string_iterator() if override.is_choice_sweep() else [override.value()]
        if found := [value for value in values if value in NAMES]:
            raise ConfigError(
                f"ckpt_path={found[0]} means nothing in a sweep, whose jobs all begin in new folders; "
                "give the path of a checkpoint"
            )
