"""What models compute with scaled rotary positions, and what stays as it was."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from longspan.positions.rotary import METHODS, extend_rotary, rotary_factor, rotary_positions
from longspan.positions.rotary_modules import restore_rotary, rotary_modules, rotary_state

LENGTH = 32


@pytest.mark.parametrize("method", METHODS)
def test_its_own_length_changes_nothing(kit, family, method):
    model = kit.make(family)
    config, ids = model.config.to_dict(), kit.tokens(LENGTH, 2)
    before = kit.logits(model, ids)
    assert kit.extend(model, LENGTH, method) is model
    assert model.config.to_dict() == config
    assert torch.equal(kit.logits(model, ids), before)
    assert rotary_positions(model) == LENGTH
    assert rotary_factor(model) == 1


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "stablelm"])
def test_linear_at_scaled_positions_is_the_original(kit, family):
    model, ids = kit.make(family), kit.tokens(LENGTH, 2)
    positions = torch.arange(LENGTH).expand(2, -1)
    before = kit.logits(model, ids, position_ids=positions)
    kit.extend(model, 4 * LENGTH, "linear")
    torch.testing.assert_close(
        kit.logits(model, ids, position_ids=4 * positions), before, rtol=1e-4, atol=1e-4
    )
    assert (kit.logits(model, ids, position_ids=positions) - before).abs().max() > 0.1


def test_linear_keeps_the_products_of_scaled_positions(kit):
    model = kit.one_layer(16, 1e4, 64)
    old = copy.deepcopy(model.model.rotary_emb)
    kit.extend(model, 256, "linear")
    q, k = torch.randn(2, 1, 1, 50, 16, generator=torch.Generator().manual_seed(0))
    products = []
    for rotary, step in ((old, 1), (model.model.rotary_emb, 4)):
        turned = apply_rotary_pos_emb(q, k, *rotary(q, step * torch.arange(50)[None]))
        products.append(turned[0] @ turned[1].mT)
    torch.testing.assert_close(*products, rtol=1e-4, atol=1e-4)


def test_dynamic_changes_only_what_is_longer(kit, family):
    model = kit.make(family)
    short, long = kit.tokens(LENGTH, 2), kit.tokens(2 * LENGTH, 2)
    before = kit.logits(model, short), kit.logits(model, long)
    kit.extend(model, 4 * LENGTH, "dynamic")
    assert torch.equal(kit.logits(model, short), before[0])
    assert (kit.logits(model, long) - before[1]).abs().max() > 0.05
    assert rotary_positions(model) == 4 * LENGTH
    # transformers' formula reads the original length there.
    assert model.config.max_position_embeddings == LENGTH


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_it_is_the_same(kit, family, method, tmp_path):
    check_saved_and_loaded(kit, family, method, tmp_path)


def test_phi3_keeps_its_original_length_beside_its_rope_parameters(kit, tmp_path):
    # It comes with another number there, which transformers would read first.
    assert kit.make("phi3").config.original_max_position_embeddings == 4096
    check_saved_and_loaded(kit, "phi3", "longrope", tmp_path)
    model = kit.make("phi3")
    state = rotary_state(model)
    kit.extend(model, 4 * LENGTH, "longrope")
    assert model.config.original_max_position_embeddings == LENGTH
    assert model.config.rope_parameters["original_max_position_embeddings"] == LENGTH
    assert restore_rotary(model, state).config.original_max_position_embeddings == 4096


def check_saved_and_loaded(kit, family, method, tmp_path):
    model = kit.make(family)
    before, ids = kit.logits(model, kit.tokens(3 * LENGTH)), kit.tokens(3 * LENGTH)
    parameters = {name: (id(value), value.clone()) for name, value in model.named_parameters()}
    kit.extend(model, 4 * LENGTH, method)
    after = kit.logits(model, ids)
    assert (after - before).abs().max() > 0.05
    assert rotary_positions(model) == 4 * LENGTH
    assert rotary_factor(model) == 4
    for name, value in model.named_parameters():
        assert id(value) == parameters[name][0]
        assert torch.equal(value, parameters[name][1])
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(kit.logits(loaded, ids), after)
    assert rotary_positions(loaded) == 4 * LENGTH
    # Further, from the file: as if at once.
    at_once = kit.extend(kit.make(family), 8 * LENGTH, method)
    torch.testing.assert_close(
        kit.logits(kit.extend(loaded, 8 * LENGTH, method), ids), kit.logits(at_once, ids)
    )


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16(kit, method, tmp_path):
    model = kit.make().bfloat16()
    ids = kit.tokens(3 * LENGTH)
    kit.extend(model, 4 * LENGTH, method)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    # A frequency in bfloat16 would be off by a turn within a few hundred positions.
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    after = kit.logits(model, ids)
    assert after.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert torch.equal(kit.logits(loaded, ids), after)


def test_mode_device_and_tied_weights_stay(kit):
    model = kit.extend(kit.make().train(), 4 * LENGTH, "yarn")
    assert model.training
    assert model.model.rotary_emb.training
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model = kit.extend(kit.make().to("meta"), 4 * LENGTH, "yarn")
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
    assert not kit.extend(kit.make(), 4 * LENGTH, "linear").training


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gemma3", "modernbert", "modernbert_decoder"])
def test_only_global_layers_are_scaled(kit, family, method):
    model = kit.make(family)
    rotary = rotary_modules(model)[0]
    local, old = rotary.sliding_attention_inv_freq, rotary.full_attention_inv_freq.clone()
    parameters = copy.deepcopy(model.config.rope_parameters)
    kit.extend(model, 4 * LENGTH, method)
    assert rotary.sliding_attention_inv_freq is local
    assert model.config.rope_parameters["sliding_attention"] == parameters["sliding_attention"]
    assert model.config.rope_parameters["full_attention"] != parameters["full_attention"]
    kit.logits(model, kit.tokens(2 * LENGTH))
    assert not torch.equal(rotary.full_attention_inv_freq, old)


def test_layer_types_are_a_choice(kit):
    model = kit.make("modernbert")
    rotary = model.model.rotary_emb
    old = {name: buffer.clone() for name, buffer in rotary.named_buffers()}
    extend_rotary(model, 4 * LENGTH, "linear", layer_types=["sliding_attention", "full_attention"])
    for name, buffer in rotary.named_buffers():
        torch.testing.assert_close(buffer, old[name] / 4)
    with pytest.raises(ValueError, match=r"layer_types must be .*extended already"):
        extend_rotary(model, 8 * LENGTH, "linear")
    for wrong in (["global"], [], "full_attention"):
        with pytest.raises(ValueError, match="layer_types must be a list of"):
            extend_rotary(kit.make("modernbert"), 64, "linear", layer_types=wrong)
    with pytest.raises(ValueError, match="layer_types must be None"):
        extend_rotary(kit.make(), 64, "linear", layer_types=["full_attention"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "modernbert"])
def test_before_and_after_sparsify_are_the_same(kit, family, method, tmp_path):
    ids = kit.tokens(3 * LENGTH)
    dense = kit.logits(kit.extend(kit.make(family), 4 * LENGTH, method), ids)
    before = kit.sparse(kit.extend(kit.make(family), 4 * LENGTH, method))
    after = kit.extend(kit.sparse(kit.make(family)), 4 * LENGTH, method)
    torch.testing.assert_close(kit.logits(before, ids), dense, rtol=1e-3, atol=1e-3)
    assert torch.equal(kit.logits(before, ids), kit.logits(after, ids))
    after.save_pretrained(tmp_path)
    loaded = type(after).from_pretrained(tmp_path, attn_implementation="longspan").eval()
    assert torch.equal(kit.logits(loaded, ids), kit.logits(before, ids))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "modernbert"])
def test_documents_whose_positions_restart(kit, family, method):
    """Each document of a packed row has the logits it has alone."""
    model = kit.extend(kit.sparse(kit.make(family)), 4 * LENGTH, method)
    long = LENGTH + 16
    ids = kit.tokens(2 * long)
    positions = torch.arange(long).repeat(2)[None]
    documents = torch.arange(2).repeat_interleave(long)[None]
    packed = kit.logits(model, ids, position_ids=positions, document_ids=documents)
    alone = torch.cat([kit.logits(model, part) for part in ids.split(long, 1)], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_caches_of_a_forward_do_not_outlive_an_extension(kit, method):
    ids = kit.tokens(3 * LENGTH)
    model = kit.extend(kit.make(), 2 * LENGTH, method)
    kit.logits(model, ids)
    options = {
        name: [3 * value for value in values] for name, values in kit.options_of(model, method).items()
    }
    extend_rotary(model, 4 * LENGTH, method, **options)
    fresh = extend_rotary(kit.make(), 4 * LENGTH, method, **options)
    torch.testing.assert_close(kit.logits(model, ids), kit.logits(fresh, ids))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "modernbert"])
def test_restored_it_is_the_original(kit, family, method):
    model, ids = kit.make(family), kit.tokens(3 * LENGTH)
    before, config = kit.logits(model, ids), model.config.to_dict()
    state = rotary_state(model)
    kit.extend(model, 4 * LENGTH, method)
    kit.logits(model, ids)
    restore_rotary(model, state)
    assert torch.equal(kit.logits(model, ids), before)
    assert model.config.to_dict() == config


def test_a_yarn_model_from_elsewhere_goes_on_from_its_original_length(kit):
    parameters = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 2.0,
        "original_max_position_embeddings": LENGTH,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
    }
    # Whether its configuration counts the length before or after the scaling.
    for length in (LENGTH, 2 * LENGTH):
        sizes = {**kit.GROUPED, "max_position_embeddings": length}
        model = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=dict(parameters))).eval()
        assert rotary_positions(model) == 2 * LENGTH
        extend_rotary(model, 8 * LENGTH, "yarn")
        assert model.config.rope_parameters["factor"] == 8
        assert model.config.rope_parameters["beta_fast"] == 4
        assert rotary_factor(model) == 8
        direct = extend_rotary(kit.one_layer(16, 1e4, LENGTH), 8 * LENGTH, "yarn", beta_fast=4, beta_slow=0.5)
        assert torch.equal(model.model.rotary_emb.inv_freq, direct.model.rotary_emb.inv_freq)
