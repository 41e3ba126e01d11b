"""The parts of a run: what goes together, and what computes the attention."""

from types import SimpleNamespace

import pytest
import torch

from longspan.errors import ConfigError
from longspan.sparsity import FixedSparsityConfig
from longspan.training import build as building
from longspan.training.build import build


def test_the_backend_is_resolved_for_the_trainers_device(composed, monkeypatch):
    asked = []
    monkeypatch.setattr(building, "resolve_backend", lambda *given: asked.append(given) or "chosen")
    assert build(composed()).backend == "chosen"
    assert asked == [("auto", torch.device("cpu"))]


def test_a_backend_that_does_not_exist(composed):
    with pytest.raises(ConfigError, match=r"backend must be one of 'auto', 'torch', .*got 'cuda'"):
        build(composed("attention_backend=cuda"))


def test_the_name_and_the_folder(composed, tmp_path):
    run = build(composed("sparsity=fixed"), ["sparsity=fixed"])
    assert run.name == "clm llama fixed"
    assert (run.output_dir, run.overrides) == (tmp_path / "run", ("sparsity=fixed",))
    assert run.settings["sparsity"]["_target_"] == "longspan.sparsity.FixedSparsityConfig"
    assert not list(tmp_path.glob("run/*")), "nothing is written before the run starts"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=-1"], r"seed=-1 must lie in \[0, 2\*\*32\)"),
        (
            ["budget=flops", "budget.flops=1e12", "schedule=window", "schedule.window.stop=5"],
            "budget=flops does not go together",
        ),
        (["budget=tokens", "budget.tokens=1"], "budget: tokens=1 is less than the 256 that"),
        (["loss_chunk=0"], "loss_chunk must be at least 1"),
        (
            ["model=bert", "data.seq_len=256", "model.max_positions=128"],
            "more than the 128 positions of Bert",
        ),
    ],
)
def test_parts_that_do_not_go_together(composed, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build(composed(*overrides))


def test_patterns_of_another_direction_than_the_objective_warn(recwarn):
    causal, masked = SimpleNamespace(causal=True), SimpleNamespace(causal=False)
    backward = FixedSparsityConfig(2, 16, attention="unidirectional")
    both_ways = FixedSparsityConfig(2, 16, attention="bidirectional")
    building._warn_of_directions(causal, backward)
    building._warn_of_directions(causal, [None, backward])
    building._warn_of_directions(masked, both_ways)
    building._warn_of_directions(masked, [None, None])
    assert not recwarn.list
    with pytest.warns(UserWarning, match="fixed is unidirectional and the objective is masked"):
        building._warn_of_directions(masked, [None, backward])
    with pytest.warns(UserWarning, match="fixed is bidirectional and the objective causal"):
        building._warn_of_directions(causal, [None, both_ways])
