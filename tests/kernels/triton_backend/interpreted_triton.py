"""The Triton backend under Triton's interpreter, which has to be chosen before Triton is imported.

`test_triton_values` therefore runs this file in separate processes. Every result is compared with the
torch backend in float64; memory that the kernels do not write holds NaN.
"""

import os

import pytest
import torch
import triton  # noqa: F401  (a missing one fails here, by its name)

from longspan import sparsity
from longspan_kernels import BlockLayout, block_sparse_attention
from longspan_kernels.triton_backend import schedule as schedules

assert os.environ.get("TRITON_INTERPRET") == "1", "run with TRITON_INTERPRET=1"

pytestmark = pytest.mark.usefixtures("poison")

HEADS = 2
# Tolerance where weights are rounded to float16 before they meet the values. The largest such rounding moves
# dq by scale * |ds| * |k| * 2^-12 = 0.25 * 16 * 4 * 2^-12 = 4e-3: ds = p (dp - delta) where a gradient and
# a value of 16 normal numbers each have a product up to 16, and keys are normal numbers up to 4. Two of them,
# and the rounding of dq itself, may meet.
HALF = 1e-2
PATTERNS = {
    "dense": lambda block: sparsity.DenseSparsityConfig(HEADS, block),
    "fixed": lambda block: sparsity.FixedSparsityConfig(HEADS, block, num_local_blocks=2),
    "fixed_causal": lambda block: sparsity.FixedSparsityConfig(
        HEADS, block, True, num_local_blocks=4, attention="unidirectional", num_different_global_patterns=2
    ),
    "variable": lambda block: sparsity.VariableSparsityConfig(
        HEADS, block, True, num_random_blocks=1, local_window_blocks=(1, 2), horizontal_global_attention=True
    ),
    "bigbird": lambda block: sparsity.BigBirdSparsityConfig(HEADS, block, True),
    "bigbird_causal": lambda block: sparsity.BigBirdSparsityConfig(HEADS, block, attention="unidirectional"),
    "bslongformer": lambda block: sparsity.BSLongformerSparsityConfig(
        HEADS, block, global_block_indices=(0, 2)
    ),
    "local_sliding_window": lambda block: sparsity.LocalSlidingWindowSparsityConfig(HEADS, block),
}


