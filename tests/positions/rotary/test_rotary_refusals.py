"""What extend_rotary refuses, and that it then leaves the model alone."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import longspan
from longspan.positions.rotary import METHODS, extend_rotary

LENGTH = 32


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((31, "linear"), {}, r"max_positions \(31\) must be at least the 32 positions"),
        ((64.0, "linear"), {}, "max_positions must be a positive number of tokens, got 64.0"),
        ((0, "linear"), {}, "max_positions must be a positive number"),
        ((64, "su"), {}, "method must be one of linear, ntk, dynamic, yarn, longrope; got 'su'"),
        ((64, "linear"), {"factor": 2}, "'linear' has no option factor. Allowed: none"),
        (
            (64, "yarn"),
            {"beta": 2},
            "'yarn' has no option beta. Allowed: beta_fast, beta_slow, attention_factor",
        ),
        ((64, "yarn"), {"beta_fast": 1, "beta_slow": 4}, r"beta_fast \(1.0\) must be greater than beta_slow"),
        ((64, "yarn"), {"beta_slow": 32}, "must be greater than beta_slow"),
        ((64, "yarn"), {"attention_factor": 0}, "attention_factor must be a positive number, got 0"),
        ((64, "yarn"), {"beta_fast": True}, "beta_fast must be a positive number, got True"),
        ((64, "dynamic"), {"factor": 0.5}, "factor must be at least 1, got 0.5"),
        ((64, "longrope"), {"short_factor": [1.0] * 8}, "long_factor must be given"),
        (
            (64, "longrope"),
            {"short_factor": [1.0] * 8, "long_factor": [1.0] * 7},
            "long_factor must have 8 numbers, half the rotary dimension of 16; got 7",
        ),
        (
            (32, "longrope"),
            {"short_factor": [1.0] * 9, "long_factor": [1.0] * 8},
            "short_factor must have 8 numbers",
        ),
        (
            (64, "longrope"),
            {"short_factor": [1.0, -1.0], "long_factor": [1.0] * 8},
            r"short_factor\[1\] must be a positive number, got -1.0",
        ),
        ((64, "longrope"), {"short_factor": 2, "long_factor": [1.0] * 8}, "short_factor must be a list"),
    ],
)
def test_what_is_refused_leaves_the_model_alone(kit, arguments, options, message):
    model = kit.make()
    config, inv_freq = model.config.to_dict(), model.model.rotary_emb.inv_freq
    with pytest.raises(ValueError, match=message):
        extend_rotary(model, *arguments, **options)
    assert model.config.to_dict() == config
    assert model.model.rotary_emb.inv_freq is inv_freq


@pytest.mark.parametrize("method", METHODS)
def test_neither_shrinking_nor_another_method_after_the_first(kit, method):
    model = kit.extend(kit.make(), 4 * LENGTH, method)
    with pytest.raises(ValueError, match=r"max_positions \(64\) must be at least the 128 positions"):
        kit.extend(model, 64, method)
    for other in METHODS:
        if other != method:
            with pytest.raises(
                ValueError, match=f"method must be '{method}', by which this model is extended"
            ):
                kit.extend(model, 8 * LENGTH, other)


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
    ids=lambda parameters: parameters["rope_type"],
)
def test_models_scaled_elsewhere(kit, parameters):
    config = LlamaConfig(**kit.GROUPED, rope_parameters={**parameters, "rope_theta": 1e4})
    for method in ("linear", "yarn", "ntk"):
        with pytest.raises(ValueError, match=f"scaled already: .* rope_type {parameters['rope_type']}"):
            extend_rotary(LlamaForCausalLM(config), 64, method)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_models_without_rotary_positions(kit, architecture):
    model = longspan.models.build_model(
        architecture, "clm", 40, 32, hidden_size=16, num_layers=1, num_heads=2
    )
    with pytest.raises(ValueError, match="has no rotary positions"):
        extend_rotary(model, 64, "linear")
    with pytest.raises(ValueError, match="has no rotary positions"):
        extend_rotary(torch.nn.Linear(2, 2), 64, "linear")


def test_a_scaling_that_the_configuration_refuses(kit):
    model = kit.make("phi3")
    config, inv_freq = model.config.to_dict(), model.model.rotary_emb.inv_freq
    with pytest.raises(ValueError, match=r"Phi3Config does not take this scaling: .*must be one of"):
        extend_rotary(model, 64, "linear")
    assert model.config.to_dict() == config
    assert model.model.rotary_emb.inv_freq is inv_freq
