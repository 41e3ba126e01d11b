"""What holds for the whole of conf/: composition, interpolation, and nothing but data in it."""

import re

import pytest
import yaml
from omegaconf import OmegaConf

from longspan.attention import SparseSelfAttention
from longspan.config.folders import config_dir
from longspan.config.instantiate import ALLOWED_PACKAGES
from longspan.config.schemas import RunConfig
from longspan.sparsity import PATTERNS
from longspan.training.build import build

FILES = sorted(config_dir().glob("**/*.yaml"))


def test_the_defaults_are_those_of_the_documentation(compose):
    config = compose()
    assert config.sparsity["_target_"] == "longspan.sparsity.BigBirdSparsityConfig"
    assert config.data.seq_len >= 1024
    assert config.trainer.max_time is None, "a run that time ends is not the same twice"


def test_each_folder_is_a_key_of_a_run():
    groups = {path.name for path in config_dir().iterdir() if path.is_dir()}
    assert groups - {"experiment", "hydra"} <= set(RunConfig.__dataclass_fields__)


def test_the_swept_group_holds_patterns_alone():
    assert {path.stem for path in (config_dir() / "sparsity").iterdir()} == set(PATTERNS)


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(config_dir())))
def test_no_logic_in_the_files(file):
    text = file.read_text()
    assert not re.search(r"\beval\b", text)
    document = yaml.safe_load(text)
    stack = [document]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            stack += node.values()
            if "_target_" in node:
                # Hydra makes what is its own, by plugins.
                own = ("hydra_plugins",) if file.relative_to(config_dir()).parts[0] == "hydra" else ()
                assert node["_target_"].partition(".")[0] in (*ALLOWED_PACKAGES, *own)
        elif isinstance(node, list):
            stack += node


def test_heads_and_direction_follow_model_and_objective(compose):
    config = compose("objective=mlm", "model=bert", "model.num_heads=2", "model.hidden_size=64")
    assert (config.sparsity.num_heads, config.sparsity.attention) == (2, "bidirectional")
    config = compose("objective=clm", "sparsity=local_sliding_window")
    assert config.sparsity.attention == "unidirectional"
    assert config.sparsity.num_heads == config.model.num_heads


def test_a_unidirectional_pattern_under_the_masked_objective_warns(compose, text_data):
    overrides = ["experiment=smoke", *text_data, "objective=mlm", "model=bert"]
    with pytest.warns(UserWarning, match="unidirectional and the objective is masked"):
        build(compose(*overrides, "sparsity.attention=unidirectional"))


def test_a_bidirectional_pattern_under_the_causal_objective_warns(compose, text_data):
    with pytest.warns(UserWarning, match="causal to the token"):
        build(compose("experiment=smoke", *text_data, "sparsity.attention=bidirectional"))


def test_backend_and_chunks_of_the_loss_reach_the_model(compose, text_data):
    options = ["attention_backend=reference", "loss_chunk=64"]
    module = build(compose("experiment=smoke", *text_data, *options)).module
    layers = [layer for layer in module.modules() if isinstance(layer, SparseSelfAttention)]
    assert [layer.backend for layer in layers] == ["reference"] * 2
    assert module.loss_chunk == 64
    module = build(compose("experiment=smoke", *text_data)).module
    assert next(m for m in module.modules() if isinstance(m, SparseSelfAttention)).backend == "auto"
    assert module.loss_chunk is None


def test_the_composed_configuration_is_plain_data(compose):
    container = OmegaConf.to_container(compose(), resolve=True)
    assert yaml.safe_load(yaml.safe_dump(container)) == container
