"""The configuration that train.py would run, for a command that starts no run."""

from __future__ import annotations

from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from longspan.config import schemas
from longspan.config.additions import refuse_additions
from longspan.config.folders import config_dir
from longspan.config.messages import USER_ERRORS, describe
from longspan.errors import ConfigError


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration that ``train.py`` would run with these overrides.

    Raises:
        ConfigError: an unknown key, option or value, with the allowed ones; a sweep (``sparsity=a,b``); a
            flag of Hydra's.

    """
    if flags := [one for one in overrides if one.startswith("-")]:
        raise ConfigError(f"{flags[0]}: only overrides are taken here, such as sparsity=fixed")
    schemas.register()
    try:
        refuse_additions(list(overrides))
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            return hydra.compose(schemas.PRIMARY, overrides=list(overrides))
    except USER_ERRORS as error:
        raise ConfigError(describe(error)) from error
