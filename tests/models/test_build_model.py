"""Models built from a handful of numbers."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from longspan.models import build_model

CONF = Path(__file__).parents[2] / "conf" / "model"
IDS = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}


def _settings(name: str) -> dict:
    settings = OmegaConf.load(CONF / f"{name}.yaml")
    settings.max_positions = 256
    settings = OmegaConf.to_container(settings)
    assert settings.pop("_target_") == "longspan.models.build.build_model"
    return settings


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "pretrained")
)
def test_each_configuration_file_makes_a_model_of_a_million_parameters(name):
    settings = _settings(name)
    assert settings["architecture"] == name
    objective = "clm" if name in ("gpt2", "llama") else "mlm"
    model = build_model(objective=objective, vocab_size=260, **IDS, **settings)
    assert 0.8e6 < model.num_parameters() < 3e6
    assert model.config.num_attention_heads == settings["num_heads"]
    assert model.training
    assert model(torch.randint(0, 256, (1, 256))).logits.shape == (1, 256, 260)


@pytest.mark.parametrize(
    ("architecture", "objective", "class_name"),
    [
        ("bert", "mlm", "BertForMaskedLM"),
        ("bert", "clm", "BertLMHeadModel"),
        ("roberta", "mlm", "RobertaForMaskedLM"),
        ("roberta", "clm", "RobertaForCausalLM"),
        ("modernbert", "mlm", "ModernBertForMaskedLM"),
        ("modernbert", "clm", "ModernBertDecoderForCausalLM"),
        ("gpt2", "clm", "GPT2LMHeadModel"),
        ("llama", "clm", "LlamaForCausalLM"),
    ],
)
def test_objective_chooses_class_and_direction(architecture, objective, class_name, kit):
    model = kit.make_model(architecture, objective)
    assert type(model).__name__ == class_name
    ids = torch.arange(20)[None]
    changed = ids.clone()
    changed[0, -1] = 30
    with torch.no_grad():
        out, other = model(ids), model(changed)
    unmoved = torch.equal(out.logits[:, :-1], other.logits[:, :-1])
    assert unmoved == (objective == "clm")
    assert getattr(out, "past_key_values", None) is None


def test_token_ids_reach_the_configuration(kit):
    config = kit.make_model("modernbert").config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (36, 37, 38)
    assert (config.cls_token_id, config.sep_token_id) == (37, 38)


def test_the_longest_sequence_fits():
    for architecture, objective in (("bert", "mlm"), ("roberta", "mlm"), ("gpt2", "clm")):
        model = build_model(architecture, objective, 260, 100, 32, 1, 4, **IDS)
        assert model(torch.randint(0, 256, (1, 100))).logits.shape == (1, 100, 260)
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.randint(0, 256, (1, 101)))


def test_vocabulary_is_rounded_up_when_asked():
    model = build_model("llama", "clm", 260, 64, 32, 1, 4, vocab_multiple=64)
    assert model.get_input_embeddings().num_embeddings == 320
    assert build_model("llama", "clm", 260, 64, 32, 1, 4).config.vocab_size == 260


def test_gradient_checkpointing_is_on_when_asked():
    for asked in (False, True):
        model = build_model("bert", "mlm", 40, 64, 32, 1, 4, gradient_checkpointing=asked)
        assert model.bert.encoder.layer[0].gradient_checkpointing == asked


def test_overrides_reach_the_configuration():
    overrides = {"local_attention": 32, "global_attn_every_n_layers": 2}
    model = build_model("modernbert", "mlm", 40, 64, 32, 4, 4, config_overrides=overrides)
    assert model.config.layer_types == ["full_attention", "sliding_attention"] * 2
    assert model.config.sliding_window == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "t5"},
            "architecture must be one of bert, roberta, modernbert, gpt2, llama; got 't5'",
        ),
        ({"objective": "lm"}, "objective must be one of mlm, clm; got 'lm'"),
        ({"architecture": "gpt2"}, "objective must be clm for gpt2"),
        ({"architecture": "llama"}, "objective must be clm for llama"),
        ({"hidden_size": 33}, r"hidden_size \(33\) must be a multiple of num_heads \(4\)"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"intermediate_size": 0}, "intermediate_size must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"pad_token_id": 40}, "pad_token_id must lie in"),
        ({"num_kv_heads": 2}, "num_kv_heads must be None or num_heads"),
        ({"architecture": "llama", "objective": "clm", "num_kv_heads": 3}, "num_kv_heads must divide"),
        ({"architecture": "roberta"}, "pad_token_id must be given for roberta"),
        ({"architecture": "modernbert", "objective": "clm"}, "pad_token_id must be given"),
        ({"config_overrides": {"foo": 1}}, "no field of BertConfig: foo. Allowed: .*layer_norm_eps"),
        ({"config_overrides": {"global_attn_every_n_layers": 1}}, "no field of BertConfig"),
        ({"config_overrides": {"hidden_size": 64}}, "must not set hidden_size"),
        (
            {"architecture": "gpt2", "objective": "clm", "config_overrides": {"n_embd": 64}},
            "must not set n_embd",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message):
    arguments = {
        "architecture": "bert",
        "objective": "mlm",
        "vocab_size": 40,
        "max_positions": 64,
        "hidden_size": 32,
        "num_layers": 1,
        "num_heads": 4,
    }
    with pytest.raises(ValueError, match=message):
        build_model(**{**arguments, **changes})
