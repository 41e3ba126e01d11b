"""SparseAttentionUtils on every architecture it names: values, gradients, modes, saving."""

import pytest
import torch
import transformers
from torch.testing import assert_close

from longspan import (
    BertSparseSelfAttention,
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    SparseAttentionUtils,
    sparsify,
)
from longspan.models import position_offset, sparsity_of
from longspan.positions import max_positions_of

HEADS, BLOCK, VOCABULARY, PAD, POSITIONS = 4, 8, 60, 1, 48
LENGTH = 93  # longer than what the models are made for, and no multiple of the block

_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 16}
_POSITIONS = {"max_position_embeddings": POSITIONS}
_ROBERTA = {**_BERT, "max_position_embeddings": POSITIONS + PAD + 1}
_LLAMA = {**_BERT, **_POSITIONS, "num_key_value_heads": 2}
_DISTIL = {"dim": 32, "n_layers": 2, "n_heads": HEADS, "hidden_dim": 16}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": HEADS, "n_positions": POSITIONS}
_OPT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS, "ffn_dim": 16}
_MODERN = {"local_attention": 20, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
# The class of the model, that of its configuration, and the configuration's fields.
ARCHITECTURES = {
    "bert": ("BertForMaskedLM", "BertConfig", {**_BERT, **_POSITIONS}),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", _ROBERTA),
    "xlm-roberta": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", _ROBERTA),
    "electra": ("ElectraForMaskedLM", "ElectraConfig", {**_BERT, **_POSITIONS, "embedding_size": 16}),
    "albert": (
        "AlbertForMaskedLM",
        "AlbertConfig",
        {**_BERT, **_POSITIONS, "embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2},
    ),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertConfig", {**_DISTIL, **_POSITIONS}),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", {**_BERT, **_POSITIONS, **_MODERN}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "opt": ("OPTForCausalLM", "OPTConfig", {**_OPT, **_POSITIONS, "word_embed_proj_dim": 32}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
}
CAUSAL = ("gpt2", "opt", "llama")
ROTARY = ("modernbert", "llama")
OF_BERTS_FORM = ("bert", "roberta", "xlm-roberta", "electra")


def make(architecture: str, **fields):
    """A tiny model in float64, in evaluation mode, whose attention matters to its logits."""
    model_class, config_class, sizes = ARCHITECTURES[architecture]
    config = getattr(transformers, config_class)(
        vocab_size=VOCABULARY, pad_token_id=PAD, **{**sizes, **fields}
    )
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return model.double().eval()


def direction(architecture: str) -> str:
    return "unidirectional" if architecture in CAUSAL else "bidirectional"


def bigbird(architecture: str):
    return BigBirdSparsityConfig(
        HEADS, BLOCK, True, num_sliding_window_blocks=1, attention=direction(architecture)
    )


def tokens(length: int = LENGTH):
    """Two sequences without special tokens."""
    return torch.randint(4, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))


def dense_mask(architecture: str, pattern, length: int):
    """The pattern spelled out over tokens, in the additive form that stock models take."""
    blocks = pattern.layout(length).to_dense().bool()
    keep = blocks.repeat_interleave(pattern.block, 1).repeat_interleave(pattern.block, 2)[:, :length, :length]
    if architecture in CAUSAL:
        keep = keep.tril()

    def added(mask):
        zeros = torch.zeros(mask.shape, dtype=torch.float64)
        return zeros.masked_fill(~mask, torch.finfo(torch.float64).min)[None]

    if architecture != "modernbert":
        return added(keep)
    near = (torch.arange(length)[:, None] - torch.arange(length)).abs() <= _MODERN["local_attention"] // 2
    return {"full_attention": added(keep), "sliding_attention": added(keep & near)}


def under_mask(architecture: str, stock, pattern, ids):
    """Logits of the stock model under the pattern's mask."""
    mask = dense_mask(architecture, pattern, ids.shape[1])
    # OPT counts positions in a padding mask, and knows no other.
    positions = {"position_ids": torch.arange(ids.shape[1])[None]} if architecture == "opt" else {}
    return stock(ids, attention_mask=mask, **positions).logits


def layers_of(architecture: str, model):
    """The list of layers that the original was handed."""
    base = model.base_model
    return {
        "albert": lambda: base.encoder.albert_layer_groups,
        "distilbert": lambda: base.transformer.layer,
        "gpt2": lambda: base.h,
        "opt": lambda: base.decoder.layers,
        "modernbert": lambda: base.layers,
        "llama": lambda: base.layers,
    }.get(architecture, lambda: base.encoder.layer)()


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request) -> str:
    return request.param


@pytest.fixture(params=OF_BERTS_FORM)
def berts(request) -> str:
    return request.param


@pytest.mark.filterwarnings("ignore:.*positions")
class TestAWholeModel:
    def test_is_its_long_dense_self_under_the_patterns_mask(self, architecture):
        pattern, ids = bigbird(architecture), tokens()
        stock = SparseAttentionUtils.extend_position_embedding(make(architecture), LENGTH)
        model = SparseAttentionUtils.replace_model_self_attention_with_sparse_self_attention(
            make(architecture), LENGTH, pattern
        )
        with torch.no_grad():
            expected = under_mask(architecture, stock, pattern, ids)
            dense = stock(ids).logits
            sparse = model(ids).logits
        assert_close(sparse, expected)
        assert not torch.allclose(sparse, dense, atol=1e-3)

    def test_all_its_gradients_are_those_of_masked_dense_attention(self, architecture):
        pattern, ids = bigbird(architecture), tokens()
        stock = SparseAttentionUtils.extend_position_embedding(make(architecture), LENGTH)
        model = SparseAttentionUtils.replace_model_self_attention_with_sparse_self_attention(
            make(architecture), LENGTH, pattern
        )
        weight = torch.randn(2, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(2)).double()
        (model(ids).logits * weight).sum().backward()
        (under_mask(architecture, stock, pattern, ids) * weight).sum().backward()
        expected = dict(stock.named_parameters())
        for name, parameter in model.named_parameters():
            if expected[name].grad is not None:
                assert_close(parameter.grad, expected[name].grad)
        assert any(expected[name].grad is not None for name in expected if "position" in name) or (
            architecture in (*ROTARY, "gpt2")
        )

    def test_keeps_mode_parameters_and_names(self, architecture):
        model = make(architecture)
        names, inputs = list(model.state_dict()), model.get_input_embeddings()
        model.train()
        model.get_output_embeddings().eval()
        same = SparseAttentionUtils.replace_model_self_attention_with_sparse_self_attention(
            model, LENGTH, bigbird(architecture)
        )
        assert same is model
        assert list(model.state_dict()) == names
        assert model.get_input_embeddings() is inputs
        assert model.training
        assert not model.get_output_embeddings().training

    def test_has_the_default_pattern_of_its_heads_and_direction(self, architecture):
        model = SparseAttentionUtils.replace_model_self_attention_with_sparse_self_attention(
            make(architecture), LENGTH
        )
        expected = FixedSparsityConfig(HEADS, attention=direction(architecture))
        assert set(sparsity_of(model.config)) == {expected}

    def test_never_loses_positions(self, architecture):
        ids = tokens(POSITIONS)
        model = make(architecture)
        with torch.no_grad():
            before = model(ids).logits
            SparseAttentionUtils.replace_model_self_attention_with_sparse_self_attention(
                model, BLOCK, DenseSparsityConfig(HEADS, BLOCK)
            )
            assert_close(model(ids).logits, before)

    def test_is_sparse_again_after_saving(self, architecture, tmp_path):
        ids = tokens()
        model = SparseAttentionUtils.replace_model_self_attention_with_sparse_self_attention(
            make(architecture), LENGTH, bigbird(architecture)
        )
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path, attn_implementation="longspan", dtype=torch.float64)
        with torch.no_grad():
            assert_close(again(ids).logits, model(ids).logits)

    def test_with_heads_unlike_the_patterns_is_refused_and_stays_as_it_was(self, architecture):
        model = make(architecture)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=r"num_heads=3.*4 heads"):
            SparseAttentionUtils.replace_model_self_attention_with_sparse_self_attention(
                model, LENGTH, DenseSparsityConfig(3)
            )
        assert model.config._attn_implementation != "longspan"
        assert_close(dict(model.state_dict()), before)


