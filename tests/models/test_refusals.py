"""What cannot be served is refused with the argument, its value and what is allowed."""

import pytest
import torch

from longspan.models import sparsify
from longspan.models.attention_interface import _means_document_ids, longspan_attention
from longspan.models.masks import longspan_mask
from longspan.sparsity import DenseSparsityConfig


def test_heads_unlike_the_models(kit):
    with pytest.raises(ValueError, match=r"num_heads=3.*4 heads"):
        sparsify(kit.make_model("bert"), DenseSparsityConfig(3))
    model = kit.make_model("bert")
    with pytest.raises(ValueError, match=r"layer 1 has num_heads=3.*4 heads"):
        sparsify(model, [None, DenseSparsityConfig(3)])
    assert model.config._attn_implementation != "longspan"
    assert not hasattr(model.config, "longspan_sparsity")


def test_heads_unlike_the_ones_in_the_configuration(kit, ids):
    model = kit.make_model("bert")
    model.config.longspan_sparsity = DenseSparsityConfig(3).to_dict()
    model.set_attn_implementation("longspan")
    with pytest.raises(ValueError, match=r"num_heads=3.*4 heads"):
        model(ids)


def test_another_number_of_patterns_than_layers(kit):
    with pytest.raises(ValueError, match="one pattern or 2, one per layer; got 3"):
        sparsify(kit.make_model("bert"), [None] * 3)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["document_id", "doc_ids", "documents"])
def test_a_misspelt_document_ids(kit, ids, name, compiled):
    model = sparsify(kit.make_model("llama"), DenseSparsityConfig(4))
    forward = torch.compile(model, backend="eager") if compiled else model
    with pytest.raises(Exception, match=f"unknown argument '{name}'; did you mean document_ids"):
        forward(ids, **{name: torch.zeros_like(ids)})


def test_what_transformers_passes_is_no_misspelling():
    from transformers.utils import TransformersKwargs

    names = {"token_type_ids", "position_ids", "input_ids", "past_key_values", "cache_position"}
    names |= set(TransformersKwargs.__annotations__)
    assert not [name for name in names if _means_document_ids(name)]


def test_a_dense_position_bias():
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(T5Config(d_model=16, d_kv=8, num_heads=2, num_layers=2, vocab_size=50, d_ff=16))
    with pytest.raises(ValueError, match=r"T5EncoderModel hands every layer a position_bias.*T5Buckets"):
        sparsify(model, DenseSparsityConfig(2))
    assert model.config._attn_implementation != "longspan"


@pytest.mark.parametrize("name", ["Bloom", "Mpt"])
def test_attention_that_is_not_transformers_interface(name):
    import transformers

    sizes = {"Bloom": {"hidden_size": 16, "n_head": 2, "n_layer": 2}, "Mpt": {"d_model": 16, "n_heads": 2}}
    config = getattr(transformers, f"{name}Config")(**sizes[name], vocab_size=50)
    with pytest.raises(ValueError, match=f"{name}Model must .* follows transformers' attention interface"):
        sparsify(getattr(transformers, f"{name}Model")(config), DenseSparsityConfig(2))


def test_cross_attention():
    from transformers import BartConfig, BartModel, BertConfig, BertLMHeadModel

    small = {"vocab_size": 40, "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4}
    bert = BertLMHeadModel(
        BertConfig(**small, intermediate_size=16, is_decoder=True, add_cross_attention=True)
    )
    with pytest.raises(ValueError, match=r"config\.add_cross_attention is True"):
        sparsify(bert, DenseSparsityConfig(4))
    bart = BartModel(
        BartConfig(
            vocab_size=40,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
    )
    with pytest.raises(ValueError, match=r"config\.is_encoder_decoder is True"):
        sparsify(bart, DenseSparsityConfig(4))


def test_a_model_outside_the_attention_interface():
    from transformers import XLNetConfig, XLNetModel

    model = XLNetModel(XLNetConfig(vocab_size=40, d_model=32, n_layer=1, n_head=4, d_inner=16))
    with pytest.raises(ValueError, match="attention interface"):
        sparsify(model, DenseSparsityConfig(4))


def test_output_attentions(kit, ids):
    model = sparsify(kit.make_model("bert"), DenseSparsityConfig(4))
    with pytest.raises(ValueError, match="output_attentions must be False"):
        model(ids, output_attentions=True)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.ones(2, 1, 45, 44, dtype=torch.bool),
            r"\[2 or 1, 4 or 1, 45 or 1, 45\], got \[2, 1, 45, 44\]",
        ),
        (torch.ones(2, 1, 45, 45, dtype=torch.int64), "bool or floating point, got torch.int64"),
    ],
)
def test_four_dimensional_masks_that_do_not_fit(mask, message, kit, ids):
    model = sparsify(kit.make_model("llama"), DenseSparsityConfig(4))
    with pytest.raises(ValueError, match=message):
        model(ids, attention_mask=mask)


def test_a_padding_mask_of_another_length(kit, ids):
    model = sparsify(kit.make_model("llama"), DenseSparsityConfig(4))
    with pytest.raises(ValueError, match="as long as past and new tokens"):
        model(ids, attention_mask=torch.ones(2, 50))


@pytest.mark.parametrize(
    "document_ids",
    [torch.zeros(2, 44, dtype=torch.int64), torch.zeros(2, 45), torch.zeros(45, dtype=torch.int64)],
)
def test_document_ids_that_do_not_fit(document_ids, kit, ids):
    model = sparsify(kit.make_model("llama"), DenseSparsityConfig(4))
    with pytest.raises(ValueError, match=r"document_ids must be integers.*\[2, 45\]"):
        model(ids, document_ids=document_ids)


@pytest.mark.parametrize("keyword", ["softcap", "s_aux", "position_bias", "cache", "cu_seq_lens_q"])
def test_keywords_that_would_change_the_result(keyword, kit):
    model = sparsify(kit.make_model("llama"), DenseSparsityConfig(4))
    query = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match=keyword):
        longspan_attention(
            model.model.layers[0].self_attn, query, query, query, None, **{keyword: torch.ones(1)}
        )


def test_a_window_of_no_token(kit):
    model = sparsify(kit.make_model("llama"), DenseSparsityConfig(4))
    query = torch.zeros(1, 4, 8, 8)
    with pytest.raises(ValueError, match="sliding_window must be at least 1"):
        longspan_attention(model.model.layers[0].self_attn, query, query, query, None, sliding_window=0)


def test_masks_of_an_unknown_kind():
    from transformers.masking_utils import causal_mask_function, chunked_causal_mask_function, or_masks

    def look_ahead(batch, head, query, key):
        return key <= query + 1

    chunked = chunked_causal_mask_function(4, torch.zeros(1))
    for mask_function in (chunked, or_masks(causal_mask_function, look_ahead), look_ahead):
        with pytest.raises(ValueError, match="serves causal, windowed, padded and packed"):
            longspan_mask(1, 8, 8, mask_function=mask_function)