def _in_float64(x):
    """A tensor as a leaf of its own in float64, anything else as it is."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        return x
    return x.detach().double().requires_grad_(x.requires_grad)


def _run(q, k, v, layout, weights, **options):
    """Context, log-sum-exp and the gradients of everything that requires one."""
    out, lse = block_sparse_attention(q, k, v, layout, return_lse=True, **options)
    leaves = [x for x in (q, k, v, options.get("bias")) if x is not None and x.requires_grad]
    weights = [w.to(x.dtype) for w, x in zip(weights, (out, lse), strict=True)]
    return out, lse, *torch.autograd.grad((out, lse), leaves, weights)


def check(q, k, v, layout, tolerance=2e-5, **options):
    """Compare values, log-sum-exp and all gradients with the reference; return the context."""
    generator = torch.Generator().manual_seed(1)
    weights = (
        torch.randn(*q.shape[:3], v.shape[3], generator=generator),
        torch.randn(q.shape[:3], generator=generator),
    )
    mine = _run(q, k, v, layout, weights, backend="triton", **options)
    # The gradient of a half type is that of the rounded weights.
    weights = (weights[0].to(q.dtype), weights[1])
    in_float64 = {name: _in_float64(x) for name, x in options.items()}
    theirs = _run(*map(_in_float64, (q, k, v)), layout, weights, backend="torch", **in_float64)
    leaves = {"q": q, "k": k, "v": v, "bias": options.get("bias")}
    leaves = {name: x for name, x in leaves.items() if x is not None and x.requires_grad}
    for name, got, expected in zip(["out", "lse", *leaves], mine, theirs, strict=True):
        close = {"rtol": tolerance, "atol": tolerance, "msg": lambda text, name=name: f"{name}: {text}"}
        torch.testing.assert_close(got.double(), expected, **close)
    assert mine[0].dtype == q.dtype
    assert mine[1].dtype == torch.float32
    turned = not q.is_contiguous() and q.transpose(1, 2).is_contiguous()  # the context lies as the queries do
    assert (mine[0].transpose(1, 2) if turned else mine[0]).is_contiguous()
    for leaf, gradient in zip(leaves.values(), mine[2:], strict=True):
        assert (gradient.dtype, gradient.shape) == (leaf.dtype, leaf.shape)
    return mine[0]


def tensors(kit, batch, heads, kv_heads, q_len, k_len, dim=16, v_dim=None, dtype=torch.float32):
    return kit.tensors(batch, heads, kv_heads, q_len, k_len, dim, v_dim, dtype=dtype)


@pytest.mark.parametrize(("block", "length"), [(16, 100), (32, 130), (64, 200), (128, 260)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_and_blocks(kit, pattern, block, length):
    layout = PATTERNS[pattern](block).layout(length)
    inputs = tensors(kit, 1, HEADS, HEADS, length, length, dtype=torch.float16)
    check(*inputs, layout, tolerance=HALF)


Q_LEN, K_LEN = 45, 75
_SHAPES = [
    (Q_LEN, K_LEN), (1, HEADS, Q_LEN, K_LEN), (2, 1, Q_LEN, K_LEN), (2, HEADS, Q_LEN, K_LEN),
    (2, 1, 1, K_LEN), (2, HEADS, Q_LEN, 1),
]  # fmt: skip


def _numbers(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


_PADDING = _numbers(2, K_LEN) < 0.6
_DOCUMENTS = torch.arange(K_LEN).div(13, rounding_mode="floor") + torch.tensor([[0], [100]])
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "scale": {"scale": 0.3},
    "padding": {"key_padding_mask": _PADDING},
    "padding_added": {"key_padding_mask": _numbers(2, K_LEN)},
    "padding_of_one_of_the_batch": {"key_padding_mask": torch.tensor([[False], [True]]).expand(2, K_LEN)},
    "bias_of_minus_infinity": {
        "bias": torch.where(_PADDING[:, None, None], _numbers(2, 1, Q_LEN, 1), -torch.inf).requires_grad_()
    },
    "padding_of_minus_infinity": {
        "key_padding_mask": torch.zeros(2, K_LEN).masked_fill(~_PADDING, -torch.inf)
    },
    "documents": {"document_ids": _DOCUMENTS},
    "documents_int32": {"document_ids": _DOCUMENTS.int()},
    "window": {"window": (9, 4)},
    "window_left": {"window": (20, None)},
    "window_and_causal": {"window": (20, 5), "causal": True},
    "dropout": {"dropout_p": 0.4, "dropout_seed": 2**63 + 12345},
    "all": {
        "causal": True,
        "scale": 0.4,
        "key_padding_mask": _PADDING,
        "attn_mask": _numbers(2, 1, 1, K_LEN),
        "bias": _numbers(HEADS, Q_LEN, K_LEN).requires_grad_(),
        "document_ids": _DOCUMENTS.int(),
        "window": (30, None),
        "dropout_p": 0.2,
        "dropout_seed": 7,
    },
}


@pytest.mark.parametrize(("block", "dtype"), [(16, torch.float32), (64, torch.float16)])
@pytest.mark.parametrize("option", OPTIONS)
def test_options(kit, option, block, dtype):
    """A layout a head, queries that begin inside a block, keys that two heads share."""
    lead = block // 4
    layout = kit.random_layout(HEADS, Q_LEN, K_LEN, block, lead=lead, density=0.8, seed=2)
    inputs = tensors(kit, 2, HEADS, 1, Q_LEN, K_LEN, dtype=dtype)
    check(*inputs, layout, tolerance=2e-5 if dtype == torch.float32 else HALF, **OPTIONS[option])


@pytest.mark.parametrize("kind", ["bool", "float", "bias"])
@pytest.mark.parametrize("shape", _SHAPES, ids=str)
def test_broadcasting_of_masks_and_bias(kit, shape, kind):
    layout = kit.random_layout(HEADS, Q_LEN, K_LEN, 16, density=0.8)
    inputs = tensors(kit, 2, HEADS, HEADS, Q_LEN, K_LEN)
    numbers = _numbers(*shape)
    if kind == "bias":
        check(*inputs, layout, bias=numbers.requires_grad_())  # its gradient too, in its own shape
    else:
        check(*inputs, layout, attn_mask=numbers > -0.5 if kind == "bool" else numbers)


@pytest.mark.parametrize("shape", [(), (HEADS, 1, 1), (2, 1, Q_LEN, K_LEN), (K_LEN,)], ids=str)
def test_bias_in_large_blocks(kit, shape):
    """With every mask, before the gradient of the bias is summed."""
    layout = kit.random_layout(HEADS, Q_LEN, K_LEN, 64, density=0.9)
    options = {**OPTIONS["all"], "bias": _numbers(*shape).requires_grad_()}
    check(*tensors(kit, 2, HEADS, 1, Q_LEN, K_LEN), layout, **options)


def test_masks_of_any_strides(kit):
    layout = kit.random_layout(HEADS, Q_LEN, K_LEN, 16, density=0.8)
    mask = (_numbers(K_LEN, Q_LEN) > -0.5).T.expand(2, HEADS, -1, -1)
    bias = _numbers(K_LEN, 2, Q_LEN).permute(1, 2, 0)[:, None].requires_grad_()
    padding = _PADDING.T.contiguous().T
    documents = _DOCUMENTS.repeat_interleave(2, 1)[:, ::2]
    check(
        *tensors(kit, 2, HEADS, 2, Q_LEN, K_LEN), layout,
        attn_mask=mask, bias=bias, key_padding_mask=padding, document_ids=documents,
    )  # fmt: skip


def test_bias_of_half_type_and_without_gradient(kit):
    layout = kit.random_layout(HEADS, Q_LEN, K_LEN, 16)
    inputs = tensors(kit, 1, HEADS, 2, Q_LEN, K_LEN)
    check(*inputs, layout, bias=_numbers(Q_LEN, K_LEN))
    bias = _numbers(Q_LEN, K_LEN).half().requires_grad_()
    out = block_sparse_attention(*inputs, layout, bias=bias, backend="triton")
    gradient = torch.autograd.grad(out.sum(), bias)[0]
    exact = bias.detach().double().requires_grad_()
    expected = block_sparse_attention(*(x.double() for x in inputs), layout, bias=exact, backend="torch")
    assert gradient.dtype == torch.float16
    torch.testing.assert_close(
        gradient.double(), torch.autograd.grad(expected.sum(), exact)[0], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize(("q_len", "k_len"), [(63, 63), (1, 100), (100, 63), (70, 130)])
def test_lengths(kit, q_len, k_len, block):
    layout = kit.random_layout(HEADS, q_len, k_len, block, causal=True, density=0.8, lead=3, seed=block)
    inputs = tensors(kit, 1, HEADS, HEADS, q_len, k_len, dtype=torch.float16)
    check(*inputs, layout, tolerance=HALF)


@pytest.mark.parametrize("block", [16, 64])
def test_the_lower_end_of_a_pattern(kit, block):
    layout = PATTERNS["bigbird_causal"](block).layout(130, 37)
    assert layout.lead == 93 % block
    check(*tensors(kit, 1, HEADS, 1, 37, 130), layout, dropout_p=0.3, dropout_seed=4)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 3), (6, 2), (6, 1)])
def test_grouped_heads(kit, heads, kv_heads):
    layout = kit.random_layout(heads, 63, 63, 16)
    check(*tensors(kit, 2, heads, kv_heads, 63, 63, dtype=torch.float16), layout, tolerance=HALF)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("dim", [16, 24, 40, 64])
def test_head_dimensions(kit, dim, dtype):
    layout = kit.random_layout(HEADS, 63, 63, 32, density=0.9)
    inputs = tensors(kit, 1, HEADS, HEADS, 63, 63, dim, dtype=dtype)
    check(*inputs, layout, tolerance=2e-5 if dtype == torch.float32 else HALF)


@pytest.mark.parametrize(("dim", "v_dim"), [(16, 40), (24, 16)])
def test_values_of_another_dimension(kit, dim, v_dim):
    layout = kit.random_layout(HEADS, 63, 63, 16)
    check(*tensors(kit, 1, HEADS, 1, 63, 63, dim, v_dim), layout)


def test_half_type_with_options(kit):
    layout = kit.random_layout(HEADS, Q_LEN, K_LEN, 16, density=0.8)
    inputs = tensors(kit, 2, HEADS, 1, Q_LEN, K_LEN, dtype=torch.float16)
    check(*inputs, layout, tolerance=HALF, **OPTIONS["all"])


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_empty_rows_and_columns(kit, block):
    dense = torch.zeros(HEADS, 4, 4)
    dense[1, 2, 1] = dense[0, 0, 3] = dense[0, 0, 0] = 1
    length = 3 * block + 5
    layout = BlockLayout.from_dense(dense, block)
    inputs = tensors(kit, 1, HEADS, HEADS, length, length)
    out = check(*inputs, layout)
    empty = ~kit.token_mask(layout, length, length).any(-1)
    assert (out[0][empty] == 0).all()
    assert (out[0][~empty] != 0).all()


def test_a_layout_without_blocks(kit):
    layout = BlockLayout.from_dense(torch.zeros(HEADS, 4, 4), 16)
    assert (check(*tensors(kit, 1, HEADS, 1, 64, 64), layout) == 0).all()


@pytest.mark.parametrize(("block", "p"), [(16, 0.3), (32, 0.5), (64, 0.75)])
@pytest.mark.parametrize(("q_len", "k_len"), [(63, 63), (40, 63), (63, 30)])
def test_dropout_drops_the_same_elements(kit, q_len, k_len, block, p):
    """Equal scores and one-hot values show each element's factor."""
    layout = kit.random_layout(HEADS, q_len, k_len, block, density=1.0)
    q, k = torch.zeros(2, HEADS, q_len, 16), torch.zeros(2, HEADS, k_len, 16)
    v = torch.eye(k_len, 64).expand(2, HEADS, -1, -1)
    options = {"dropout_p": p, "dropout_seed": 2**40 + 99}
    out = block_sparse_attention(q, k, v, layout, backend="triton", **options)
    keep = kit.dropout_mask(options["dropout_seed"], p, 2, HEADS, q_len, k_len)
    torch.testing.assert_close(out[..., :k_len] * k_len * (1 - p), keep.float())


