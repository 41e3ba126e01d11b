"""Composing the shipped configuration in this process, through the schemas, as the command does."""

from collections.abc import Iterator

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from longspan.config import schemas
from longspan.config.folders import config_dir

# A corpus of a few kilobytes in place of the standard library, whose reading takes seconds.
TEXT = "".join(f"def function_{i}(x):\n    return x * {i * i} + {i}\n\n" for i in range(800))


# What an override says in the place of the folder of `pretrained`.
PRETRAINED = "PRETRAINED"


@pytest.fixture
def compose(tmp_path, request) -> Iterator:
    """compose('sparsity=fixed', …) -> the configuration, with a folder of its own for its files."""

    def composed(*overrides: str):
        if any(PRETRAINED in override for override in overrides):
            folder = str(request.getfixturevalue("pretrained"))
            overrides = tuple(override.replace(PRETRAINED, folder) for override in overrides)
        return hydra.compose(schemas.PRIMARY, overrides=[*overrides, f"output_dir={tmp_path / 'run'}"])

    schemas.register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield composed


@pytest.fixture
def text_data(tmp_path) -> list[str]:
    """Overrides that put a small local corpus in the place of the default one."""
    for index in range(8):
        (tmp_path / f"{index}.txt").write_text(f"# file {index}\n{TEXT}")
    return [
        "data=text_files",
        f"data.corpus.files=['{tmp_path}/*.txt']",
        "data.corpus.validation_fraction=0.2",
    ]
