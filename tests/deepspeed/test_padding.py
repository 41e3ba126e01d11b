"""Padding to a multiple of the block: never attended, whatever the form of the mask, and taken off again."""

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from longspan import BigBirdSparsityConfig, SparseAttentionUtils, sparsify

HEADS, BLOCK, LENGTH, VOCABULARY = 4, 8, 45, 60
ADDED = 3
PADDED = LENGTH + ADDED
LENGTHS = torch.tensor([[30], [LENGTH]])
SEEN = torch.arange(LENGTH) < LENGTHS
LOWEST = torch.finfo(torch.float64).min


def make(model_class, pad_token_id: int = 1, **fields):
    config_class = {BertModel: BertConfig, RobertaModel: RobertaConfig}[model_class]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=16,
        max_position_embeddings=fields.pop("rows", PADDED + 2),
        pad_token_id=pad_token_id,
        type_vocab_size=2,
        **fields,
    )
    model = model_class(config, add_pooling_layer=False).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return model


def pad(
    input_ids=None, mask=None, types=None, positions=None, embeds=None, pad_id=1, embeddings=None, block=BLOCK
):
    return SparseAttentionUtils.pad_to_block_size(
        block, input_ids, mask, types, positions, embeds, pad_id, embeddings
    )


@pytest.fixture
def ids():
    return torch.randint(4, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def added(seen, value=LOWEST):
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, value)


ACROSS = SEEN[:, None, None]
BLOCKS = torch.randint(0, 2, (2, HEADS, LENGTH, LENGTH), generator=torch.Generator().manual_seed(3)).bool()
SQUARE = (BLOCKS | torch.eye(LENGTH).bool()) & ACROSS | (torch.eye(LENGTH).bool() & ~ACROSS)
MASKS = {
    "none": None,
    "bool": SEEN,
    "int64": SEEN.long(),
    "zeros and ones": SEEN.double(),
    "additive": added(SEEN)[:, None, None],
    "BERT's own additive": added(SEEN, -10000.0)[:, None, None],
    "additive of zeros": torch.zeros(2, 1, 1, LENGTH, dtype=torch.float64),
    "square bool": SQUARE,
    "square additive": added(SQUARE),
    "square without heads": ACROSS.expand(2, 1, LENGTH, LENGTH),
}


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("model_class", [BertModel, RobertaModel])
def test_the_padded_run_is_the_unpadded_one(model_class, name, sparse, ids):
    model, mask = make(model_class), MASKS[name]
    types = torch.arange(LENGTH).expand(2, -1) % 2
    if sparse:
        sparsify(model, BigBirdSparsityConfig(HEADS, BLOCK, num_sliding_window_blocks=1))
    pad_len, long_ids, long_mask, long_types, positions, embeds = pad(ids, mask, types)
    assert pad_len == ADDED
    assert positions is None
    assert embeds is None
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        padded = model(long_ids, attention_mask=long_mask, token_type_ids=long_types).last_hidden_state
        # The same with other tokens in the padding: nobody looks at it.
        long_ids[:, LENGTH:] = 7
        other = model(long_ids, attention_mask=long_mask, token_type_ids=long_types, position_ids=None)
    assert padded.shape[1] == PADDED
    assert_close(SparseAttentionUtils.unpad_sequence_output(pad_len, padded), expected)
    if model_class is BertModel:
        assert_close(other.last_hidden_state[:, :LENGTH], expected)
    assert torch.isfinite(padded).all()


