"""DeepSpeed's configuration files, as they stand."""

from __future__ import annotations

import json
import warnings

import pytest

from longspan.sparsity import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    VariableSparsityConfig,
    from_deepspeed,
)

# The block of DeepSpeed's BERT pretraining example.
BERT_EXAMPLE = {
    "mode": "fixed",
    "block": 16,
    "different_layout_per_head": True,
    "num_local_blocks": 4,
    "num_global_blocks": 1,
    "attention": "bidirectional",
    "horizontal_global_attention": False,
    "num_different_global_patterns": 4,
}
BERT_PATTERN = FixedSparsityConfig(16, 16, True, num_different_global_patterns=4)


@pytest.fixture(autouse=True)
def no_other_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_the_block_and_the_whole_file(tmp_path):
    whole = {"train_batch_size": 8, "optimizer": {"type": "Adam"}, "sparse_attention": BERT_EXAMPLE}
    assert from_deepspeed(BERT_EXAMPLE, 16) == BERT_PATTERN
    assert from_deepspeed(whole, 16) == BERT_PATTERN
    for name, content in [("block.json", BERT_EXAMPLE), ("whole.json", whole)]:
        path = tmp_path / name
        path.write_text(json.dumps(content))
        assert from_deepspeed(path, 16) == BERT_PATTERN
        assert from_deepspeed(str(path), 16) == BERT_PATTERN
    assert whole["sparse_attention"]["mode"] == "fixed"  # what was given is left alone


@pytest.mark.parametrize(
    ("block", "pattern"),
    [
        ({"mode": "dense", "block": 32}, DenseSparsityConfig(4, 32)),
        ({"mode": "fixed"}, FixedSparsityConfig(4)),
        ({"mode": "variable"}, VariableSparsityConfig(4)),
        # An absent num_random_blocks is 0 to DeepSpeed's parser, though 1 to its class.
        ({"mode": "bigbird"}, BigBirdSparsityConfig(4, num_random_blocks=0)),
        ({"mode": "bigbird", "num_random_blocks": 2}, BigBirdSparsityConfig(4, num_random_blocks=2)),
        ({"mode": "bslongformer"}, BSLongformerSparsityConfig(4)),
        ({"mode": "local_sliding_window"}, LocalSlidingWindowSparsityConfig(4)),
        (
            {
                "mode": "variable",
                "block": 64,
                "num_random_blocks": 1,
                "local_window_blocks": [2, 4],
                "global_block_indices": [0, 5],
                "global_block_end_indices": [1, 7],
                "attention": "unidirectional",
            },
            VariableSparsityConfig(4, 64, False, 1, (2, 4), (0, 5), (1, 7), "unidirectional"),
        ),
        ({"block": 32}, FixedSparsityConfig(4, 32)),
        ({"sparse_attention": {}}, FixedSparsityConfig(4)),
    ],
)
def test_modes_and_defaults(block, pattern):
    assert from_deepspeed(block, 4) == pattern


def test_both_spellings_of_the_number_of_patterns():
    block = {"mode": "fixed", "different_layout_per_head": True, "num_differnt_global_patterns": 4}
    assert from_deepspeed(block, 16) == BERT_PATTERN
    assert from_deepspeed(block | {"num_different_global_patterns": 4}, 16) == BERT_PATTERN
    with pytest.raises(ValueError, match="give one of them"):
        from_deepspeed(block | {"num_different_global_patterns": 2}, 16)


def test_keys_of_other_modes_are_named_in_a_warning():
    block = BERT_EXAMPLE | {"num_random_blocks": 0, "num_sliding_window_blocks": 3}
    with pytest.warns(UserWarning, match="'fixed' does not use num_random_blocks, num_sliding_window_blocks"):
        assert from_deepspeed(block, 16) == BERT_PATTERN


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"mode": "longformer"},
            "mode must be one of dense, fixed, variable, bigbird, bslongformer, .*'longformer'",
        ),
        ({"mode": "fixed", "blok": 16}, "unknown keys 'blok'; mode 'fixed' allows mode, block,"),
        ({"mode": "fixed", "num_heads": 16}, "unknown keys 'num_heads'"),
        ({"mode": "fixed", "block": 0}, "block must be an integer of at least 1, got 0"),
        ({"train_batch_size": 8}, "config has no sparse_attention block .* its keys are train_batch_size"),
        ({}, "its keys are none"),
        ({"sparse_attention": None}, "sparse_attention must be a dictionary with a mode, got None"),
        ([], "config must hold a dictionary"),
    ],
)
def test_refused_configurations(config, message):
    with pytest.raises(ValueError, match=message):
        from_deepspeed(config, 4)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        from_deepspeed(tmp_path / "none.json", 4)
    path = tmp_path / "bad.json"
    path.write_text("{'mode': 'fixed'}")
    with pytest.raises(ValueError, match=r"the file .*bad.json is not JSON: Expecting property name"):
        from_deepspeed(path, 4)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"the file .*bad.json must hold a dictionary, got \[1\]"):
        from_deepspeed(path, 4)
