"""Composing outside the command gives what the command runs, and tells a user's mistakes as it does."""

import pytest
from hydra.core.global_hydra import GlobalHydra

from longspan.config.compose import compose
from longspan.errors import ConfigError


def test_overrides_and_interpolations_are_those_of_the_command():
    config = compose(["sparsity=fixed", "objective=mlm", "model=bert", "data.seq_len=2048", "seed=3"])
    assert config.sparsity["_target_"] == "longspan.sparsity.FixedSparsityConfig"
    assert (config.sparsity.attention, config.model.max_positions, config.data.seed) == (
        "bidirectional",
        2048,
        3,
    )
    assert compose(["experiment=smoke"]).model.num_layers == 2
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sparsity=fixd", r"no option 'fixd' in the group sparsity.*did you mean fixed\?"),
        ("sparsity.blok=3", r"unknown key 'sparsity.blok'; allowed: .*did you mean block\?"),
        ("+sparsity.extra=3", "unknown key 'sparsity.extra'; allowed"),
        ("data.seq_len=abc", "data.seq_len: .*expected int"),
        ("sparsity=bigbird,fixed", "Ambiguous value for argument 'sparsity=bigbird,fixed'"),
        ("--multirun", "--multirun: only overrides are taken here"),
    ],
)
def test_mistakes_are_told(override, message):
    with pytest.raises(ConfigError, match=message):
        compose([override])
    assert not GlobalHydra.instance().is_initialized()
