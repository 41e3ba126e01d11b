"""FLOPs of a step against torch's own count of a real step, and against masks of tokens."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AlbertConfig, AlbertForMaskedLM
from transformers.pytorch_utils import Conv1D

from longspan import BigBirdSparsityConfig, DenseSparsityConfig, FixedSparsityConfig, sparsify
from longspan.analysis.flops import training_flops
from longspan.deepspeed.layer_lists import sparsify_layers
from longspan.models import build_model
from longspan.positions.extend import extend

HEADS, BLOCK, LENGTH, BATCH, VOCABULARY, WIDTH, LAYERS = 4, 8, 45, 2, 40, 32, 3
LOCAL = 20  # ModernBERT's window: as many tokens on either side as half of it
ARCHITECTURES = [
    ("bert", "mlm"),
    ("bert", "clm"),
    ("roberta", "mlm"),
    ("modernbert", "mlm"),
    ("modernbert", "clm"),
    ("gpt2", "clm"),
    ("llama", "clm"),
]


def make_model(architecture, objective, **arguments):
    return build_model(
        architecture,
        objective,
        VOCABULARY,
        64,
        WIDTH,
        LAYERS,
        HEADS,
        num_kv_heads=2 if architecture == "llama" else None,
        pad_token_id=36,
        bos_token_id=37,
        eos_token_id=38,
        config_overrides={"local_attention": LOCAL} if architecture == "modernbert" else None,
        **arguments,
    )


def windows(architecture):
    """How far each layer of its own sees: every third of ModernBERT's everything."""
    return [LOCAL // 2 if architecture == "modernbert" and layer % 3 else LENGTH for layer in range(LAYERS)]


def step_counted_by_torch(model):
    """A real step whose attention is two products over all pairs, masked or not."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(BATCH, LENGTH, dtype=torch.int64)).logits.sum().backward()
    return counter.get_total_flops()


def of_pairs(pairs):
    """Forward and backward over so many pairs of all heads: six products of a head's width."""
    return 6 * 2 * BATCH * (WIDTH // HEADS) * pairs


@pytest.mark.parametrize(("architecture", "objective"), ARCHITECTURES)
def test_dense_is_what_torch_counts_but_for_what_is_masked(architecture, objective):
    model = make_model(architecture, objective)
    counted = training_flops(model, [None] * LAYERS, LENGTH, BATCH)
    position = torch.arange(LENGTH)
    distance = position[:, None] - position[None, :]
    masked = sum(
        HEADS * int(((distance.abs() > window) | ((objective == "clm") & (distance < 0))).sum())
        for window in windows(architecture)
    )
    if (architecture, objective) == ("modernbert", "clm"):
        # Its window counts the query itself, and holds half of `local_attention`.
        causal_window = model.config.sliding_window
        seen = [int(((distance >= 0) & (distance < causal_window)).sum()), int((distance >= 0).sum())]
        masked = HEADS * sum(LENGTH**2 - seen[layer % 3 == 0] for layer in range(LAYERS))
    assert counted.total == counted.dense
    assert counted.dense == step_counted_by_torch(model) - of_pairs(masked)


@pytest.mark.parametrize(("architecture", "objective"), ARCHITECTURES[:-3] + ARCHITECTURES[-2:])
def test_sparse_is_the_layers_and_the_kept_pairs(architecture, objective):
    model = make_model(architecture, objective)
    attention = "unidirectional" if objective == "clm" else "bidirectional"
    patterns = [
        BigBirdSparsityConfig(HEADS, BLOCK, True, 1, 1, attention=attention),
        None,
        FixedSparsityConfig(HEADS, BLOCK, num_local_blocks=2, attention=attention),
    ]
    layouts = [None if pattern is None else pattern.layout(LENGTH) for pattern in patterns]
    before = training_flops(model, layouts, LENGTH, BATCH)
    if architecture != "modernbert":
        position = torch.arange(LENGTH)
        every = torch.ones(HEADS, LENGTH, LENGTH, dtype=torch.bool)
        kept = [
            every if one is None else one.to_dense().bool()[:, position[:, None] // BLOCK, position // BLOCK]
            for one in layouts
        ]
        seen = sum(int((mask.tril() if objective == "clm" else mask).sum()) for mask in kept)
        weights = sum(
            module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear | Conv1D)
        )
        assert before.total == 6 * BATCH * LENGTH * weights + of_pairs(seen)
        assert before.total < before.dense == training_flops(model, [None] * LAYERS, LENGTH, BATCH).dense
    # A model that is sparse already, and recomputes its layers, takes the same.
    again = sparsify(make_model(architecture, objective, gradient_checkpointing=True), patterns)
    assert training_flops(again, layouts, LENGTH, BATCH) == before


def test_a_window_of_the_model_meets_the_pattern():
    model = make_model("modernbert", "mlm")
    layout = BigBirdSparsityConfig(HEADS, BLOCK, True, 1, 1).layout(LENGTH)
    dense = layout.to_dense()
    pairs = 0
    for window in windows("modernbert"):
        for h, i, j in itertools.product(range(HEADS), range(LENGTH), range(LENGTH)):
            pairs += abs(i - j) <= window and int(dense[h, i // BLOCK, j // BLOCK])
    empty = training_flops(model, [None] * LAYERS, LENGTH, BATCH)
    sparse = training_flops(model, [layout] * LAYERS, LENGTH, BATCH)
    near = [
        HEADS * sum(abs(i - j) <= w for i in range(LENGTH) for j in range(LENGTH))
        for w in windows("modernbert")
    ]
    assert sparse.dense == empty.dense
    assert sparse.dense - sparse.total == of_pairs(sum(near) - pairs)


def test_a_causal_layer_sees_nothing_ahead_under_a_bidirectional_pattern():
    model = make_model("gpt2", "clm")
    both = [
        training_flops(
            model, [DenseSparsityConfig(HEADS, BLOCK, attention=attention).layout(LENGTH)] * 3, 45, 1
        )
        for attention in ("unidirectional", "bidirectional")
    ]
    assert both[0] == both[1]
    assert both[0].total == both[0].dense


def test_a_unidirectional_pattern_is_compared_with_the_causal_half():
    model = make_model("bert", "mlm")
    layout = DenseSparsityConfig(HEADS, BLOCK, attention="unidirectional").layout(LENGTH)
    causal = training_flops(model, [layout] * LAYERS, LENGTH, BATCH)
    full = training_flops(model, [None] * LAYERS, LENGTH, BATCH)
    assert causal.total == causal.dense
    above = LENGTH * (LENGTH - 1) // 2
    assert full.total - causal.total == of_pairs(LAYERS * HEADS * above)


def test_layers_that_share_weights_count_at_each_use():
    config = AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=16, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    model = AlbertForMaskedLM(config)
    counted = training_flops(model, [None], LENGTH, BATCH)
    assert counted.total == step_counted_by_torch(model)
    assert counted.total > training_flops(AlbertForMaskedLM(config), [None], LENGTH, 1).total * 1.99


@pytest.mark.parametrize("trained", ["attention", "cls", "layer.2"])
def test_what_is_frozen_costs_no_gradient(trained):
    model = make_model("bert", "mlm")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trained in name
    counted = training_flops(model, [None] * LAYERS, LENGTH, BATCH)
    everything = training_flops(make_model("bert", "mlm"), [None] * LAYERS, LENGTH, BATCH)
    assert counted.total == step_counted_by_torch(model) < everything.total


@pytest.mark.parametrize(("architecture", "objective"), [("llama", "clm"), ("modernbert", "mlm")])
def test_positions_that_follow_the_length_cost_what_others_do(architecture, objective):
    found = [
        training_flops(extend(make_model(architecture, objective), 128, method), [None] * LAYERS, 128, 1)
        for method in ("dynamic", "linear")
    ]
    assert found[0] == found[1]


def test_replaced_layers_of_bert():
    model = make_model("bert", "mlm")
    pattern = BigBirdSparsityConfig(HEADS, BLOCK, True, 1, 1)
    layouts = [pattern.layout(LENGTH)] * LAYERS
    before = training_flops(model, layouts, LENGTH, BATCH)
    sparsify_layers(model.config, model.bert.encoder.layer, pattern)
    assert training_flops(model, layouts, LENGTH, BATCH) == before


def test_a_head_on_some_positions():
    model = make_model("llama", "clm")
    whole = training_flops(model, [None] * LAYERS, LENGTH, BATCH)
    some = training_flops(model, [None] * LAYERS, LENGTH, BATCH, scored=0.2)
    assert whole.total - some.total == 6 * VOCABULARY * WIDTH * (90 - 18)
    assert whole.dense - some.dense == whole.total - some.total


def test_the_model_is_left_as_it_is():
    model = sparsify(make_model("gpt2", "clm"), DenseSparsityConfig(HEADS, BLOCK, attention="unidirectional"))
    model.compile()
    modules, state = dict(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    training_flops(model, [None] * LAYERS, LENGTH, BATCH)
    assert dict(model.named_modules()) == modules
    assert model.config._attn_implementation == "longspan"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_module_without_attention():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

        def forward(self, input_ids):
            return type("Output", (), {"logits": self.head(self.embedding(input_ids))})

    counted = training_flops(Plain(), [], 5, 3)
    assert counted.total == counted.dense == 6 * 4 * 7 * 15


def test_refuses():
    model = make_model("bert", "mlm")
    layout = DenseSparsityConfig(HEADS, BLOCK).layout(LENGTH)
    with pytest.raises(ValueError, match="one for each of the 3 attention layers, got 2"):
        training_flops(model, [layout] * 2, LENGTH, 1)
    with pytest.raises(ValueError, match="64 queries and 64 keys need"):
        training_flops(model, [layout] * 3, 64, 1)
    with pytest.raises(ValueError, match="the layout has 2 heads, but the model has 4"):
        training_flops(model, [DenseSparsityConfig(2, BLOCK).layout(LENGTH)] * 3, LENGTH, 1)
    for arguments in ((0, 1), (8, 0), (8, 1, 0.0), (8, 1, 1.5)):
        with pytest.raises(ValueError, match="must"):
            training_flops(model, [None] * 3, *arguments)
