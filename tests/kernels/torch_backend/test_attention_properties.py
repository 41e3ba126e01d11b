"""Any small layout with any options equals dense attention, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("poison")


@st.composite
def calls(draw):
    block = draw(st.integers(1, 9))
    q_len, k_len = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    kv_heads = draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 2))
    batch = draw(st.integers(1, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def random(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shape = [size if draw(st.booleans()) else 1 for size in (batch, heads, q_len, k_len)]
    shape = shape[draw(st.integers(0, 3)) :]
    bound = st.none() | st.integers(0, 12)
    every = {
        "causal": st.sampled_from([True, False]),
        "scale": st.floats(0.1, 1.0),
        "key_padding_mask": st.just(random((batch, k_len)) > -0.5),
        "attn_mask": st.sampled_from([random(shape) > -0.5, random(shape)]),
        "bias": st.just(random(shape).requires_grad_()),
        "document_ids": st.just((random((batch, k_len)) > 0).long()),
        "window": st.tuples(bound, bound),
        "dropout_p": st.sampled_from([0.2, 0.7]),
    }
    if q_len > k_len:
        del every["document_ids"]
    options = draw(st.fixed_dictionaries({}, optional=every))
    if "dropout_p" in options:
        options["dropout_seed"] = draw(st.integers(0, 2**64 - 1))
    layout = {
        "block": block,
        "causal": draw(st.booleans()),
        "lead": draw(st.integers(0, block - 1)),
        "density": draw(st.sampled_from([0.2, 0.6, 1.0])),
        "seed": draw(st.integers(0, 2**31)),
    }
    return (batch, heads, kv_heads, q_len, k_len), layout, options


@settings(max_examples=60, deadline=None)
@given(call=calls())
def test_equals_dense_attention(kit, call):
    (batch, heads, kv_heads, q_len, k_len), layout, options = call
    layout = kit.random_layout(heads, q_len, k_len, **layout)
    kit.check(*kit.tensors(batch, heads, kv_heads, q_len, k_len, dim=2, v_dim=3), layout, **options)
