"""Equal to dense masked attention in float64: every pattern, option, length and block size."""

import math

import pytest
import torch

from longspan import sparsity
from longspan_kernels import BlockLayout, block_sparse_attention
from longspan_kernels.torch_backend import attention, row_groups

pytestmark = pytest.mark.usefixtures("poison")

HEADS, BLOCK = 2, 8
PATTERNS = {
    "dense": sparsity.DenseSparsityConfig(HEADS, BLOCK),
    "fixed": sparsity.FixedSparsityConfig(HEADS, BLOCK, num_local_blocks=2, num_global_blocks=1),
    "fixed_causal": sparsity.FixedSparsityConfig(
        HEADS, BLOCK, True, num_local_blocks=4, attention="unidirectional", num_different_global_patterns=2
    ),
    "variable": sparsity.VariableSparsityConfig(
        HEADS, BLOCK, num_random_blocks=1, local_window_blocks=(1, 3), horizontal_global_attention=True
    ),
    "bigbird": sparsity.BigBirdSparsityConfig(HEADS, BLOCK, True),
    "bigbird_causal": sparsity.BigBirdSparsityConfig(HEADS, BLOCK, attention="unidirectional"),
    "bslongformer": sparsity.BSLongformerSparsityConfig(HEADS, BLOCK, global_block_indices=(0, 3)),
    "local_sliding_window": sparsity.LocalSlidingWindowSparsityConfig(HEADS, BLOCK),
}
Q_LEN, K_LEN = 45, 61


def _options(name, generator):
    def numbers(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    padding = torch.rand(2, K_LEN, generator=generator) < 0.7
    documents = torch.arange(K_LEN).div(13, rounding_mode="floor") + torch.tensor([[0], [100]])
    learned = numbers(HEADS, Q_LEN, K_LEN).requires_grad_()
    every = {
        "plain": {},
        "causal": {"causal": True},
        "not_causal": {"causal": False},
        "scale": {"scale": 0.3},
        "padding": {"key_padding_mask": padding},
        "padding_added": {"key_padding_mask": numbers(2, K_LEN)},
        "padding_of_one": {"key_padding_mask": torch.tensor([[False], [True]]).expand(2, K_LEN)},
        "mask": {"attn_mask": numbers(Q_LEN, K_LEN) > -0.5},
        "mask_of_heads": {"attn_mask": numbers(2, HEADS, Q_LEN, K_LEN) > -0.5},
        "mask_added": {"attn_mask": numbers(2, 1, Q_LEN, K_LEN)},
        "bias": {"bias": learned},
        "documents": {"document_ids": documents},
        "window": {"window": (9, 4)},
        "window_left": {"window": (20, None)},
        "dropout": {"dropout_p": 0.4, "dropout_seed": 2**63 + 12345},
        "all": {
            "causal": True,
            "scale": 0.4,
            "key_padding_mask": padding,
            "attn_mask": numbers(2, 1, 1, K_LEN),
            "bias": learned,
            "document_ids": documents.int(),
            "window": (30, None),
            "dropout_p": 0.2,
            "dropout_seed": 7,
        },
    }
    return every if name is None else every[name]


@pytest.mark.parametrize("option", list(_options(None, torch.Generator())))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_and_options(kit, pattern, option):
    layout = PATTERNS[pattern].layout(K_LEN, Q_LEN)
    assert layout.lead == (K_LEN - Q_LEN) % BLOCK
    options = _options(option, torch.Generator().manual_seed(3))
    kit.check(*kit.tensors(2, HEADS, 1, Q_LEN, K_LEN), layout, **options)


@pytest.mark.parametrize("block", [*range(1, 19), 31, 32, 63, 64, 65, 127, 128])
def test_block_sizes(kit, block):
    layout = kit.random_layout(2, 100, 133, block, causal=True, lead=block // 3, seed=block)
    kit.check(*kit.tensors(1, 2, 2, 100, 133), layout, dropout_p=0.25, dropout_seed=block)


@pytest.mark.parametrize(("q_len", "k_len"), [(1, 1), (1, 100), (63, 63), (100, 63), (257, 1000), (64, 128)])
@pytest.mark.parametrize("causal", [False, True])
def test_lengths(kit, q_len, k_len, causal):
    layout = kit.random_layout(2, q_len, k_len, 16, causal=causal)
    kit.check(*kit.tensors(1, 2, 1, q_len, k_len), layout)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (6, 3), (6, 2), (6, 1)])
def test_grouped_heads_and_values_of_another_dimension(kit, heads, kv_heads):
    layout = kit.random_layout(heads, 40, 40, 8)
    kit.check(*kit.tensors(2, heads, kv_heads, 40, 40, dim=5, v_dim=3), layout)


def test_empty_rows_give_zeros_and_zero_gradients(kit):
    dense = torch.zeros(2, 4, 4)
    dense[1, 2, 1] = 1
    layout = BlockLayout.from_dense(dense, 8)
    q, k, v = kit.tensors(1, 2, 2, 32, 32)
    out, lse = block_sparse_attention(q, k, v, layout, return_lse=True)
    empty = ~kit.token_mask(layout, 32, 32).any(-1)
    assert (out[0][empty] == 0).all()
    assert (lse[0][empty] == -math.inf).all()
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert all(torch.isfinite(g).all() for g in grads)
    assert (grads[0][0][empty] == 0).all()
    assert grads[0][0][~empty].abs().min() > 0
    kit.check(q, k, v, layout)


