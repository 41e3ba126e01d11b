"""Architectures that `build_model` does not make: sparse all the same, through the attention interface."""

import pytest
import torch

import longspan
from longspan.models import sparsity_of
from longspan.models.layers import self_attention_layers
from longspan.sparsity import DenseSparsityConfig

HEADS, PAD, LENGTH = 4, 1, 45
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": HEADS,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
DISTILBERT = {"vocab_size": 40, "dim": 32, "n_layers": 4, "n_heads": HEADS, "hidden_dim": 16}
ARCHITECTURES = {
    "albert": ("AlbertForMaskedLM", "AlbertConfig", {**SIZES, "embedding_size": 16}),
    "albert of groups": (
        "AlbertForMaskedLM",
        "AlbertConfig",
        {**SIZES, "embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 2},
    ),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertConfig", {**DISTILBERT, "pad_token_id": PAD}),
    "electra": ("ElectraForMaskedLM", "ElectraConfig", {**SIZES, "embedding_size": 16}),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {**SIZES, "ffn_dim": 16, "word_embed_proj_dim": 32, "bos_token_id": 2, "eos_token_id": 3},
    ),
    "xlm-roberta": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", SIZES),
}
LAYERS = {"albert": 1, "albert of groups": 4}


def make(name: str):
    import transformers

    model_class, config_class, arguments = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**arguments))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return model.double().eval()


@pytest.fixture(params=ARCHITECTURES)
def name(request) -> str:
    return request.param


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(4, 40, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def attention_of(name: str) -> str:
    return "unidirectional" if name == "opt" else "bidirectional"


@torch.no_grad()
def test_dense_is_the_stock_model(name, ids):
    expected = make(name)(ids).logits
    model = longspan.sparsify(make(name), DenseSparsityConfig(HEADS, 8, attention=attention_of(name)))
    assert len(self_attention_layers(model)) == LAYERS.get(name, 4)
    torch.testing.assert_close(model(ids).logits, expected)


@torch.no_grad()
def test_dense_with_padding_is_the_stock_model(name, ids):
    ids[0, 30:] = PAD
    mask = (ids != PAD).long()
    expected = make(name)(ids, attention_mask=mask).logits
    model = longspan.sparsify(make(name), DenseSparsityConfig(HEADS, 8, attention=attention_of(name)))
    found = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask == 1], expected[mask == 1])


@torch.no_grad()
def test_a_pattern_is_its_dense_mask(name, ids, kit, pattern_name):
    pattern = kit.make_pattern(pattern_name, attention_of(name))
    mask = kit.additive(kit.token_mask(pattern, LENGTH, name == "opt"))
    if name == "opt":
        # It counts positions along a mask [batch, keys], and takes no other without position ids.
        positions = torch.arange(LENGTH)[None]
        expected = make(name)(ids, attention_mask=mask, position_ids=positions).logits
    else:
        expected = make(name)(ids, attention_mask=mask).logits
    torch.testing.assert_close(longspan.sparsify(make(name), pattern)(ids).logits, expected)


@torch.no_grad()
def test_saved_and_loaded(name, ids, kit, tmp_path):
    model = longspan.sparsify(make(name), kit.make_pattern("bigbird", attention_of(name)))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="longspan")
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


@torch.no_grad()
def test_a_pattern_for_each_layer(name, ids, kit, tmp_path):
    layers = LAYERS.get(name, 4)
    patterns = [kit.make_pattern("bigbird", attention_of(name)), None, None, None][:layers]
    model = longspan.sparsify(make(name), patterns)
    assert [pattern.name for pattern in sparsity_of(model.config)] == ["bigbird", "dense", "dense", "dense"][
        :layers
    ]
    logits = model(ids).logits
    one = longspan.sparsify(make(name), patterns[0])(ids).logits
    assert (layers == 1) == torch.equal(logits, one)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="longspan")
    if name in ("distilbert", "albert of groups"):
        with pytest.raises(ValueError, match=r"do not know their number.*longspan\.sparsify"):
            loaded(ids)
        longspan.sparsify(loaded, sparsity_of(loaded.config))
    torch.testing.assert_close(loaded(ids).logits, logits)


def test_another_number_of_patterns_than_layers_with_weights():
    with pytest.raises(ValueError, match="one pattern or 1, one per layer; got 4"):
        longspan.sparsify(make("albert"), [None] * 4)


def test_gradients(name, ids, kit):
    model = longspan.sparsify(make(name), kit.make_pattern("bslongformer", attention_of(name))).train()
    model(ids).logits.square().mean().backward()
    for layer in self_attention_layers(model):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
