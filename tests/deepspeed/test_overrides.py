"""A DeepSpeed block as overrides of train.py: the run has exactly the pattern that the block names."""

import json
import subprocess

import pytest
from hydra import compose, initialize_config_dir

from longspan import from_deepspeed
from longspan.config import schemas
from longspan.config.folders import config_dir
from longspan.config.instantiate import instantiate
from longspan.deepspeed.overrides import overrides

BLOCKS = [
    {},
    {"mode": "dense"},
    {"mode": "fixed", "block": 32, "attention": "unidirectional", "num_local_blocks": 2},
    {
        "mode": "fixed",
        "different_layout_per_head": True,
        "num_local_blocks": 4,
        "num_different_global_patterns": 4,
        "horizontal_global_attention": True,
    },
    {"mode": "variable", "num_random_blocks": 2, "local_window_blocks": [2, 4]},
    {"mode": "variable", "global_block_indices": [0, 5], "global_block_end_indices": [2, 7]},
    {"mode": "bigbird", "num_sliding_window_blocks": 5, "num_global_blocks": 2},
    {"mode": "bslongformer", "global_block_indices": [0, 9]},
    {"mode": "local_sliding_window", "num_sliding_window_blocks": 7},
]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_the_run_has_the_blocks_pattern(block, objective, tmp_path):
    config = {"train_batch_size": 8, "sparse_attention": block}
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps(config))
    assert overrides(config) == overrides(file)
    schemas.register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        composed = compose("train", [f"objective={objective}", "model.num_heads=6", *overrides(file)])
    assert instantiate(composed.sparsity) == from_deepspeed(config, num_heads=6)


@pytest.fixture
def command(warm_python):
    def run(file):
        return subprocess.run(
            [warm_python, "-W", "error::RuntimeWarning", "-m", "longspan.training.deepspeed", str(file)],
            capture_output=True,
            text=True,
        )

    return run


def test_the_command_prints_words_for_a_shell(command, tmp_path):
    block = {"mode": "variable", "local_window_blocks": [2, 4]}
    (tmp_path / "ds.json").write_text(json.dumps({"sparse_attention": block}))
    done = command(tmp_path / "ds.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == overrides(block)
    assert "sparsity.local_window_blocks=[2,4]" in done.stdout.split()


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "No such file"), ("{", "is not JSON"), ('{"mode": "spiral"}', "mode must be one of")],
)
def test_a_mistake_is_told_in_one_line(command, text, message, tmp_path):
    if text is not None:
        (tmp_path / "ds.json").write_text(text)
    done = command(tmp_path / "ds.json")
    assert done.returncode == 1
    assert done.stderr.startswith("longspan: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