@pytest.mark.parametrize("block", [BLOCK, 64])
def test_the_dtype_of_the_mask_stays_and_its_padding_is_hidden(block, ids):
    for mask in (SEEN, SEEN.long(), SEEN.to(torch.uint8), SEEN.float(), added(SEEN).bfloat16()):
        long = pad(ids, mask, block=block)[2]
        assert long.dtype == mask.dtype
        assert long.shape == (2, -(-LENGTH // block) * block)
        hidden = -torch.inf if mask.dtype == torch.bfloat16 else 0
        assert (long[:, LENGTH:] == hidden).all()
        assert torch.equal(long[:, :LENGTH], mask)


def test_without_a_mask_there_is_one_that_hides_the_padding(ids):
    mask = pad(ids)[2]
    assert mask.tolist() == [[1] * LENGTH + [0] * ADDED] * 2


def test_embeddings_are_padded_with_that_of_the_padding_token(ids):
    model = sparsify(make(BertModel), BigBirdSparsityConfig(HEADS, BLOCK, num_sliding_window_blocks=1))
    word = model.get_input_embeddings()
    embeds = word(ids)
    for source in (model, model.embeddings, word):
        pad_len, no_ids, mask, _, _, long = pad(embeds=embeds, embeddings=source)
        assert no_ids is None
        assert_close(long[:, LENGTH:], word(torch.full((2, ADDED), 1)))
    output = model(inputs_embeds=long, attention_mask=mask).last_hidden_state
    output = SparseAttentionUtils.unpad_sequence_output(pad_len, output)
    assert_close(output, model(inputs_embeds=embeds).last_hidden_state)
    output.sum().backward()
    # The padding takes part in nothing, and learns nothing.
    assert word.weight.grad is not None
    assert not word.weight.grad[1].any()


@pytest.mark.parametrize("pad_id", [1, 58])
@pytest.mark.parametrize("model_class", [BertModel, RobertaModel])
def test_positions_stay_in_the_table(model_class, pad_id, ids):
    """The original padded them with the padding token's id, which may lie outside of the table."""
    first = pad_id + 1 if model_class is RobertaModel else 0
    model = make(model_class, pad_id, rows=first + LENGTH)
    positions = first + torch.arange(LENGTH)[None]
    for given in (positions, positions.expand(2, -1)):
        pad_len, long_ids, mask, _, long_positions, _ = pad(ids, None, None, given, pad_id=pad_id)
        assert torch.equal(long_positions[:, :LENGTH], given)
        with torch.no_grad():
            output = model(long_ids, attention_mask=mask, position_ids=long_positions).last_hidden_state
            expected = model(ids, position_ids=given).last_hidden_state
        assert_close(SparseAttentionUtils.unpad_sequence_output(pad_len, output), expected)
    if model_class is RobertaModel:
        assert (long_positions[:, LENGTH:] == model.embeddings.padding_idx).all()


def test_a_multiple_of_the_block_stays_as_it_is(ids):
    given = (ids, SEEN, ids % 2, ids, None)
    pad_len, *same = pad(*given, block=LENGTH, pad_id=None)
    assert pad_len == 0
    assert all(one is other for one, other in zip(same, given, strict=True))
    assert SparseAttentionUtils.unpad_sequence_output(0, ids).equal(ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": 0}, "block_size must be at least 1, got 0"),
        ({"input_ids": None}, "input_ids or inputs_embeds must be given"),
        ({"input_ids": torch.ones(3)}, r"input_ids must be \[batch, length\], got \[3\]"),
        ({"mask": SEEN[:, 1:]}, r"attention_mask must be .* length 45.*got \[2, 44\]"),
        ({"mask": torch.ones(2, 1, 7, LENGTH)}, r"1 or 45 queries.*got \[2, 1, 7, 45\]"),
        ({"types": torch.ones(LENGTH)}, r"token_type_ids must be .*got \[45\]"),
        ({"pad_id": None}, "pad_token_id must be the id of a token, to add 3 of them; got None"),
        ({"embeds": torch.ones(2, LENGTH, 4)}, "model_embeddings must be given with inputs_embeds"),
        ({"embeds": torch.ones(2, LENGTH)}, r"inputs_embeds must be \[batch, length, width\]"),
        ({"embeds": torch.ones(1, LENGTH, 4)}, r"must agree.*\[2, 45\] and \[1, 45, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message, ids):
    with pytest.raises(ValueError, match=message):
        pad(**{"input_ids": ids, **arguments})


@pytest.mark.parametrize("pad_len", [-1, LENGTH])
def test_an_impossible_number_of_padding_tokens_is_refused(pad_len, ids):
    with pytest.raises(ValueError, match=rf"pad_len must lie in \[0, 45\).*got {pad_len}"):
        SparseAttentionUtils.unpad_sequence_output(pad_len, ids)
