"""Rotary positions: the papers' formulas, and what stays as it was."""

import copy
import math

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    ModernBertForMaskedLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import longspan
from longspan.positions.rotary import METHODS, extend_rotary, rotary_factor, rotary_positions
from longspan.positions.rotary_modules import restore_rotary, rotary_modules, rotary_state
from longspan.sparsity import DenseSparsityConfig

LENGTH = 32
SIZES = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "stablelm": lambda: StableLmForCausalLM(StableLmConfig(**GROUPED, partial_rotary_factor=0.5)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**GROUPED, original_max_position_embeddings=LENGTH)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **GROUPED,
            head_dim=16,
            sliding_window=8,
            layer_types=["full_attention", "sliding_attention"],
        )
    ),
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**SIZES, local_attention=8)),
    "modernbert_decoder": lambda: ModernBertDecoderForCausalLM(
        ModernBertDecoderConfig(**SIZES, local_attention=8)
    ),
}
NESTED = ("gemma3", "modernbert", "modernbert_decoder")


def make(family="llama"):
    """A tiny model whose attention matters to its logits."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return model.eval()


def options_of(model, method):
    """The options that a method needs: factors that differ from pair to pair."""
    if method != "longrope":
        return {}
    pairs = next(buffer for buffer in rotary_modules(model)[0].buffers()).numel()
    return {
        "short_factor": [1 + 0.01 * i for i in range(pairs)],
        "long_factor": [1 + 0.5 * i for i in range(pairs)],
    }


def extend(model, max_positions, method):
    return extend_rotary(model, max_positions, method, **options_of(model, method))


def tokens(length, batch=1):
    return torch.randint(3, 40, (batch, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def logits(model, ids, **inputs):
    return model(input_ids=ids, **inputs).logits


def one_layer(head_dim, base, length):
    sizes = {**SIZES, "hidden_size": 2 * head_dim, "num_attention_heads": 2, "num_hidden_layers": 1}
    parameters = {"rope_type": "default", "rope_theta": base}
    config = LlamaConfig(**{**sizes, "max_position_embeddings": length}, rope_parameters=parameters)
    return LlamaForCausalLM(config).eval()


# ---- the formulas, in float64 -------------------------------------------------------------------------------

SHAPES = [(16, 1e4, 64, 4), (64, 5e5, 256, 3), (128, 1.6e5, 2048, 8), (32, 1e4, 40, 1.5)]
shapes = pytest.mark.parametrize(("dim", "base", "length", "scale"), SHAPES)


def theta(dim, base):
    return torch.tensor([base ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)


def check_embedding(model, frequencies, scale=1.0):
    """The buffers, and what the module makes of them: cos and sin [batch, length, dim]."""
    rotary = model.model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32
    torch.testing.assert_close(rotary.inv_freq.double(), frequencies, rtol=2e-6, atol=0)
    assert rotary.attention_scaling == pytest.approx(scale, rel=1e-12)
    positions = torch.tensor([[0, 1, 7, 20]])
    cos, sin = rotary(torch.zeros(1), positions)
    angles = positions[0, :, None].double() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    torch.testing.assert_close(cos[0].double(), angles.cos() * scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(sin[0].double(), angles.sin() * scale, rtol=0, atol=1e-5)


@shapes
def test_linear_divides_each_frequency(dim, base, length, scale):
    model = extend_rotary(one_layer(dim, base, length), int(scale * length), "linear")
    check_embedding(model, theta(dim, base) / scale)


@shapes
def test_ntk_raises_the_base(dim, base, length, scale):
    model = extend_rotary(one_layer(dim, base, length), int(scale * length), "ntk")
    frequencies = theta(dim, base * scale ** (dim / (dim - 2)))
    check_embedding(model, frequencies)
    # What the base was chosen for: the highest frequency stays, the lowest is interpolated.
    old = theta(dim, base)
    assert frequencies[0] == old[0]
    assert float(frequencies[-1] * scale / old[-1]) == pytest.approx(1, rel=1e-12)


@shapes
@pytest.mark.parametrize("factor", [None, 1.0])
def test_dynamic_follows_the_length_of_the_sequence(dim, base, length, scale, factor):
    model = extend_rotary(one_layer(dim, base, length), int(scale * length), "dynamic", factor=factor)
    check_embedding(model, theta(dim, base))
    long = length + 13
    logits(model, tokens(long))
    by = scale if factor is None else factor
    raised = base * (by * long / length - (by - 1)) ** (dim / (dim - 2))
    if factor == 1.0:
        # Peng et al. 2023, section 3.3: NTK-aware with the scale that this very length needs.
        assert raised == pytest.approx(base * (long / length) ** (dim / (dim - 2)), rel=1e-12)
    torch.testing.assert_close(
        model.model.rotary_emb.inv_freq.double(), theta(dim, raised), rtol=2e-6, atol=0
    )
    logits(model, tokens(length - 1))
    check_embedding(model, theta(dim, base))


@shapes
@pytest.mark.parametrize(
    "options",
    [{}, {"beta_fast": 8, "beta_slow": 2}, {"attention_factor": 1}],
    ids=["default", "beta", "factor"],
)
def test_yarn(dim, base, length, scale, options):
    model = extend_rotary(one_layer(dim, base, length), int(scale * length), "yarn", **options)
    old = theta(dim, base)
    fast, slow = options.get("beta_fast", 32), options.get("beta_slow", 1)

    def index_of(turns):
        # i with length * theta_i = 2 pi * turns
        return dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = max(math.floor(index_of(fast)), 0), min(math.ceil(index_of(slow)), dim - 1)
    assert low < high
    ramp = torch.tensor([min(max((i - low) / (high - low), 0), 1) for i in range(dim // 2)]).double()
    wanted = old / scale * ramp + old * (1 - ramp)
    check_embedding(model, wanted, options.get("attention_factor", 0.1 * math.log(scale) + 1))
    # The paper's two ends, by the turns that a frequency makes within the original length; the authors'
    # program widens the ramp to whole indices.
    turns = length * old / (2 * math.pi)
    new = model.model.rotary_emb.inv_freq.double()
    widest = base ** (2 / dim)
    assert torch.allclose(new[turns > fast * widest], old[turns > fast * widest], rtol=2e-6, atol=0)
    assert torch.allclose(new[turns < slow / widest], old[turns < slow / widest] / scale, rtol=2e-6, atol=0)
    assert ((new <= old * 1.000002) & (new >= old / scale * 0.999998)).all()


@shapes
@pytest.mark.parametrize("attention_factor", [None, 1.25])
def test_longrope_has_factors_for_short_and_for_long(dim, base, length, scale, attention_factor):
    model = one_layer(dim, base, length)
    options = options_of(model, "longrope")
    extend_rotary(model, int(scale * length), "longrope", attention_factor=attention_factor, **options)
    short, long = (torch.tensor(options[f"{name}_factor"]).double() for name in ("short", "long"))
    by = attention_factor or math.sqrt(1 + math.log(scale) / math.log(length))
    check_embedding(model, theta(dim, base) / short, by)
    logits(model, tokens(length + 1))
    torch.testing.assert_close(
        model.model.rotary_emb.inv_freq.double(), theta(dim, base) / long, rtol=2e-6, atol=0
    )
    logits(model, tokens(length))
    check_embedding(model, theta(dim, base) / short, by)


def test_a_partial_rotary_factor_counts():
    model = make("stablelm")
    assert model.model.rotary_emb.inv_freq.numel() == 4  # half of a half of 16
    extended = extend_rotary(copy.deepcopy(model), 4 * LENGTH, "ntk")
    frequencies = theta(8, 1e4 * 4 ** (8 / 6))
    torch.testing.assert_close(extended.model.rotary_emb.inv_freq.double(), frequencies, rtol=2e-6, atol=0)
    assert extended.config.rope_parameters["partial_rotary_factor"] == 0.5
    extended = extend_rotary(model, 4 * LENGTH, "yarn")
    assert extended.config.rope_parameters["partial_rotary_factor"] == 0.5
    assert extended.model.rotary_emb.inv_freq.numel() == 4


# ---- what a model computes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_its_own_length_changes_nothing(family, method):
    model = make(family)
    config, ids = model.config.to_dict(), tokens(LENGTH, 2)
    before = logits(model, ids)
    assert extend(model, LENGTH, method) is model
    assert model.config.to_dict() == config
    assert torch.equal(logits(model, ids), before)
    assert rotary_positions(model) == LENGTH
    assert rotary_factor(model) == 1


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "stablelm"])
def test_linear_at_scaled_positions_is_the_original(family):
    model, ids = make(family), tokens(LENGTH, 2)
    positions = torch.arange(LENGTH).expand(2, -1)
    before = logits(model, ids, position_ids=positions)
    extend(model, 4 * LENGTH, "linear")
    torch.testing.assert_close(logits(model, ids, position_ids=4 * positions), before, rtol=1e-4, atol=1e-4)
    assert (logits(model, ids, position_ids=positions) - before).abs().max() > 0.1


def test_linear_keeps_the_products_of_scaled_positions():
    model = one_layer(16, 1e4, 64)
    old = copy.deepcopy(model.model.rotary_emb)
    extend(model, 256, "linear")
    q, k = torch.randn(2, 1, 1, 50, 16, generator=torch.Generator().manual_seed(0))
    products = []
    for rotary, step in ((old, 1), (model.model.rotary_emb, 4)):
        turned = apply_rotary_pos_emb(q, k, *rotary(q, step * torch.arange(50)[None]))
        products.append(turned[0] @ turned[1].mT)
    torch.testing.assert_close(*products, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_dynamic_changes_only_what_is_longer(family):
    model = make(family)
    short, long = tokens(LENGTH, 2), tokens(2 * LENGTH, 2)
    before = logits(model, short), logits(model, long)
    extend(model, 4 * LENGTH, "dynamic")
    assert torch.equal(logits(model, short), before[0])
    assert (logits(model, long) - before[1]).abs().max() > 0.05
    assert rotary_positions(model) == 4 * LENGTH
    # transformers' formula reads the original length there.
    assert model.config.max_position_embeddings == LENGTH


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_it_is_the_same(family, method, tmp_path):
    model = make(family)
    before, ids = logits(model, tokens(3 * LENGTH)), tokens(3 * LENGTH)
    parameters = {name: (id(value), value.clone()) for name, value in model.named_parameters()}
    extend(model, 4 * LENGTH, method)
    after = logits(model, ids)
    assert (after - before).abs().max() > 0.05
    assert rotary_positions(model) == 4 * LENGTH
    assert rotary_factor(model) == 4
    for name, value in model.named_parameters():
        assert id(value) == parameters[name][0]
        assert torch.equal(value, parameters[name][1])
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, ids), after)
    assert rotary_positions(loaded) == 4 * LENGTH
    # Further, from the file: as if at once.
    at_once = extend(make(family), 8 * LENGTH, method)
    torch.testing.assert_close(logits(extend(loaded, 8 * LENGTH, method), ids), logits(at_once, ids))


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16(method, tmp_path):
    model = make().bfloat16()
    ids = tokens(3 * LENGTH)
    extend(model, 4 * LENGTH, method)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    # A frequency in bfloat16 would be off by a turn within a few hundred positions.
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    after = logits(model, ids)
    assert after.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert torch.equal(logits(loaded, ids), after)


def test_mode_device_and_tied_weights_stay():
    model = make().train().to("meta")
    extend(model, 4 * LENGTH, "yarn")
    assert model.training
    assert model.model.rotary_emb.training
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not make_eval_after_extension().training


def make_eval_after_extension():
    return extend(make(), 4 * LENGTH, "linear")


# ---- layers of their own parameters -------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", NESTED)
def test_only_global_layers_are_scaled(family, method):
    model = make(family)
    rotary = rotary_modules(model)[0]
    local, old = rotary.sliding_attention_inv_freq, rotary.full_attention_inv_freq.clone()
    parameters = copy.deepcopy(model.config.rope_parameters)
    extend(model, 4 * LENGTH, method)
    assert rotary.sliding_attention_inv_freq is local
    assert model.config.rope_parameters["sliding_attention"] == parameters["sliding_attention"]
    assert model.config.rope_parameters["full_attention"] != parameters["full_attention"]
    logits(model, tokens(2 * LENGTH))
    assert not torch.equal(rotary.full_attention_inv_freq, old)


def test_layer_types_are_a_choice():
    model = make("modernbert")
    rotary = model.model.rotary_emb
    old = {name: buffer.clone() for name, buffer in rotary.named_buffers()}
    extend_rotary(model, 4 * LENGTH, "linear", layer_types=["sliding_attention", "full_attention"])
    for name, buffer in rotary.named_buffers():
        torch.testing.assert_close(buffer, old[name] / 4)
    with pytest.raises(ValueError, match="layer_types must be .*extended already"):
        extend_rotary(model, 8 * LENGTH, "linear")
    for wrong in (["global"], [], "full_attention"):
        with pytest.raises(ValueError, match="layer_types must be a list of"):
            extend_rotary(make("modernbert"), 64, "linear", layer_types=wrong)
    with pytest.raises(ValueError, match="layer_types must be None"):
        extend_rotary(make(), 64, "linear", layer_types=["full_attention"])


# ---- sparse models and documents ----------------------------------------------------------------------------


def sparse(model):
    attention = "bidirectional" if model.config.model_type == "modernbert" else "unidirectional"
    return longspan.sparsify(model, DenseSparsityConfig(4, 8, attention=attention))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "modernbert"])
def test_before_and_after_sparsify_are_the_same(family, method, tmp_path):
    ids = tokens(3 * LENGTH)
    dense = logits(extend(make(family), 4 * LENGTH, method), ids)
    before = sparse(extend(make(family), 4 * LENGTH, method))
    after = extend(sparse(make(family)), 4 * LENGTH, method)
    torch.testing.assert_close(logits(before, ids), dense, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits(before, ids), logits(after, ids))
    after.save_pretrained(tmp_path)
    loaded = type(after).from_pretrained(tmp_path, attn_implementation="longspan").eval()
    assert torch.equal(logits(loaded, ids), logits(before, ids))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "modernbert"])
def test_documents_whose_positions_restart(family, method):
    """Each document of a packed row has the logits it has alone."""
    model = extend(sparse(make(family)), 4 * LENGTH, method)
    long = LENGTH + 16
    ids = tokens(2 * long)
    positions = torch.arange(long).repeat(2)[None]
    documents = torch.arange(2).repeat_interleave(long)[None]
    packed = logits(model, ids, position_ids=positions, document_ids=documents)
    alone = torch.cat([logits(model, part) for part in ids.split(long, 1)], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


# ---- once more, and back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_caches_of_a_forward_do_not_outlive_an_extension(method):
    ids = tokens(3 * LENGTH)
    model = extend(make(), 2 * LENGTH, method)
    logits(model, ids)
    options = {name: [3 * value for value in values] for name, values in options_of(model, method).items()}
    extend_rotary(model, 4 * LENGTH, method, **options)
    fresh = extend_rotary(make(), 4 * LENGTH, method, **options)
    torch.testing.assert_close(logits(model, ids), logits(fresh, ids))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "phi3", "modernbert"])
def test_restored_it_is_the_original(family, method):
    model, ids = make(family), tokens(3 * LENGTH)
    before, config = logits(model, ids), model.config.to_dict()
    state = rotary_state(model)
    extend(model, 4 * LENGTH, method)
    logits(model, ids)
    restore_rotary(model, state)
    assert torch.equal(logits(model, ids), before)
    assert model.config.to_dict() == config


def test_a_yarn_model_from_elsewhere_goes_on_from_its_original_length():
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
        sizes = {**GROUPED, "max_position_embeddings": length}
        model = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=dict(parameters))).eval()
        assert rotary_positions(model) == 2 * LENGTH
        extend_rotary(model, 8 * LENGTH, "yarn")
        assert model.config.rope_parameters["factor"] == 8
        assert model.config.rope_parameters["beta_fast"] == 4
        assert rotary_factor(model) == 8
        direct = extend_rotary(one_layer(16, 1e4, LENGTH), 8 * LENGTH, "yarn", beta_fast=4, beta_slow=0.5)
        assert torch.equal(model.model.rotary_emb.inv_freq, direct.model.rotary_emb.inv_freq)


# ---- refusals -----------------------------------------------------------------------------------------------


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
def test_what_is_refused_leaves_the_model_alone(arguments, options, message):
    model = make()
    config, inv_freq = model.config.to_dict(), model.model.rotary_emb.inv_freq
    with pytest.raises(ValueError, match=message):
        extend_rotary(model, *arguments, **options)
    assert model.config.to_dict() == config
    assert model.model.rotary_emb.inv_freq is inv_freq


@pytest.mark.parametrize("method", METHODS)
def test_neither_shrinking_nor_another_method_after_the_first(method):
    model = extend(make(), 4 * LENGTH, method)
    with pytest.raises(ValueError, match=r"max_positions \(64\) must be at least the 128 positions"):
        extend(model, 64, method)
    for other in METHODS:
        if other != method:
            with pytest.raises(
                ValueError, match=f"method must be '{method}', by which this model is extended"
            ):
                extend(model, 8 * LENGTH, other)


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
def test_models_scaled_elsewhere(parameters):
    config = LlamaConfig(**GROUPED, rope_parameters={**parameters, "rope_theta": 1e4})
    for method in ("linear", "yarn", "ntk"):
        with pytest.raises(ValueError, match=f"scaled already: .* rope_type {parameters['rope_type']}"):
            extend_rotary(LlamaForCausalLM(config), 64, method)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_models_without_rotary_positions(architecture):
    model = longspan.models.build_model(
        architecture, "clm", 40, 32, hidden_size=16, num_layers=1, num_heads=2
    )
    with pytest.raises(ValueError, match="has no rotary positions"):
        extend_rotary(model, 64, "linear")
    with pytest.raises(ValueError, match="has no rotary positions"):
        extend_rotary(torch.nn.Linear(2, 2), 64, "linear")
