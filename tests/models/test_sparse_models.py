"""Sparse models against stock ones that are run with the pattern's dense mask."""

import pytest
import torch
from torch.testing import assert_close

from longspan.attention import SparseSelfAttention
from longspan.models import position_offset, sparsify
from longspan.sparsity import DenseSparsityConfig


def test_dense_equals_the_stock_model(case, ids):
    stock, model = case.model(), case.model()
    sparsify(model, case.pattern("dense"))
    assert model.config._attn_implementation == "longspan"
    with torch.no_grad():
        assert_close(model(ids).logits, stock(ids).logits, rtol=1e-5, atol=1e-5)


def test_each_pattern_equals_the_stock_model_under_its_dense_mask(case, pattern_name, kit, ids):
    stock, model = case.model(), case.model()
    pattern = case.pattern(pattern_name)
    sparsify(model, pattern)
    mask = kit.token_mask(pattern, ids.shape[1], case.causal)
    with torch.no_grad():
        logits = model(ids).logits
        assert_close(
            logits, stock(ids, attention_mask=kit.for_stock(stock, mask)).logits, rtol=1e-5, atol=1e-5
        )
        if pattern_name != "dense":
            assert (logits - stock(ids).logits).abs().max() > 1e-2


def test_the_backend_is_that_of_every_layer(case, ids):
    model = case.model()
    sparsify(model, case.pattern("bigbird"))
    layers = [module for module in model.modules() if isinstance(module, SparseSelfAttention)]
    assert {layer.backend for layer in layers} == {"auto"}
    sparsify(model, case.pattern("bigbird"), backend="none")
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', 'torch', .*got 'none'"):
        model(ids)
    sparsify(model, case.pattern("bigbird"), backend="torch")
    model(ids)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(case, side, kit, ids):
    stock, model = case.model(), case.model()
    pattern = case.pattern("bigbird")
    sparsify(model, pattern)
    padding = torch.ones_like(ids, dtype=torch.bool)
    if side == "left":
        padding[0, :11] = False
    else:
        padding[0, -11:] = False
    mask = kit.token_mask(pattern, ids.shape[1], case.causal) & padding[:, None, None, :]
    with torch.no_grad():
        logits = model(ids, attention_mask=padding.long()).logits
        expected = stock(ids, attention_mask=kit.for_stock(stock, mask)).logits
        unpadded = model(ids).logits
    assert torch.isfinite(logits).all()
    assert_close(logits[padding], expected[padding], rtol=1e-5, atol=1e-5)
    if not (case.causal and side == "right"):  # there, no real token sees the padding anyway
        assert (logits - unpadded)[padding].abs().max() > 1e-2