class TestLayers:
    def test_are_the_dense_ones_under_the_patterns_mask(self, architecture):
        length, pattern = POSITIONS - 3, bigbird(architecture)
        ids, stock, model = tokens(length), make(architecture), make(architecture)
        layers = layers_of(architecture, model)
        replace = SparseAttentionUtils.replace_self_attention_layer_with_sparse_self_attention_layer
        assert replace(model.config, layers, pattern) is layers
        with torch.no_grad():
            expected = under_mask(architecture, stock, pattern, ids)
            assert_close(model(ids).logits, expected)
        assert sparsity_of(model.config) == [pattern] * len(sparsity_of(model.config))

    def test_of_berts_form_become_bert_sparse_self_attention_with_the_trained_projections(self, berts):
        model = make(berts)
        before = [layer.attention.self for layer in layers_of(berts, model)]
        parameters = dict(model.named_parameters())
        model.train()
        before[1].eval()
        SparseAttentionUtils.replace_self_attention_layer_with_sparse_self_attention_layer(
            model.config, layers_of(berts, model), bigbird(berts)
        )
        for old, layer in zip(before, layers_of(berts, model), strict=True):
            new = layer.attention.self
            assert isinstance(new, BertSparseSelfAttention)
            assert (new.query, new.key, new.value) == (old.query, old.key, old.value)
            assert new.training is old.training
        assert {name: id(one) for name, one in model.named_parameters()} == {
            name: id(one) for name, one in parameters.items()
        }

    def test_pass_gradients_on_to_the_trained_projections(self, architecture):
        model, pattern = make(architecture), bigbird(architecture)
        SparseAttentionUtils.replace_self_attention_layer_with_sparse_self_attention_layer(
            model.config, layers_of(architecture, model), pattern
        )
        stock, ids = make(architecture), tokens(POSITIONS)
        model(ids).logits.square().sum().backward()
        under_mask(architecture, stock, pattern, ids).square().sum().backward()
        expected = {name: one.grad for name, one in stock.named_parameters() if one.grad is not None}
        assert_close({name: one.grad for name, one in model.named_parameters() if name in expected}, expected)

    def test_some_of_them(self, berts, tmp_path):
        model, other, ids = make(berts), make(berts), tokens(POSITIONS)
        SparseAttentionUtils.replace_self_attention_layer_with_sparse_self_attention_layer(
            model.config, layers_of(berts, model)[1:], bigbird(berts)
        )
        sparsify(other, [None, bigbird(berts)])
        padding = torch.arange(POSITIONS) < torch.tensor([[30], [POSITIONS]])
        with torch.no_grad():
            expected = other(ids, attention_mask=padding).logits
            assert_close(model(ids, attention_mask=padding).logits[padding], expected[padding])
            model.save_pretrained(tmp_path)
            again = type(model).from_pretrained(tmp_path, attn_implementation="longspan", dtype=torch.float64)
            assert_close(again(ids, attention_mask=padding).logits[padding], expected[padding])

    def test_replaced_again_have_the_new_pattern_and_keep_their_dropout(self, berts):
        model, other, ids = make(berts), make(berts), tokens(POSITIONS)
        replace = SparseAttentionUtils.replace_self_attention_layer_with_sparse_self_attention_layer
        replace(model.config, layers_of(berts, model), bigbird(berts))
        replace(model.config, layers_of(berts, model), BSLongformerSparsityConfig(HEADS, BLOCK))
        sparsify(other, BSLongformerSparsityConfig(HEADS, BLOCK))
        with torch.no_grad():
            assert_close(model(ids).logits, other(ids).logits)
        sparsify(model, bigbird(berts))
        sparsify(other, bigbird(berts))
        with torch.no_grad():
            assert_close(model(ids).logits, other(ids).logits)
        attention = layers_of(berts, model)[0].attention.self
        assert attention.sparse_self_attention.dropout_p == 0.1

    def test_of_a_decoder_stay_causal(self):
        model = make("bert", is_decoder=True)
        config = model.config
        decoder = transformers.BertLMHeadModel(config).double().eval()
        SparseAttentionUtils.replace_self_attention_layer_with_sparse_self_attention_layer(
            config, decoder.bert.encoder.layer, DenseSparsityConfig(HEADS, BLOCK)
        )
        ids = tokens(POSITIONS)
        changed = ids.clone()
        changed[:, 20:] = 5
        with torch.no_grad():
            assert_close(decoder(changed).logits[:, :20], decoder(ids).logits[:, :20])

    @pytest.mark.parametrize("architecture", ["distilbert", "albert"])
    def test_that_do_not_know_their_index_must_be_all(self, architecture):
        model = make(architecture)
        with pytest.raises(ValueError, match=r"layers must be all 2 of the model.*got 1"):
            SparseAttentionUtils.replace_self_attention_layer_with_sparse_self_attention_layer(
                model.config, layers_of(architecture, model)[1:], bigbird(architecture)
            )
        assert model.config._attn_implementation != "longspan"

    def test_that_do_not_fit_are_refused(self):
        model = make("bert")
        replace = SparseAttentionUtils.replace_self_attention_layer_with_sparse_self_attention_layer
        layers = model.bert.encoder.layer
        with pytest.raises(ValueError, match=r"layers must be one or more.*found \[\]"):
            replace(model.config, [], bigbird("bert"))
        with pytest.raises(ValueError, match=r"layers must be one or more.*found \[1, 0\]"):
            replace(model.config, [layers[0], torch.nn.Linear(2, 2)], bigbird("bert"))
        with pytest.raises(ValueError, match="config must be the layers' own"):
            replace(make("bert").config, layers, bigbird("bert"))
        with pytest.raises(ValueError, match="num_heads=3, but the model has 4 heads"):
            replace(model.config, layers, DenseSparsityConfig(3))


