"""What a batch costs while patterns, lengths and scored positions change."""

import pytest
import torch

from longspan import DenseSparsityConfig, LocalSlidingWindowSparsityConfig, sparsify
from longspan.analysis.flops import layouts_of, training_flops
from longspan.data import MaskedLanguageModeling
from longspan.models import build_model
from longspan.training.module import LongspanModule
from longspan.training.optim import AdamW
from longspan.training.performance import step_flops
from longspan.training.performance.step_flops import StepFlops

LOCAL, DENSE = LocalSlidingWindowSparsityConfig(2, 4), DenseSparsityConfig(2, 4)


def model_of(*patterns):
    return sparsify(build_model("bert", "mlm", 20, 32, 8, 2, 2), list(patterns))


def test_layouts_are_those_of_the_model_now():
    model = model_of(LOCAL, None)
    assert layouts_of(model, 24)[0] == LOCAL.layout(24)
    assert (
        training_flops(model, layouts_of(model, 24), 24, 1).total
        < training_flops(model, [None] * 2, 24, 1).total
    )
    assert layouts_of(build_model("bert", "mlm", 20, 32, 8, 2, 2), 24) == [None, None]


def test_patterns_and_lengths_may_change(monkeypatch):
    traced = []
    trace = step_flops.trace
    monkeypatch.setattr(step_flops, "trace", lambda *given: traced.append(given) or trace(*given))
    model = model_of(LOCAL, LOCAL)
    count = StepFlops(model)
    both = [LOCAL.layout(24)] * 2
    assert count(3, 24) == count(3, 24) == training_flops(model, both, 24, 3)
    assert len(traced) == 1
    model.bert.encoder.layer[1].attention.self.sparse_self_attention.sparsity_config = DENSE
    assert count(3, 24) == training_flops(model, [LOCAL.layout(24), None], 24, 3)
    assert count(3, 16) == training_flops(model, [LOCAL.layout(16), None], 16, 3)
    model.bert.encoder.layer[1].attention.self.sparse_self_attention.sparsity_config = LOCAL
    assert count(3, 24) == training_flops(model, both, 24, 3)


@pytest.mark.parametrize("scored", [0, 1, 7, 72])
def test_scored_positions(scored):
    model = model_of(LOCAL, LOCAL)
    layouts = layouts_of(model, 24)
    got = StepFlops(model)(3, 24, scored)
    if scored:
        assert got == training_flops(model, layouts, 24, 3, scored=scored / 72)
    head = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("cls"))
    head += 20 * 8  # tied to the embedding
    whole = training_flops(model, layouts, 24, 3)
    assert whole.total - got.total == whole.dense - got.dense == 6 * head * (72 - scored)


def test_the_module_says_how_many_positions_had_logits():
    model = model_of(LOCAL, LOCAL)
    labels = torch.full((3, 24), -100)
    labels[1, :5] = 3
    batch = {"input_ids": torch.ones(3, 24, dtype=torch.int64), "labels": labels}
    for chunk, expected in ((None, None), (2, 5)):
        module = LongspanModule(model, MaskedLanguageModeling(), AdamW(), loss_chunk=chunk)
        module.loss(batch)
        assert module.scored_positions == expected