def test_training_gradients_equal_the_stock_ones(case, kit, ids):
    stock, model = case.model().train(), case.model().train()
    pattern = case.pattern("bigbird")
    sparsify(model, pattern)
    mask = kit.token_mask(pattern, ids.shape[1], case.causal)
    logits = model(ids).logits
    weight = torch.randn(logits.shape, dtype=logits.dtype, generator=torch.Generator().manual_seed(2))
    (logits * weight).sum().backward()
    (stock(ids, attention_mask=kit.for_stock(stock, mask)).logits * weight).sum().backward()
    seen = 0
    for (name, ours), (_, theirs) in zip(model.named_parameters(), stock.named_parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None, name
            continue
        scale = theirs.grad.abs().max().clamp(min=1e-6)
        error = ((ours.grad - theirs.grad) / scale).abs().max()
        assert error < 1e-4, name
        seen += theirs.grad.abs().max() > 0
    assert seen > 10


def _documents(ids):
    """Documents of unlike lengths in both sequences, and positions that restart in each."""
    document_ids = torch.zeros_like(ids)
    document_ids[0, 13:] = 1
    document_ids[0, 30:] = 5
    document_ids[1, 24:] = 2
    positions = torch.zeros_like(ids)
    for row in range(ids.shape[0]):
        for number in document_ids[row].unique():
            inside = document_ids[row] == number
            positions[row, inside] = torch.arange(int(inside.sum()))
    return document_ids, positions


@pytest.mark.parametrize("name", ["dense", "bslongformer"])
def test_document_ids_equal_a_block_diagonal_mask(case, name, kit, ids):
    stock, model = case.model(), case.model()
    pattern = case.pattern(name)
    sparsify(model, pattern)
    document_ids, positions = _documents(ids)
    positions += position_offset(model)
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    mask = kit.token_mask(pattern, ids.shape[1], case.causal) & same
    with torch.no_grad():
        logits = model(ids, document_ids=document_ids, position_ids=positions).logits
        expected = stock(ids, attention_mask=kit.for_stock(stock, mask), position_ids=positions).logits
        assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        together = model(ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
        assert (logits - together).abs().max() > 1e-2


def test_restarting_positions_part_documents_where_the_stock_model_does_so(case, ids):
    stock, model = case.model(), case.model()
    sparsify(model, case.pattern("dense"))
    positions = _documents(ids)[1] + position_offset(model)
    with torch.no_grad():
        assert_close(model(ids, position_ids=positions).logits, stock(ids, position_ids=positions).logits)


def test_roberta_positions_start_after_padding(kit, ids):
    model = kit.make_model("roberta")
    first = torch.arange(ids.shape[1]).expand_as(ids) + position_offset(model)
    with torch.no_grad():
        assert_close(model(ids, position_ids=first).logits, model(ids).logits)
    assert position_offset(kit.make_model("bert")) == position_offset(kit.make_model("llama")) == 0


@pytest.mark.parametrize("dtype", [torch.bool, torch.float64])
def test_a_four_dimensional_mask_of_the_users_own_is_intersected(case, dtype, kit, ids):
    stock, model = case.model(), case.model()
    pattern = case.pattern("fixed")
    sparsify(model, pattern)
    length = ids.shape[1]
    own = torch.rand(2, 1, length, length, generator=torch.Generator().manual_seed(3)) < 0.7
    own |= torch.eye(length, dtype=torch.bool)
    given = own if dtype == torch.bool else kit.additive(own)
    mask = kit.token_mask(pattern, length, case.causal) & own
    with torch.no_grad():
        logits = model(ids, attention_mask=given).logits
        expected = stock(ids, attention_mask=kit.for_stock(stock, mask)).logits
    assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_encoders_as_decoders(architecture, kit, ids):
    """Under the causal objective, also a bidirectional pattern is causal to the token."""
    stock, model = kit.make_model(architecture, "clm"), kit.make_model(architecture, "clm")
    sparsify(model, kit.make_pattern("dense", "bidirectional"))
    with torch.no_grad():
        logits = model(ids).logits
        assert_close(logits, stock(ids).logits, rtol=1e-5, atol=1e-5)
        changed = ids.clone()
        changed[:, 21:] = (changed[:, 21:] + 1) % 30
        assert_close(model(changed).logits[:, :21], logits[:, :21])


def test_a_bidirectional_pattern_in_a_causal_model_is_causal_to_the_token(kit, ids):
    stock, model = kit.make_model("llama"), kit.make_model("llama")
    pattern = kit.make_pattern("bigbird", "bidirectional")
    sparsify(model, pattern)
    mask = kit.additive(kit.token_mask(pattern, ids.shape[1], causal=True))
    with torch.no_grad():
        assert_close(model(ids).logits, stock(ids, attention_mask=mask).logits, rtol=1e-5, atol=1e-5)


def test_one_pattern_a_layer(kit, ids):
    stock, model = kit.make_model("llama"), kit.make_model("llama")
    pattern = kit.make_pattern("local_sliding_window", "unidirectional")
    sparsify(model, [None, pattern])
    mask = kit.additive(kit.token_mask(pattern, ids.shape[1], causal=True))

    def narrow(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask}

    stock.model.layers[1].self_attn.register_forward_pre_hook(narrow, with_kwargs=True)
    with torch.no_grad():
        assert_close(model(ids).logits, stock(ids).logits, rtol=1e-5, atol=1e-5)
    attentions = [layer.self_attn.sparse_self_attention.sparsity_config for layer in model.model.layers]
    assert isinstance(attentions[0], DenseSparsityConfig)
    assert attentions[1] == pattern


def test_the_window_of_a_causal_model_is_intersected(kit, ids):
    """Mistral's window counts the query itself."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=11,
        initializer_range=0.25,
    )
    stock = MistralForCausalLM(config).double().eval()
    with torch.no_grad():
        expected = stock(ids).logits
        model = sparsify(stock, kit.make_pattern("dense", "unidirectional"))
        assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(case, ids):
    plain, saving = case.model().train(), case.model(gradient_checkpointing=True).train()
    for model in (plain, saving):
        sparsify(model, case.pattern("bigbird"))
    for model in (plain, saving):
        model(ids).logits.square().sum().backward()
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            assert_close(ours.grad, theirs.grad)


def test_autocast_runs_attention_in_the_lower_precision(case, ids):
    model = sparsify(case.model().float().train(), case.pattern("bigbird"))
    full = model(ids).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids).logits
    assert logits.dtype == torch.bfloat16
    assert (logits - full).abs().mean() < 0.1 * full.abs().mean()


def test_dropout_is_drawn_in_training_alone(kit, ids):
    model = sparsify(kit.make_model("llama", dropout=0.5), kit.make_pattern("bigbird", "unidirectional"))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("architecture", ["modernbert", "llama"])
def test_compiled_models_give_the_same_logits(architecture, kit, ids):
    model = kit.make_model(architecture)
    attention = "unidirectional" if architecture == "llama" else "bidirectional"
    sparsify(model, kit.make_pattern("bigbird", attention))
    compiled = torch.compile(model, backend="eager")
    padding = torch.ones_like(ids)
    padding[0, -7:] = 0
    with torch.no_grad():
        assert_close(compiled(ids).logits, model(ids).logits)
        assert_close(compiled(ids, attention_mask=padding).logits, model(ids, attention_mask=padding).logits)
