"""Reach and causality held against the gradients of real attention layers and models."""

import pytest
import torch
from torch import nn

from longspan.analysis.causality import leaks, model_seen_by_gradients, predicted, seen_by_gradients
from longspan.analysis.reach import reach
from longspan.attention import SparseSelfAttention
from longspan.models import build_model, sparsify
from longspan.sparsity import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    VariableSparsityConfig,
)

HEADS, BLOCK, LENGTH = 2, 4, 46  # the last block is short


def patterns(direction: str) -> list:
    common = {"num_heads": HEADS, "block": BLOCK, "attention": direction}
    return [
        BigBirdSparsityConfig(**common, different_layout_per_head=True),
        BSLongformerSparsityConfig(**common),
        FixedSparsityConfig(**common),
        LocalSlidingWindowSparsityConfig(**common),
        VariableSparsityConfig(**common, num_random_blocks=1),
    ]


class Stack(nn.Module):
    """Residual layers of SparseSelfAttention, whose output projection mixes the heads, and nothing else."""

    def __init__(self, layers, dim=8):
        super().__init__()
        self.attention = nn.ModuleList(SparseSelfAttention(pattern, backend="torch") for pattern in layers)
        self.inward = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in layers)
        self.outward = nn.ModuleList(nn.Linear(dim, dim) for _ in layers)
        self.double()

    def forward(self, hidden):
        for attention, inward, outward in zip(self.attention, self.inward, self.outward, strict=True):
            parts = inward(hidden).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            hidden = hidden + outward(attention(*parts).transpose(1, 2).flatten(2))
        return hidden


def test_a_stack_of_layers_sees_what_reach_says(oracle):
    torch.manual_seed(0)
    for direction in ("unidirectional", "bidirectional"):
        one = patterns(direction)
        for layers in ([one[0]] * 2, [one[3]] * 3, [one[2], one[3]], [one[4], one[1], one[0]]):
            layouts = [pattern.layout(LENGTH) for pattern in layers]
            inputs = torch.randn(LENGTH, 8, dtype=torch.float64)
            seen = seen_by_gradients(Stack(layers), inputs)
            assert torch.equal(seen, predicted(reach(layouts, LENGTH)))
            assert torch.equal(seen, torch.from_numpy(oracle.token_reach(layouts, LENGTH, None)[-1]))
            assert bool(leaks(seen)) == (direction == "bidirectional")


def test_layers_of_other_blocks_and_directions_see_what_reach_says():
    torch.manual_seed(0)
    layers = [
        LocalSlidingWindowSparsityConfig(num_heads=HEADS, block=6, attention="unidirectional"),
        LocalSlidingWindowSparsityConfig(num_heads=HEADS, block=4, attention="bidirectional"),
        FixedSparsityConfig(num_heads=HEADS, block=2, attention="unidirectional"),
    ]
    found = reach([pattern.layout(LENGTH) for pattern in layers], LENGTH)
    assert (found.block, found.causal) == (2, False)
    inputs = torch.randn(LENGTH, 8, dtype=torch.float64)
    assert torch.equal(seen_by_gradients(Stack(layers), inputs), predicted(found))


@pytest.mark.parametrize(
    ("architecture", "objective"),
    [("llama", "clm"), ("gpt2", "clm"), ("bert", "clm"), ("bert", "mlm"), ("roberta", "mlm")],
)
def test_a_model_sees_what_reach_says(architecture, objective):
    torch.manual_seed(0)
    causal = objective == "clm"
    direction = "unidirectional" if causal else "bidirectional"
    model = build_model(
        architecture,
        objective,
        vocab_size=19,
        max_positions=64,
        hidden_size=16,
        num_layers=3,
        num_heads=HEADS,
        intermediate_size=16,
        pad_token_id=0,
    ).double()
    layers = [patterns(direction)[3], patterns(direction)[0], patterns(direction)[3]]
    sparsify(model, layers)
    outputs = [0, 1, 13, 24, 40, 44, 45]
    seen = model_seen_by_gradients(model, LENGTH, outputs)
    found = reach([pattern.layout(LENGTH) for pattern in layers], LENGTH, causal or None)
    assert torch.equal(seen, predicted(found, outputs))
    assert bool(leaks(seen, outputs)) != causal
    assert not seen.all()
    assert model.training


def test_a_causal_model_with_a_bidirectional_pattern_does_not_look_ahead():
    torch.manual_seed(0)
    sizes = {"vocab_size": 19, "max_positions": 64, "hidden_size": 16, "num_layers": 2, "num_heads": HEADS}
    model = build_model("llama", "clm", intermediate_size=16, **sizes).double()
    pattern = patterns("bidirectional")[1]
    sparsify(model, pattern)
    seen = model_seen_by_gradients(model, LENGTH)
    assert not leaks(seen)
    assert torch.equal(seen, predicted(reach([pattern.layout(LENGTH)] * 2, LENGTH, causal=True)))


def test_leaks_are_found():
    seen = seen_by_gradients(lambda x: x + x.roll(-2, dims=1) * 0.5, torch.randn(6, 3), [0, 2, 5])
    assert leaks(seen, [0, 2, 5]) == [(0, 2), (2, 4)]
    assert seen[2].tolist() == [False, True, False, False, False, True]  # 5 + 2 comes round to 1
    dense = Stack([DenseSparsityConfig(num_heads=HEADS, block=BLOCK, attention="bidirectional")])
    assert len(leaks(seen_by_gradients(dense, torch.randn(9, 8, dtype=torch.float64)))) == 36


def test_refusals():
    with pytest.raises(ValueError, match=r"outputs must lie in \[0, 4\), got 4"):
        seen_by_gradients(lambda x: x, torch.randn(4, 2), [4])
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        seen_by_gradients(lambda x: x, torch.randn(4, 2), chunk=0)
    with pytest.raises(ValueError, match=r"must return \[batch, length, any\]"):
        seen_by_gradients(lambda x: x.sum(1), torch.randn(4, 2))
    with pytest.raises(ValueError, match="not finite"):
        seen_by_gradients(lambda x: x / 0, torch.randn(4, 2))
