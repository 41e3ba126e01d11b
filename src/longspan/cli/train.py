"""The command: overrides in, a run or a sweep out. `train.py` and `longspan-train` are both this."""

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
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from longspan.config import schemas
from longspan.config import search_path as own_folders
from longspan.config.instantiate import config_dir
from longspan.config.messages import allowed_keys, describe
from longspan.errors import ConfigError
from longspan.sparsity import custom
from longspan.training.checkpoints import NAMES

WIDTH = 110
USER_ERRORS = (ConfigError, CompactHydraException, HydraException, OmegaConfBaseException)


class Mistake(BaseException):
    """Carries a user's mistake past Hydra, which prints a line of its own about every Exception."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def main() -> None:
    """Run what the command line asks for; ends the process with status 1 and a message on a user's mistake.

    With HYDRA_FULL_ERROR=1 in the environment the message comes with its traceback.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    # Hydra would print its own message and leave; ours says what is allowed instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = get_args_parser().parse_args()
    try:
        own_folders.register()
        if arguments.config_dir is not None:
            add_folder(arguments.config_dir)
        # Help and completion list files and options: reading them typed would import what they name.
        if not (arguments.help or arguments.shell_completion):
            schemas.register()
            refuse_additions(arguments.overrides, config_name=arguments.config_name or schemas.PRIMARY)
            if arguments.multirun:
                from longspan.sweeps import launcher as launching

                launching.register()
                refuse_last_in_a_sweep(arguments.overrides)
        command = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=schemas.PRIMARY)(
            job
        )
        with wrapped_lines() if arguments.help else nullcontext():
            command()
    except (*USER_ERRORS, Mistake) as error:
        if before == "1":
            raise
        told = error.error if isinstance(error, Mistake) else error
        print(f"\nlongspan: {describe(told, config_dir())}", file=sys.stderr)
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
    """Find code too where --config-dir has Hydra find options; raises ConfigError for what is no folder."""
    if not Path(folder).is_dir():
        raise ConfigError(f"--config-dir {folder}: there is no such folder")
    try:
        custom.add(folder)
    except ValueError as error:
        raise ConfigError(f"--config-dir: {error}") from error


def job(config: DictConfig) -> float | None:
    """Train as `config` says; gives the validation loss, which a sweeper may minimise.

    In a sweep a job that fails is recorded for the closing table and the others go on.
    """
    hydra_config = HydraConfig.get()
    # As written: an interpolation among them means the run's configuration, not Hydra's.
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
            raise Mistake(error) from error
    from longspan.sweeps.launcher import train_job

    return train_job(config, overrides)


def refuse_additions(overrides: list[str], config_name: str = schemas.PRIMARY) -> None:
    """Refuse `+key=value` where a schema closes the set of keys: Hydra itself would take it and go on.

    Free dictionaries (`model.config_overrides`), targets with `**kwargs` and Hydra's own keys take additions.

    Raises ConfigError with the keys that are allowed.
    """
    added = [override for override in overrides if override.startswith("+")]
    keys = [override.lstrip("+").partition("=")[0].partition("@")[0] for override in added]
    keys = [key for key in keys if not (config_dir() / key).is_dir() and key.partition(".")[0] != "hydra"]
    if not keys:
        return
    config = _compose_without(added, overrides, config_name)
    for key in keys:
        node, name = _deepest(config, key)
        if node is None:
            continue
        target = node.get("_target_") if "_target_" in node else None
        closed = node is config or (target is not None and not schemas.takes_any_key(target))
        if closed:
            raise ConfigError(f"unknown key '{key}'; {allowed_keys(node, name)}")


def _deepest(config: DictConfig, key: str) -> tuple[DictConfig | None, str]:
    """The deepest mapping on the way to `key` and what is missing in it; None where nothing is."""
    node: object = config
    for name in key.split("."):
        if not isinstance(node, DictConfig):
            return None, name
        if name not in set(node):
            return node, name
        node = node._get_node(name)
    return None, key


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


def _compose_without(added: list[str], overrides: list[str], config_name: str) -> DictConfig:
    """The configuration without the additions, of the first job where it is a sweep."""
    kept = []
    for override in OverridesParser.create().parse_overrides([o for o in overrides if o not in added]):
        text = override.input_line or ""
        if override.is_sweep_override():
            if not override.is_choice_sweep():
                continue
            text = f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        kept.append(text)
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose(config_name, overrides=kept)