def test_a_layout_without_blocks(kit):
    layout = BlockLayout.from_dense(torch.zeros(2, 4, 4), 8)
    out = kit.check(*kit.tensors(1, 2, 2, 32, 32), layout)
    assert (out == 0).all()


def test_long_rows_in_segments_and_small_chunks(kit, monkeypatch):
    """Segments of a row are merged, and no sum depends on how work is cut."""
    monkeypatch.setattr(row_groups, "_SEGMENT_KEYS", 24)
    monkeypatch.setattr(row_groups, "_WASTE", 0)
    monkeypatch.setattr(attention, "_groups", type(attention._groups)())
    bias = torch.randn(2, 4, 100, 100, dtype=torch.float64).requires_grad_()
    for budget in (1, 700, 5000):
        monkeypatch.setattr(attention, "_BUDGET", budget)
        for causal in (False, True):
            layout = kit.random_layout(4, 100, 100, 8, causal=causal, density=0.7)
            kit.check(*kit.tensors(2, 4, 2, 100, 100), layout, bias=bias)
            padding = torch.arange(100).expand(2, -1) > 50  # whole segments without a key
            kit.check(*kit.tensors(2, 4, 2, 100, 100), layout, key_padding_mask=padding)


@pytest.mark.parametrize(
    "shape",
    [(), (30,), (1, 30), (20, 1), (20, 30), (3, 1, 1), (3, 20, 30), (2, 1, 1, 30), (2, 3, 1, 1),
     (1, 1, 20, 30), (2, 3, 20, 30), (1, 3, 1, 30)],
)  # fmt: skip
def test_broadcasting_of_masks_and_bias(kit, shape):
    generator = torch.Generator().manual_seed(5)
    layout = kit.random_layout(3, 20, 30, 4, density=0.8)
    q, k, v = kit.tensors(2, 3, 3, 20, 30)
    bias = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    kit.check(q, k, v, layout, bias=bias)  # compares the gradient, in the bias's own shape
    kit.check(q, k, v, layout, attn_mask=torch.randn(shape, generator=generator) > -0.3)
    kit.check(q, k, v, layout, attn_mask=torch.randn(shape, generator=generator))


def test_bias_of_another_dtype_keeps_it_in_its_gradient(kit):
    layout = kit.random_layout(2, 16, 16, 4)
    q, k, v = kit.tensors(1, 2, 2, 16, 16)
    bias = torch.randn(16, 16, requires_grad=True)
    block_sparse_attention(q, k, v, layout, bias=bias).sum().backward()
    assert bias.grad is not None
    assert bias.grad.dtype == torch.float32


def test_strided_and_expanded_inputs(kit):
    layout = kit.random_layout(2, 32, 32, 8)
    q, k, v = (x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in kit.tensors(3, 2, 2, 32, 32))
    assert not q.is_contiguous()
    kit.check(q.requires_grad_(), k.requires_grad_(), v[:1].requires_grad_().expand(3, -1, -1, -1), layout)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1.5e-3)])
def test_half_types_are_rounded_once(kit, dtype, tolerance):
    """Computed in float32: the error is that of rounding inputs' results, values and gradients."""
    layout = kit.random_layout(2, 100, 100, 16, causal=True, density=0.9)
    q, k, v = kit.tensors(1, 2, 1, 100, 100, dim=32, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out, lse = block_sparse_attention(q, k, v, layout, return_lse=True)
    expected, expected_lse = kit.dense_attention(*exact, layout)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    grads = torch.autograd.grad(out, (q, k, v), weight)
    theirs = torch.autograd.grad(expected, exact, weight.double())
    for mine, true in zip(grads, theirs, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), true, rtol=2 * tolerance, atol=2 * tolerance)


def test_large_scores_do_not_overflow(kit):
    layout = kit.random_layout(1, 32, 32, 8, density=1.0)
    q, k, v = kit.tensors(1, 1, 1, 32, 32)
    out = block_sparse_attention(q * 1e4, k, v, layout)
    torch.testing.assert_close(out, kit.dense_attention(q * 1e4, k, v, layout)[0])


def test_the_same_bits_again(kit):
    layout = kit.random_layout(4, 200, 200, 16, density=0.8)
    q, k, v = kit.tensors(2, 4, 2, 200, 200, dim=16, dtype=torch.float32)
    bias = torch.randn(200, requires_grad=True)

    def run():
        out = block_sparse_attention(q, k, v, layout, bias=bias)
        return out, *torch.autograd.grad(out.sum(), (q, k, v, bias))

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_empty_batch(kit):
    layout = kit.random_layout(2, 16, 16, 8)
    q, k, v = kit.tensors(0, 2, 2, 16, 16)
    out = block_sparse_attention(q, k, v, layout)
    assert out.shape == (0, 2, 16, 4)
    assert torch.autograd.grad(out.sum(), k)[0].shape == k.shape