@pytest.mark.parametrize("architecture", ["distilbert", "albert"])
def test_layers_without_index_have_their_own_patterns_once_they_are_told(architecture, tmp_path):
    model, ids = make(architecture), tokens(POSITIONS)
    sparsify(model, [None, bigbird(architecture)])
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, attn_implementation="longspan", dtype=torch.float64)
    with torch.no_grad():
        with pytest.raises(ValueError, match="do not know their number"):
            again(ids)
        sparsify(again, sparsity_of(again.config))
        assert_close(again(ids).logits, model(ids).logits)


@pytest.mark.filterwarnings("ignore:.*positions")
def test_positions_are_tiled_and_rotary_ones_follow_the_length(architecture):
    model = make(architecture)
    ids = tokens(POSITIONS)
    with torch.no_grad():
        before = model(ids).logits
        assert SparseAttentionUtils.extend_position_embedding(model, LENGTH) is model
        # Neither tiling nor dynamic frequencies change sequences of the old length.
        assert_close(model(ids).logits, before)
        assert torch.isfinite(model(tokens()).logits).all()
    assert max_positions_of(model) == LENGTH
    if architecture in ROTARY:
        return
    embeddings = [one.weight for one in model.modules() if isinstance(one, torch.nn.Embedding)]
    (table,) = (weight for weight in embeddings if len(weight) >= LENGTH)
    rows = table[len(table) - LENGTH :]
    assert torch.equal(rows[POSITIONS:], rows[: LENGTH - POSITIONS])
    assert len(table) - LENGTH == {"opt": 2}.get(architecture, position_offset(model))


def test_the_tokenizers_length_survives_saving(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", model_max_length=16
    )
    text = "a " * 100
    assert len(tokenizer(text, truncation=True).input_ids) == 16
    assert SparseAttentionUtils.update_tokenizer_model_max_length(tokenizer, 64) is tokenizer
    assert len(tokenizer(text, truncation=True).input_ids) == 64
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again.model_max_length == 64
    assert len(again(text, truncation=True).input_ids) == 64
    with pytest.raises(ValueError, match="max_position must be at least 1, got 0"):
        SparseAttentionUtils.update_tokenizer_model_max_length(tokenizer, 0)
