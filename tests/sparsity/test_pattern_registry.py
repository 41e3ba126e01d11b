"""Names of patterns, patterns from dictionaries, and patterns of one's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from longspan.sparsity import PATTERNS, BigBirdSparsityConfig, SparsityConfig, from_dict, register, registry

DEEPSPEED = ("dense", "fixed", "variable", "bigbird", "bslongformer", "local_sliding_window")
OF_PAPERS = ("strided", "dilated", "attention_sinks", "a_shape", "vertical_slash", "random", "hierarchical")


def test_names():
    assert list(PATTERNS) == [*DEEPSPEED, *OF_PAPERS, "union", "intersection", "difference", "heads"]
    assert all(PATTERNS[name].name == name for name in PATTERNS)
    with pytest.raises(TypeError):
        PATTERNS["mine"] = BigBirdSparsityConfig


@pytest.mark.parametrize("name", [*DEEPSPEED, *OF_PAPERS])
def test_a_dictionary_survives_json(name):
    pattern = PATTERNS[name](4, 32)
    values = pattern.to_dict()
    assert values["name"] == name
    assert json.loads(json.dumps(values)) == values
    assert from_dict(json.loads(json.dumps(values))) == pattern


def test_the_dictionary_holds_every_argument():
    assert BigBirdSparsityConfig(2, seed=3).to_dict() == {
        "name": "bigbird",
        "num_heads": 2,
        "block": 16,
        "different_layout_per_head": False,
        "num_random_blocks": 1,
        "num_sliding_window_blocks": 3,
        "num_global_blocks": 1,
        "attention": "bidirectional",
        "seed": 3,
    }
    assert "different_layout_per_head" not in PATTERNS["local_sliding_window"](2).to_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 4}, "name must be one of dense, fixed, .* got None"),
        ({"name": "bigbard", "num_heads": 4}, "name must be one of dense, .*bigbird.* got 'bigbard'"),
        ({"name": "dense", "num_heads": 4, "blok": 3}, "no argument 'blok'; allowed are num_heads, block,"),
        ({"name": "bigbird"}, "bigbird needs num_heads"),
        (
            {"name": "local_sliding_window", "num_heads": 4, "different_layout_per_head": False},
            "no argument 'different_layout_per_head'",
        ),
        ("bigbird", "made from a dictionary"),
    ],
)
def test_refused_dictionaries(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(values)


@dataclass(frozen=True)
class Diagonal(SparsityConfig):
    attention: str = "bidirectional"
    name: ClassVar[str] = "diagonal"

    def intervals(self, rows, num_blocks, head):
        return rows[:, None], rows[:, None] + 1


def test_a_pattern_of_ones_own(monkeypatch):
    monkeypatch.setattr(registry, "_patterns", dict(PATTERNS))
    register("diagonal", Diagonal)
    register("diagonal", Diagonal)  # once more changes nothing
    pattern = from_dict({"name": "diagonal", "num_heads": 2})
    assert pattern == Diagonal(2)
    assert (pattern.make_layout(50).numpy() == np.eye(4)).all()


def test_refused_registrations():
    with pytest.raises(
        ValueError, match="name must be the class's own `name`, 'diagonal' of Diagonal, got 'line'"
    ):
        register("line", Diagonal)
    with pytest.raises(ValueError, match="subclass of SparsityConfig, got <class 'int'>"):
        register("int", int)

    class Impostor(Diagonal):
        name: ClassVar[str] = "bigbird"

    with pytest.raises(ValueError, match="'bigbird' already belongs to BigBirdSparsityConfig"):
        register("bigbird", Impostor)
    assert PATTERNS["bigbird"] is BigBirdSparsityConfig
