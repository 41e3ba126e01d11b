"""The Triton kernels on a CUDA device: exactness at real sizes, the same bits, compilation, no waiting."""

import functools
import math

import pytest
import torch
import torch._dynamo
import torch._dynamo.testing
from torch.nn.functional import scaled_dot_product_attention

from longspan import sparsity
from longspan_kernels import Alibi, BlockLayout, T5Buckets, block_sparse_attention, registry
from longspan_kernels.ops import attention_backward_op, attention_op

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HEADS = 2
PATTERNS = {
    "dense": lambda block: sparsity.DenseSparsityConfig(HEADS, block),
    "dense_causal": lambda block: sparsity.DenseSparsityConfig(HEADS, block, attention="unidirectional"),
    "fixed": lambda block: sparsity.FixedSparsityConfig(HEADS, block),
    "fixed_causal": lambda block: sparsity.FixedSparsityConfig(
        HEADS, block, True, attention="unidirectional", num_different_global_patterns=2
    ),
    "variable": lambda block: sparsity.VariableSparsityConfig(
        HEADS, block, True, num_random_blocks=1, local_window_blocks=(1, 4), horizontal_global_attention=True
    ),
    "bigbird": lambda block: sparsity.BigBirdSparsityConfig(HEADS, block, True),
    "bigbird_causal": lambda block: sparsity.BigBirdSparsityConfig(HEADS, block, attention="unidirectional"),
    "bslongformer": lambda block: sparsity.BSLongformerSparsityConfig(
        HEADS, block, global_block_indices=(0, 5)
    ),
    "local_sliding_window": lambda block: sparsity.LocalSlidingWindowSparsityConfig(HEADS, block),
}
# Of two computations of the same accuracy one has the larger error; by this much at most, at these sizes.
NOISE = 1.1


def _inputs(batch, heads, kv_heads, q_len, k_len, dim, dtype, v_dim=None, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)

    def one(heads, length, dim):
        x = torch.randn(batch, heads, length, dim, generator=generator, device="cuda")
        return x.to(dtype).requires_grad_()

    return one(heads, q_len, dim), one(kv_heads, k_len, dim), one(kv_heads, k_len, v_dim or dim)


