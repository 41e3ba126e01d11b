"""Unions, intersections and differences by configuration: their parts chosen and changed from outside."""

import hydra
import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from longspan.config import schemas
from longspan.config.instantiate import instantiate
from longspan.errors import ConfigError
from longspan.sparsity import (
    BigBirdSparsityConfig,
    DifferenceSparsityConfig,
    FixedSparsityConfig,
    RandomSparsityConfig,
    UnionSparsityConfig,
)

SMALL = ["model.num_heads=4", "sparsity.block=32"]
COMMON = {"num_heads": 4, "block": 32, "attention": "unidirectional"}


def test_parts_are_options_of_the_same_group_and_take_arguments(compose):
    config = compose(
        "sparsity=difference",
        "sparsity@sparsity.pattern=union",
        "sparsity@sparsity.pattern.patterns.levels=random",
        "sparsity.pattern.patterns.levels.density=0.2",
        "sparsity@sparsity.without=fixed",
        "sparsity.without.num_local_blocks=8",
        *SMALL,
    )
    pattern = instantiate(config.sparsity)
    assert isinstance(pattern, DifferenceSparsityConfig)
    assert pattern.without == FixedSparsityConfig(**COMMON, num_local_blocks=8)
    assert pattern.pattern.patterns[1] == RandomSparsityConfig(**COMMON, density=0.2)
    assert pattern.attention == "unidirectional"


def test_a_part_more(compose):
    more = ["+sparsity@sparsity.patterns.more=bigbird", "sparsity.patterns.more.block=32"]
    pattern = instantiate(compose("sparsity=union", *more, *SMALL).sparsity)
    assert [part.name for part in pattern.patterns] == ["attention_sinks", "hierarchical", "bigbird"]
    assert pattern.patterns[2] == BigBirdSparsityConfig(**COMMON)


def test_mistakes(compose):
    with pytest.raises(ConfigCompositionException, match="Could not override"):
        compose("sparsity=union", "sparsity.patterns.levels.blok=3")
    with pytest.raises(ConfigCompositionException, match=r"sparsity\.patterns\.levels\.num_sliding"):
        compose("sparsity=union", "sparsity.patterns.levels.num_sliding_window_blocks=many")
    config = compose("sparsity=union", "+sparsity@sparsity.patterns.more=bigbird", *SMALL)
    with pytest.raises(
        ConfigError,
        match=r"^sparsity: patterns\[2\] \(bigbird\) must have the block of its union, 32, got 64",
    ):
        instantiate(config.sparsity)
    config = compose("sparsity=union", "sparsity.patterns.levels.attention=bidirectional")
    with pytest.raises(ConfigError, match="must have the attention of its union, 'unidirectional'"):
        instantiate(config.sparsity)
    with pytest.raises(
        ConfigCompositionException, match=r"Could not find 'sparsity/hierarchial'|In 'sparsity"
    ):
        compose("sparsity=union", "sparsity@sparsity.patterns.levels=hierarchial")


def test_a_file_that_writes_its_parts_out(compose, tmp_path):
    """Nested targets, in a list as well, are checked against their signatures."""
    parts = [
        {"_target_": "longspan.sparsity.DenseSparsityConfig", "num_heads": 2},
        {"_target_": "longspan.sparsity.RandomSparsityConfig", "num_heads": 2, "density": 0.5},
    ]
    file = {"_target_": "longspan.sparsity.UnionSparsityConfig", "num_heads": 2, "patterns": parts}
    pattern = instantiate(schemas.typed(OmegaConf.create(file), "sparsity/mine"))
    assert isinstance(pattern, UnionSparsityConfig)
    assert pattern.patterns[1] == RandomSparsityConfig(2, density=0.5)
    parts[1]["densty"] = 1
    with pytest.raises(ConfigCompositionException, match="unknown key 'densty'; allowed: num_heads, block"):
        schemas.typed(OmegaConf.create(file), "sparsity/mine")
    with pytest.raises(ConfigCompositionException, match="os"):
        schemas.typed(OmegaConf.create(file | {"patterns": [{"_target_": "os.system"}]}), "sparsity/mine")


def test_an_experiment_file_gives_a_union_of_its_own(tmp_path, compose):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n"
        "  - override /sparsity: union\n"
        "  - override /sparsity@sparsity.patterns.sinks: strided\n"
        "sparsity:\n  block: 32\n  patterns:\n    sinks:\n      stride: 7\n"
    )
    overrides = ["experiment=mine", f"hydra.searchpath=[file://{tmp_path}]"]
    config = hydra.compose(schemas.PRIMARY, overrides=overrides)
    pattern = instantiate(config.sparsity)
    assert [part.name for part in pattern.patterns] == ["strided", "hierarchical"]
    assert (pattern.patterns[0].stride, pattern.patterns[1].block) == (7, 32)
