"""Real Hugging Face models of every architecture with learned positions, extended."""

import warnings

import pytest
import torch

import longspan
from longspan.positions import LEARNED_METHODS, max_positions_of
from longspan.positions.architectures import learned_positions
from longspan.sparsity import DenseSparsityConfig, LocalSlidingWindowSparsityConfig

KEEPING = ("tile", "truncate-and-normal", "zero")


@pytest.fixture(autouse=True)
def no_warning_of_tiling():
    """Full attention over tiled positions warns, as test_collisions.py has it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="method 'tile' repeats")
        yield


@pytest.mark.parametrize("method", LEARNED_METHODS)
@pytest.mark.parametrize("length", [25, 48, 61])
def test_forward_at_the_new_length(kit, kind, method, length):
    model = kit.make(kind)
    trained = kit.output(model, kit.tokens(kit.POSITIONS))
    assert max_positions_of(model) == kit.POSITIONS
    assert longspan.extend(model, length, method) is model
    assert max_positions_of(model) == length
    ids = kit.tokens(length)
    assert kit.output(model, ids).isfinite().all()
    assert kit.output(model, kit.tokens(kit.POSITIONS)).shape == trained.shape
    with pytest.raises((IndexError, RuntimeError)):
        kit.output(model, kit.tokens(length + 1))


@pytest.mark.parametrize("method", KEEPING)
def test_heads_and_logits_within_the_old_length(kit, pair, method):
    model = kit.make(*pair)
    cases = [kit.tokens(kit.POSITIONS), kit.tokens(7)]
    before = [kit.output(model, ids) for ids in cases]
    longspan.extend(model, 50, method)
    for ids, expected in zip(cases, before, strict=True):
        assert torch.equal(kit.output(model, ids), expected)


@pytest.mark.parametrize("method", KEEPING)
def test_padding_within_the_old_length(kit, kind, method):
    model = kit.make(kind)
    ids = kit.tokens(kit.POSITIONS)
    ids[0, 15:] = kit.PAD
    mask = (ids != kit.PAD).long()
    before = kit.output(model, ids, attention_mask=mask)
    longspan.extend(model, 50, method)
    assert torch.equal(kit.output(model, ids, attention_mask=mask), before)


def test_tiled_positions_repeat_in_the_model(kit, kind):
    """A sequence moved by the trained length looks the same to tokens that do not see past it."""
    model = kit.make(kind)
    before = kit.output(model, kit.tokens(kit.POSITIONS))
    longspan.extend(model, 2 * kit.POSITIONS, "tile")
    positions = learned_positions(model)
    assert positions is not None
    first = positions.reserved
    if kind == "opt":
        first = 0  # its embedding adds the offset to what it is given
    moved = torch.arange(kit.POSITIONS, 2 * kit.POSITIONS)[None] + first
    assert torch.equal(kit.output(model, kit.tokens(kit.POSITIONS), position_ids=moved), before)


@pytest.mark.parametrize("method", LEARNED_METHODS)
def test_saved_and_loaded_by_transformers_alone(kit, pair, method, tmp_path):
    model = longspan.extend(kit.make(*pair), 37, method)
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # To rounding: loaded weights lie elsewhere in memory, which changes how matrix products are blocked.
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(kit.output(loaded, kit.tokens(37)), kit.output(model, kit.tokens(37)), **close)


def test_configuration_and_buffers_follow(kit, kind):
    model = kit.make(kind)
    reserved = {"roberta": 2, "xlm-roberta": 2, "opt": 2}.get(kind, 0)
    counted = 0 if kind == "opt" else reserved
    assert model.config.max_position_embeddings == kit.POSITIONS + counted
    state = set(model.state_dict())
    longspan.extend(model, 37, "zero")
    assert model.config.max_position_embeddings == 37 + counted
    positions = learned_positions(model)
    assert positions is not None
    assert positions.reserved == reserved
    assert tuple(positions.table.weight.shape) == (37 + reserved, positions.table.embedding_dim)
    fresh = kit.make(kind, max_position_embeddings=37 + counted)
    expected = dict(fresh.named_buffers())
    buffers = dict(model.named_buffers())
    assert buffers.keys() == expected.keys()
    for name, buffer in buffers.items():
        assert torch.equal(buffer, expected[name]), name
        assert buffer.dtype == expected[name].dtype
    assert set(model.state_dict()) == state


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_the_padding_row_stays(kit, kind):
    model = kit.make(kind)
    table = learned_positions(model).table
    before = table.weight.detach().clone()
    longspan.extend(model, 60, "truncate-and-normal")
    assert learned_positions(model).table is table
    assert table.padding_idx == kit.PAD
    assert torch.equal(table.weight[: kit.PAD + 1], before[: kit.PAD + 1])
    # Positions count from the padding index in sequences of the new length, and padding has none.
    ids = kit.tokens(60)
    ids[0, 50:] = kit.PAD
    assert kit.output(model, ids, attention_mask=(ids != kit.PAD).long()).isfinite().all()
    with torch.no_grad():
        table.weight[61] *= 3
    changed = kit.output(model, ids) - kit.output(
        longspan.extend(kit.make(kind), 60, "truncate-and-normal"), ids
    )
    assert changed[1].abs().max() > 0, "row 61 is the one of the last token"
    assert torch.equal(changed[0], torch.zeros_like(changed[0])), "and padded sequences do not reach it"


@pytest.mark.parametrize("pad", [0, 5])
def test_another_padding_index_reserves_other_rows(kit, pad):
    model = kit.make("roberta", pad_token_id=pad, max_position_embeddings=kit.POSITIONS + pad + 1)
    longspan.extend(model, 40, "tile")
    table = learned_positions(model).table.weight
    assert table.shape[0] == 40 + pad + 1
    assert torch.equal(table[pad + 1 + kit.POSITIONS], table[pad + 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_and_gradient_stay(kit, kind, dtype):
    model = kit.make(kind, dtype=dtype)
    learned_positions(model).table.weight.requires_grad_(False)
    longspan.extend(model, 40, "interpolate", mode="cubic")
    weight = learned_positions(model).table.weight
    assert weight.dtype == dtype
    assert weight.requires_grad is False
    longspan.extend(kit.make(kind, dtype=dtype), 40, "zero")
    assert learned_positions(kit.make(kind, dtype=dtype)).table.weight.requires_grad is True


def test_device_stays(kit, kind):
    model = kit.make(kind).to("meta")
    longspan.extend(model, 40, "tile")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {buffer.device.type for buffer in model.buffers()} <= {"meta"}


def test_tied_weights_stay(kit, kind):
    model = kit.make(kind)
    tied = model.get_input_embeddings().weight
    output_weight = model.get_output_embeddings().weight
    assert tied is output_weight
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    longspan.extend(model, 40, "tile")
    after = {name: id(parameter) for name, parameter in model.named_parameters()}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight is tied
    changed = [name for name in after if after[name] != before[name]]
    assert len(changed) == 1
    assert "pos" in changed[0] or "wpe" in changed[0]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays(kit, kind, training):
    model = kit.make(kind).train(training)
    pattern = LocalSlidingWindowSparsityConfig(kit.HEADS, 8, attention="bidirectional")
    longspan.extend(model, 40, "tile", sparsity=pattern)
    assert {module.training for module in model.modules()} == {training}


def test_the_new_rows_train(kit, kind):
    model = longspan.extend(kit.make(kind), 40, "zero").train()
    model(kit.tokens(40)).logits.square().sum().backward()
    gradient = learned_positions(model).table.weight.grad
    assert gradient[-16:].abs().sum(-1).min() > 0


@pytest.mark.parametrize("method", LEARNED_METHODS)
def test_the_same_length_changes_nothing(kit, kind, method):
    model = kit.make(kind)
    weight = learned_positions(model).table.weight
    before = kit.output(model, kit.tokens(kit.POSITIONS))
    longspan.extend(model, kit.POSITIONS, method)
    assert learned_positions(model).table.weight is weight
    assert torch.equal(kit.output(model, kit.tokens(kit.POSITIONS)), before)


def test_twice(kit, kind):
    once = longspan.extend(kit.make(kind), 72, "tile")
    twice = longspan.extend(longspan.extend(kit.make(kind), 48, "tile"), 72, "tile")
    assert torch.equal(kit.output(once, kit.tokens(72)), kit.output(twice, kit.tokens(72)))


def test_the_tokenizer_follows(kit, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    vocabulary = {"[UNK]": 0, "a": 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")),
        unk_token="[UNK]",
        model_max_length=24,
    )
    longspan.extend(kit.make("roberta"), 37, "tile", tokenizer=tokenizer)
    assert tokenizer.model_max_length == 37
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 37


def test_sparse_in_the_same_call(kit, kind):
    model = kit.make(kind)
    dense = longspan.extend(kit.make(kind), 40, "zero")
    longspan.extend(model, 40, "zero", sparsity=DenseSparsityConfig(kit.HEADS, 8), backend="torch")
    assert model.config._attn_implementation == "longspan"
    torch.testing.assert_close(kit.output(model, kit.tokens(40)), kit.output(dense, kit.tokens(40)))


def test_refusals(kit):
    from transformers import BertConfig, LlamaConfig, LlamaModel, XLNetConfig, XLNetModel

    bert = kit.make("bert")
    with pytest.raises(ValueError, match=r"max_positions must be at least 24.*got 23"):
        longspan.extend(bert, 23, "tile")
    with pytest.raises(ValueError, match=r"method 'yarn' .*BertForMaskedLM.*learned.*tile, interpolate"):
        longspan.extend(bert, 48, "yarn")
    with pytest.raises(ValueError, match=r"'tile' has no option factor"):
        longspan.extend(bert, 48, "tile", factor=2.0)
    for wrong in (0, -1, True, 48.0):
        with pytest.raises(ValueError, match="max_positions must be a positive whole number"):
            longspan.extend(bert, wrong, "tile")
    with pytest.raises(ValueError, match="num_heads=3"):
        longspan.extend(bert, 48, "tile", sparsity=DenseSparsityConfig(3))
    assert max_positions_of(bert) == 24
    assert not hasattr(bert.config, "longspan_sparsity")
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    llama = LlamaModel(LlamaConfig(**sizes, intermediate_size=16, max_position_embeddings=24))
    with pytest.raises(ValueError, match=r"method 'tile' .*LlamaModel.*rotary.*linear, ntk, dynamic"):
        longspan.extend(llama, 48, "tile")
    xlnet = XLNetModel(XLNetConfig(vocab_size=40, d_model=32, n_layer=1, n_head=4, d_inner=16))
    with pytest.raises(ValueError, match=r"positions of XLNetModel \(model_type 'xlnet'\) are not known"):
        longspan.extend(xlnet, 48, "tile")
    assert BertConfig().max_position_embeddings == 512
