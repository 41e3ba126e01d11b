"""BertSparseSelfAttention in place of the self-attention of Hugging Face's BERT layers."""

import pytest
import torch
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertSelfAttention

from longspan.attention import BertSparseSelfAttention
from longspan.sparsity import BigBirdSparsityConfig, DenseSparsityConfig

LENGTH = 45


@pytest.fixture
def config():
    return BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=16,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
        attn_implementation="eager",
    )


def _pair(config, pattern):
    torch.manual_seed(0)
    stock = BertSelfAttention(config)
    sparse = BertSparseSelfAttention(config, pattern)
    sparse.load_state_dict(stock.state_dict())
    return stock, sparse


def test_the_dense_pattern_is_the_stock_layer(config):
    stock, sparse = _pair(config, DenseSparsityConfig(4, 8))
    hidden = torch.randn(2, LENGTH, 32)
    context, weights = sparse(hidden)
    assert weights is None
    torch.testing.assert_close(context, stock(hidden)[0])


def test_a_pattern_is_the_stock_layer_under_its_dense_mask(config):
    pattern = BigBirdSparsityConfig(4, 8)
    stock, sparse = _pair(config, pattern)
    hidden = torch.randn(2, LENGTH, 32)
    kept = pattern.make_layout(LENGTH).bool().repeat_interleave(8, 1).repeat_interleave(8, 2)
    kept = kept[:, :LENGTH, :LENGTH]
    padding = torch.arange(LENGTH) < torch.tensor([[30], [LENGTH]])
    lowest = torch.finfo(torch.float32).min

    def added(keep):
        return torch.zeros(keep.shape).masked_fill(~keep, lowest)

    expected = stock(hidden, added(kept & padding[:, None, None]))[0]
    masks = [padding, padding.long(), padding[:, None, None], added(padding)[:, None, None], added(padding)]
    masks += [padding[:, None, None].expand(2, 1, LENGTH, LENGTH)]
    masks += [added(padding[:, None, None].expand(2, 1, LENGTH, LENGTH))]
    for mask in masks:
        torch.testing.assert_close(sparse(hidden, mask)[0], expected)
    one = added(padding[:1])[:, None, None]  # a batch of one mask for all
    torch.testing.assert_close(sparse(hidden, one)[0][:1], expected[:1])


def test_inside_a_model(config):
    pattern = BigBirdSparsityConfig(4, 8)
    torch.manual_seed(0)
    model = BertModel(config).eval()
    ids = torch.arange(2 * LENGTH).view(2, LENGTH) % 50
    stock = model(ids).last_hidden_state
    for dense, layer_pattern in ((True, DenseSparsityConfig(4, 8)), (False, pattern)):
        for layer in model.encoder.layer:
            sparse = BertSparseSelfAttention(config, layer_pattern).eval()
            sparse.load_state_dict(layer.attention.self.state_dict())
            layer.attention.self = sparse
        mine = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        assert torch.allclose(mine, stock, atol=1e-5) is dense


def test_documents_stay_apart(config):
    _, sparse = _pair(config, BigBirdSparsityConfig(4, 8))
    hidden = torch.randn(1, LENGTH, 32)
    documents = (torch.arange(LENGTH)[None] >= 20).long()
    changed = hidden.clone()
    changed[:, 20:] += 1
    one, other = (sparse(x, document_ids=documents)[0] for x in (hidden, changed))
    assert torch.equal(one[:, :20], other[:, :20])
    assert not torch.equal(sparse(hidden)[0][:, :20], one[:, :20])


def test_dropout_of_the_configuration(config):
    config.attention_probs_dropout_prob = 0.5
    _, sparse = _pair(config, DenseSparsityConfig(4, 8))
    hidden = torch.randn(1, LENGTH, 32)
    assert not torch.equal(sparse(hidden)[0], sparse(hidden)[0])
    sparse.eval()
    assert torch.equal(sparse(hidden)[0], sparse(hidden)[0])


@pytest.mark.parametrize("name", ["past_key_values", "encoder_hidden_states", "head_mask", "cu_seq_lens_q"])
def test_what_would_change_the_result_is_refused(config, name):
    _, sparse = _pair(config, DenseSparsityConfig(4, 8))
    hidden = torch.randn(1, LENGTH, 32)
    sparse(hidden, **{name: None}, output_attentions=False)
    with pytest.raises(ValueError, match=f"does not serve {name}"):
        sparse(hidden, **{name: torch.zeros(1)})
    with pytest.raises(ValueError, match="output_attentions must be False"):
        sparse(hidden, output_attentions=True)


def test_numbers_of_heads_must_agree(config):
    with pytest.raises(ValueError, match="num_attention_heads=4, got num_heads=2"):
        BertSparseSelfAttention(config, DenseSparsityConfig(2, 8))
    config.hidden_size = 30
    with pytest.raises(ValueError, match="got 30 and 4"):
        BertSparseSelfAttention(config, DenseSparsityConfig(4, 8))