def test_strided_and_expanded_inputs(kit):
    layout = kit.random_layout(HEADS, 63, 63, 16)
    q, k, v = tensors(kit, 3, HEADS, HEADS, 63, 63)
    q, k = (x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k))
    v = v.detach().mT.contiguous().mT[:1].expand(3, -1, -1, -1).requires_grad_()
    assert not any(x.is_contiguous() for x in (q, k, v))
    check(q, k, v, layout)


def test_a_gradient_of_other_strides(kit):
    """A sum's gradient is expanded, a transposed head dimension's is not contiguous."""
    layout = kit.random_layout(HEADS, 63, 63, 16)
    inputs = tensors(kit, 1, HEADS, HEADS, 63, 63)
    for reduce in (torch.sum, lambda out: (out.permute(3, 0, 2, 1).contiguous() ** 2).sum()):
        out = block_sparse_attention(*inputs, layout, backend="triton")
        expected = block_sparse_attention(*inputs, layout, backend="torch")
        mine = torch.autograd.grad(reduce(out), inputs)
        theirs = torch.autograd.grad(reduce(expected), inputs)
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5)


def test_gradient_of_the_log_sum_exp_alone(kit):
    layout = kit.random_layout(HEADS, 63, 63, 16, density=1.0)
    inputs = tensors(kit, 1, HEADS, HEADS, 63, 63)
    gradients = []
    for backend in ("triton", "torch"):
        lse = block_sparse_attention(*inputs, layout, return_lse=True, backend=backend)[1]
        gradients.append(torch.autograd.grad(lse.sin().sum(), inputs, materialize_grads=True))
    torch.testing.assert_close(*gradients, rtol=2e-5, atol=2e-5)
    assert (gradients[0][2] == 0).all()