def _weight(like, seed=1):
    """A gradient for a result."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(like.shape, generator=generator, device="cuda").to(like.dtype)


@functools.lru_cache(maxsize=1)
def _token_mask(layout, length):
    """What a layout lets through, ``[heads, length, length]``, on the device."""
    blocks = layout.to_dense().bool().cuda()
    seen = blocks.repeat_interleave(layout.block, 1).repeat_interleave(layout.block, 2)[:, :length, :length]
    return seen.tril() if layout.causal else seen


def _error(x, exact):
    """The norm of the error in proportion to the norm of what is exact."""
    x, exact = x.detach().double(), exact.detach()
    return float((x - exact).norm() / exact.norm())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dim", [64, 80, 128])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_as_exact_as_dense_attention_of_torch(dtype, block, dim, pattern):
    """Against float64, values and gradients; and no element is far off."""
    length = 2048 if block < 64 else 4096
    layout = PATTERNS[pattern](block).layout(length)
    q, k, v = _inputs(1, HEADS, HEADS, length, length, dim, dtype)
    seen = _token_mask(layout, length)
    weight = _weight(q)

    def gradients(out, *leaves):
        return [out.detach(), *torch.autograd.grad(out, leaves, weight.to(out.dtype))]

    in_float64 = [x.detach().double().requires_grad_() for x in (q, k, v)]
    scores = (in_float64[0] @ in_float64[1].mT * dim**-0.5).masked_fill(~seen, -math.inf)
    exact = gradients(scores.softmax(-1) @ in_float64[2], *in_float64)
    del scores
    mine = gradients(block_sparse_attention(q, k, v, layout, backend="triton"), q, k, v)
    theirs = gradients(scaled_dot_product_attention(q, k, v, attn_mask=seen[None]), q, k, v)
    errors = {
        name: (_error(a, x), _error(b, x), float((a.double() - x).abs().max() / x.abs().max()))
        for name, a, b, x in zip(("out", "dq", "dk", "dv"), mine, theirs, exact, strict=True)
    }
    epsilon = torch.finfo(dtype).eps
    assert all(ours <= NOISE * torchs and worst < 8 * epsilon for ours, torchs, worst in errors.values()), (
        f"(ours, torch's, our worst element): {errors}"
    )


@pytest.mark.parametrize("pattern", ["bigbird", "fixed_causal"])
def test_float32_is_exact_by_default(pattern):
    layout = PATTERNS[pattern](64).layout(1024)
    q, k, v = _inputs(1, HEADS, HEADS, 1024, 1024, 64, torch.float32)
    out = block_sparse_attention(q, k, v, layout, backend="triton")
    mine = [out, *torch.autograd.grad(out, (q, k, v), _weight(out))]
    leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = block_sparse_attention(*leaves, layout, backend="reference")
    theirs = [exact, *torch.autograd.grad(exact, leaves, _weight(out).double())]
    # TF32 would be off by 1e-3.
    assert max(_error(a, b) for a, b in zip(mine, theirs, strict=True)) < 2e-6


Q_LEN, K_LEN = 1500, 2011


def _options():
    generator = torch.Generator("cuda").manual_seed(3)

    def numbers(*shape):
        return torch.randn(shape, generator=generator, device="cuda")

    padding = torch.rand(2, K_LEN, generator=generator, device="cuda") < 0.7
    documents = torch.arange(K_LEN, device="cuda") // 300 + torch.tensor([[0], [100]], device="cuda")
    return {
        "plain": {},
        "causal": {"causal": True},
        "scale": {"scale": 0.3},
        "padding": {"key_padding_mask": padding},
        "padding_added": {"key_padding_mask": numbers(2, K_LEN)},
        "mask": {"attn_mask": numbers(Q_LEN, K_LEN) > -0.5},
        "mask_of_the_batch": {"attn_mask": numbers(2, 1, Q_LEN, K_LEN) > -0.5},
        "mask_of_heads": {"attn_mask": numbers(2, 4, Q_LEN, K_LEN)},
        "bias": {"bias": numbers(Q_LEN, K_LEN).requires_grad_()},
        "bias_of_heads": {"bias": numbers(1, 4, Q_LEN, K_LEN).requires_grad_()},
        "bias_of_the_batch": {"bias": numbers(2, 1, Q_LEN, K_LEN).requires_grad_()},
        "bias_of_both": {"bias": numbers(2, 4, Q_LEN, K_LEN).requires_grad_()},
        "bias_of_keys": {"bias": numbers(2, 1, 1, K_LEN).requires_grad_()},
        "bias_of_queries": {"bias": numbers(2, 4, Q_LEN, 1).requires_grad_()},
        "documents": {"document_ids": documents},
        "window": {"window": (200, 31)},
        "table_of_distances": {"relative_bias": T5Buckets(numbers(32, 4).requires_grad_())},
        "slopes": {"relative_bias": Alibi.of(4, "cuda")},
        "dropout": {"dropout_p": 0.3, "dropout_seed": 2**63 + 12345},
        "all": {
            "causal": True,
            "scale": 0.1,
            "key_padding_mask": padding,
            "attn_mask": numbers(2, 1, 1, K_LEN),
            "bias": numbers(4, Q_LEN, K_LEN).requires_grad_(),
            "document_ids": documents.int(),
            "window": (700, None),
            "dropout_p": 0.2,
            "dropout_seed": 7,
        },
    }


OPTIONS = (
    "plain", "causal", "scale", "padding", "padding_added", "mask", "mask_of_the_batch", "mask_of_heads",
    "bias", "bias_of_heads", "bias_of_the_batch", "bias_of_both", "bias_of_keys", "bias_of_queries",
    "documents", "window", "table_of_distances", "slopes", "dropout", "all",
)  # fmt: skip


def _layout(block, *, heads=4, q_len=Q_LEN, k_len=K_LEN, lead=0, seed=0):
    """Random blocks, a global row and a global column, a layout for each head; one row is empty."""
    shape = (heads, -(-(lead + q_len) // block), -(-k_len // block))
    dense = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    dense[:, 1] = dense[:, :, 2] = True
    dense[:, 3] = False
    return BlockLayout.from_dense(dense, block, lead=lead)


def _results(inputs, layout, backend, weights=None, **options):
    """The context, the log-sum-exp and the gradients of all that requires one, by name."""
    out, lse = block_sparse_attention(*inputs, layout, return_lse=True, backend=backend, **options)
    leaves = dict(zip("qkv", inputs, strict=True))
    bias = options.get("bias")
    if bias is not None and bias.requires_grad:
        leaves["bias"] = bias
    if isinstance(options.get("relative_bias"), T5Buckets):
        leaves["table"] = options["relative_bias"].table
    if weights is None:
        weights = _weight(out, 1), _weight(lse, 2)
    weights = [w.to(x.dtype) for w, x in zip(weights, (out, lse), strict=True)]
    gradients = torch.autograd.grad((out, lse), list(leaves.values()), weights)
    return {"out": out, "lse": lse, **dict(zip(leaves, gradients, strict=True))}


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_in_bfloat16(option, block):
    """Against the reference in float32 on the device: lengths that nothing divides, shared key heads."""
    layout = _layout(block, lead=5)
    inputs = _inputs(2, 4, 2, Q_LEN, K_LEN, 64, torch.bfloat16)
    options = _options()[option]
    mine = _results(inputs, layout, "triton", **options)
    weights = _weight(mine["out"], 1), _weight(mine["lse"], 2)
    in_float32 = [x.detach().float().requires_grad_() for x in inputs]
    theirs = _results(in_float32, layout, "reference", weights, **options)
    empty = theirs["lse"] == -torch.inf
    assert torch.equal(mine["lse"] == -torch.inf, empty)
    assert empty.any()
    assert (mine["out"][empty] == 0).all()
    assert (mine["q"][empty] == 0).all()
    torch.testing.assert_close(mine.pop("lse"), theirs.pop("lse"), rtol=1e-4, atol=1e-4)
    errors = {name: _error(mine[name], theirs[name].double()) for name in mine}
    assert all(error < 6e-3 for error in errors.values()), errors  # NaN is not less


def test_options_cover_all():
    assert set(OPTIONS) == set(_options())


@pytest.mark.parametrize("dim", [16, 24, 40, 96, 192, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_dimensions(dim, dtype):
    layout = _layout(32, heads=2, q_len=300, k_len=300)
    inputs = _inputs(1, 2, 1, 300, 300, dim, dtype)
    mine = _results(inputs, layout, "triton")
    weights = _weight(mine["out"], 1), _weight(mine["lse"], 2)
    theirs = _results([x.detach().double().requires_grad_() for x in inputs], layout, "reference", weights)
    torch.testing.assert_close(mine.pop("lse").double(), theirs.pop("lse"), rtol=1e-4, atol=1e-4)
    errors = {name: _error(mine[name], theirs[name]) for name in mine}
    assert all(error < (2e-6 if dtype == torch.float32 else 6e-3) for error in errors.values()), errors


@pytest.mark.parametrize("pattern", ["bigbird", "fixed_causal"])
@pytest.mark.parametrize("option", ["plain", "bias", "all"])
def test_the_same_bits_in_ten_repeats(option, pattern):
    config = PATTERNS[pattern](16)
    layout = config.layout(4096)
    inputs = _inputs(2, HEADS, 1, 4096, 4096, 64, torch.bfloat16)
    options = {}
    if option != "plain":
        options["bias"] = torch.randn(4096, device="cuda", requires_grad=True)
    if option == "all":
        options["document_ids"] = (torch.arange(4096, device="cuda") // 1000).expand(2, -1)
        options["dropout_p"], options["dropout_seed"] = 0.1, 5
    first = _results(inputs, layout, "triton", **options)
    for _ in range(9):
        again = _results(inputs, layout, "triton", **options)
        assert all(torch.equal(first[name], again[name]) for name in first)


def _graph_options(length):
    return {
        "bias": torch.randn(2, 1, length, device="cuda", requires_grad=True),
        "key_padding_mask": torch.arange(length, device="cuda").expand(2, -1) % 5 != 4,
        "attn_mask": torch.randn(length, length, device="cuda"),
        "document_ids": torch.arange(length, device="cuda").expand(2, -1) // 150,
        "window": (180, None),
        "dropout_p": 0.3,
        "dropout_seed": 11,
    }


def test_compiles_whole_under_autocast():
    layout = _layout(32, heads=2, q_len=400, k_len=400)
    inputs = _inputs(2, 2, 1, 400, 400, 64, torch.float32)
    options = _graph_options(400)
    bias = options.pop("bias")

    def attend(q, k, v, bias):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return block_sparse_attention(q * 2, k, v, layout, bias=bias, backend="triton", **options).sin()

    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True)
    results = []
    for function in (attend, compiled):
        out = function(*inputs, bias)
        assert out.dtype == torch.bfloat16
        results.append((out, *torch.autograd.grad(out.float().square().sum(), (*inputs, bias))))
    torch.testing.assert_close(*results, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("with_options", [False, True])
def test_opcheck(with_options):
    layout = _layout(16, heads=2, q_len=100, k_len=100)
    q, k, v = _inputs(2, 2, 1, 100, 100, 16, torch.float32)
    options = _graph_options(100)
    handle = registry.handle_of(layout)
    masks = [None] * 8
    numbers = [handle.number, 0.5, None, None, 0.0, "triton"]
    if with_options:
        masks = [
            options["key_padding_mask"],
            options["attn_mask"][None, None],
            options["bias"][None],
            options["document_ids"],
            torch.tensor(3, device="cuda"),
            torch.randn(8, 2, device="cuda", requires_grad=True),
            torch.randint(8, (9,), dtype=torch.int32, device="cuda"),
            torch.rand(2, device="cuda"),
        ]
        numbers = [handle.number, 0.5, 80, 0, 0.3, "triton"]
    torch.library.opcheck(attention_op, (q, k, v, *masks, *numbers))
    out, lse = attention_op(q, k, v, *masks, *numbers)
    tensors = [x.detach() for x in (q, k, v, out, lse, torch.randn_like(out))]
    masks = [None if mask is None else mask.detach() for mask in masks]
    for wanted in {False, with_options}:
        torch.library.opcheck(attention_backward_op, (*tensors, None, *masks, *numbers, wanted, wanted))


@pytest.mark.parametrize("option", ["plain", "bias", "all"])
def test_no_synchronisation_and_no_compilation_after_the_first_call(option, monkeypatch):
    from triton import knobs

    layout = _layout(32)
    inputs = _inputs(2, 4, 2, Q_LEN, K_LEN, 64, torch.bfloat16)
    options = _options()[option]
    if "dropout_seed" in options:
        options["dropout_seed"] = torch.tensor(7, device="cuda")  # a number would be copied to the device
    first = _results(inputs, layout, "triton", **options)
    torch.cuda.synchronize()
    compiled = []
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", lambda **of: compiled.append(of["repr"]))
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = _results(inputs, layout, "triton", **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert compiled == []
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_compilation_would_be_seen(monkeypatch):
    """The hook on which the test before this one relies is called."""
    from triton import knobs

    compiled = []
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", lambda **of: compiled.append(of["repr"]))
    layout = _layout(32, heads=2, q_len=128, k_len=128)
    # A head dimension of no other test.
    block_sparse_attention(*_inputs(1, 2, 2, 128, 128, 208, torch.float16), layout, backend="triton")
    assert compiled


@pytest.mark.parametrize("pattern", ["bigbird", "fixed_causal", "local_sliding_window"])
@pytest.mark.parametrize("block", [16, 128])
def test_everything_is_written_at_65536_tokens(monkeypatch, block, pattern):
    """What is allocated empty holds NaN, and none is left."""
    for name in ("empty", "empty_like", "new_empty", "new_empty_strided"):
        owner = torch.Tensor if name.startswith("new") else torch
        allocate = getattr(owner, name)

        def poisoned(*args, _allocate=allocate, **kwargs):
            x = _allocate(*args, **kwargs)
            return x.fill_(torch.nan) if x.is_floating_point() else x

        monkeypatch.setattr(owner, name, poisoned)
    length = 65536
    layout = PATTERNS[pattern](block).layout(length)
    inputs = _inputs(1, HEADS, HEADS, length, length, 64, torch.bfloat16)
    results = _results(inputs, layout, "triton")
    assert all(torch.isfinite(x).all() for x in results.values())
    # Values of one everywhere: each row is a mean of ones.
    ones = torch.ones_like(inputs[2])
    out = block_sparse_attention(inputs[0], inputs[1], ones, layout, backend="triton")
    torch.testing.assert_close(out, torch.ones_like(out), rtol=8e-3, atol=0)


def test_auto_is_triton():
    layout = _layout(16, heads=2, q_len=100, k_len=100)
    inputs = _inputs(1, 2, 2, 100, 100, 32, torch.bfloat16)
    chosen, named = (
        block_sparse_attention(*inputs, layout, backend=backend) for backend in ("auto", "triton")
    )
    assert torch.equal(chosen, named)


def test_memory_is_in_proportion_to_the_length():
    """131,072 tokens, one head: a byte for each pair of tokens would take 16 GiB."""
    peaks = []
    for length in (65536, 131072):
        layout = sparsity.BigBirdSparsityConfig(1, 64).layout(length)
        inputs = _inputs(1, 1, 1, length, length, 64, torch.bfloat16)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _results(inputs, layout, "triton")
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del inputs
    assert peaks[0] < 2**30
    assert peaks[1] < 2.2 * peaks[0]
