"""The frequencies and scales of each method against the papers' formulas, in float64."""

import copy
import math

import pytest
import torch

from longspan.positions.rotary import extend_rotary

LENGTH = 32


SHAPES = [(16, 1e4, 64, 4), (64, 5e5, 256, 3), (128, 1.6e5, 2048, 8), (32, 1e4, 40, 1.5)]
shapes = pytest.mark.parametrize(("dim", "base", "length", "scale"), SHAPES)


def check_embedding(kit, model, frequencies, scale=1.0):
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
def test_linear_divides_each_frequency(kit, dim, base, length, scale):
    model = extend_rotary(kit.one_layer(dim, base, length), int(scale * length), "linear")
    check_embedding(kit, model, kit.theta(dim, base) / scale)


@shapes
def test_ntk_raises_the_base(kit, dim, base, length, scale):
    model = extend_rotary(kit.one_layer(dim, base, length), int(scale * length), "ntk")
    frequencies = kit.theta(dim, base * scale ** (dim / (dim - 2)))
    check_embedding(kit, model, frequencies)
    # What the base was chosen for: the highest frequency stays, the lowest is interpolated.
    old = kit.theta(dim, base)
    assert frequencies[0] == old[0]
    assert float(frequencies[-1] * scale / old[-1]) == pytest.approx(1, rel=1e-12)


@shapes
@pytest.mark.parametrize("factor", [None, 1.0])
def test_dynamic_follows_the_length_of_the_sequence(kit, dim, base, length, scale, factor):
    model = extend_rotary(kit.one_layer(dim, base, length), int(scale * length), "dynamic", factor=factor)
    check_embedding(kit, model, kit.theta(dim, base))
    long = length + 13
    kit.logits(model, kit.tokens(long))
    by = scale if factor is None else factor
    raised = base * (by * long / length - (by - 1)) ** (dim / (dim - 2))
    if factor == 1.0:
        # Peng et al. 2023, section 3.3: NTK-aware with the scale that this very length needs.
        assert raised == pytest.approx(base * (long / length) ** (dim / (dim - 2)), rel=1e-12)
    torch.testing.assert_close(
        model.model.rotary_emb.inv_freq.double(), kit.theta(dim, raised), rtol=2e-6, atol=0
    )
    kit.logits(model, kit.tokens(length - 1))
    check_embedding(kit, model, kit.theta(dim, base))


@shapes
@pytest.mark.parametrize(
    "options",
    [{}, {"beta_fast": 8, "beta_slow": 2}, {"attention_factor": 1}],
    ids=["default", "beta", "factor"],
)
def test_yarn(kit, dim, base, length, scale, options):
    model = extend_rotary(kit.one_layer(dim, base, length), int(scale * length), "yarn", **options)
    old = kit.theta(dim, base)
    fast, slow = options.get("beta_fast", 32), options.get("beta_slow", 1)

    def index_of(turns):
        # i with length * theta_i = 2 pi * turns
        return dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = max(math.floor(index_of(fast)), 0), min(math.ceil(index_of(slow)), dim - 1)
    assert low < high
    ramp = torch.tensor([min(max((i - low) / (high - low), 0), 1) for i in range(dim // 2)]).double()
    wanted = old / scale * ramp + old * (1 - ramp)
    check_embedding(kit, model, wanted, options.get("attention_factor", 0.1 * math.log(scale) + 1))
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
def test_longrope_has_factors_for_short_and_for_long(kit, dim, base, length, scale, attention_factor):
    model = kit.one_layer(dim, base, length)
    options = kit.options_of(model, "longrope")
    extend_rotary(model, int(scale * length), "longrope", attention_factor=attention_factor, **options)
    short, long = (torch.tensor(options[f"{name}_factor"]).double() for name in ("short", "long"))
    by = attention_factor or math.sqrt(1 + math.log(scale) / math.log(length))
    check_embedding(kit, model, kit.theta(dim, base) / short, by)
    kit.logits(model, kit.tokens(length + 1))
    torch.testing.assert_close(
        model.model.rotary_emb.inv_freq.double(), kit.theta(dim, base) / long, rtol=2e-6, atol=0
    )
    kit.logits(model, kit.tokens(length))
    check_embedding(kit, model, kit.theta(dim, base) / short, by)


def test_a_partial_rotary_factor_counts(kit):
    model = kit.make("stablelm")
    assert model.model.rotary_emb.inv_freq.numel() == 4  # half of a half of 16
    extended = extend_rotary(copy.deepcopy(model), 4 * LENGTH, "ntk")
    frequencies = kit.theta(8, 1e4 * 4 ** (8 / 6))
    torch.testing.assert_close(extended.model.rotary_emb.inv_freq.double(), frequencies, rtol=2e-6, atol=0)
    assert extended.config.rope_parameters["partial_rotary_factor"] == 0.5
    extended = extend_rotary(model, 4 * LENGTH, "yarn")
    assert extended.config.rope_parameters["partial_rotary_factor"] == 0.5
    assert extended.model.rotary_emb.inv_freq.numel() == 4