def test_the_same_bits_again(kit):
    layout = PATTERNS["bigbird"](16).layout(100)
    inputs = tensors(kit, 1, HEADS, 1, 100, 100)
    bias = _numbers(100).requires_grad_()
    weights = _numbers(1, HEADS, 100, 16), _numbers(1, HEADS, 100)
    runs = [_run(*inputs, layout, weights, bias=bias, backend="triton") for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.fixture
def short_splits(monkeypatch):
    """Split tiles that are longer than two steps, as global rows of long sequences are."""
    for name, value in (("_MIN_SPLIT_STEPS", 2), ("_MAX_WHOLE_STEPS", 0), ("_TARGET_PROGRAMS", 2**20)):
        monkeypatch.setattr(schedules, name, value)
    monkeypatch.setattr(schedules, "_schedules", type(schedules._schedules)())


@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("option", ["plain", "bias_of_keys", "bias_of_queries", "all"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_splits_are_combined(kit, dtype, shared, option):
    """A global row and a global column, some splits of which are masked whole, and empty heads."""
    dense = torch.zeros(HEADS, 9, 9)
    dense[:, 1] = dense[:, :, 2] = 1
    if not shared:
        dense[1] = torch.eye(9)
        dense[1, 8] = 1
    length = 137
    options = {
        "plain": {},
        "bias_of_keys": {"bias": _numbers(length).requires_grad_()},
        "bias_of_queries": {"bias": _numbers(HEADS, length, 1).requires_grad_()},
        "all": {
            "bias": _numbers(length, length).requires_grad_(),
            "key_padding_mask": torch.arange(length)[None] >= 80,
            "document_ids": torch.arange(length)[None] // 90,
            "dropout_p": 0.2,
            "dropout_seed": 3,
        },
    }[option]
    inputs = tensors(kit, 1, HEADS, 1, length, length, dtype=dtype)
    layout = BlockLayout.from_dense(dense, 16)
    check(*inputs, layout, tolerance=2e-5 if dtype == torch.float32 else HALF, **options)
    split = [schedule.num_partials > 0 for schedule in schedules._schedules.values()]
    assert all(split) if option == "plain" else any(split)


@pytest.mark.parametrize("value", [torch.finfo(torch.float32).min, -1e9])
def test_rows_masked_by_large_finite_numbers(kit, value):
    """Where all keys of a row are masked alike, values are averaged as without a mask; nothing is NaN."""
    layout = kit.random_layout(HEADS, 45, 45, 16, density=1.0)
    q, k, v = tensors(kit, 1, HEADS, HEADS, 45, 45)
    mask = torch.zeros(45, 45)
    mask[:5] = mask[:, 30:] = value
    out = block_sparse_attention(q, k, v, layout, attn_mask=mask, backend="triton")
    torch.testing.assert_close(out[:, :, :5], v.mean(2, keepdim=True).expand(-1, -1, 5, -1))
    masked = torch.zeros(45, 45, dtype=torch.bool)
    masked[5:, 30:] = True
    expected = block_sparse_attention(q, k, v, layout, attn_mask=~masked, backend="torch")
    torch.testing.assert_close(out[:, :, 5:], expected[:, :, 5:])
    assert all(torch.isfinite(x).all() for x in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize(("batch", "q_len", "k_len"), [(0, 16, 16), (1, 0, 16), (1, 16, 0)])
def test_nothing_to_attend(kit, batch, q_len, k_len):
    layout = kit.random_layout(HEADS, q_len, k_len, 16, density=1.0)
    check(*tensors(kit, batch, HEADS, 1, q_len, k_len), layout, bias=_numbers(k_len).requires_grad_())


@pytest.mark.parametrize(
    ("block", "dim", "dtype", "message"),
    [
        (24, 16, torch.float32, r"24.*torch"),
        (256, 16, torch.float32, r"256.*torch"),
        (16, 16, torch.float64, r"torch.*float64"),
        (16, 264, torch.float32, r"264.*torch"),
    ],
)
def test_refused_with_the_backend_that_serves_it(kit, block, dim, dtype, message):
    layout = kit.random_layout(HEADS, 48, 48, block)
    inputs = tensors(kit, 1, HEADS, HEADS, 48, 48, dim, dtype=dtype)
    block_sparse_attention(*inputs, layout, backend="torch")
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(*inputs, layout, backend="triton")
