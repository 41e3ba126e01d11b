"""The Triton backend on a CUDA device: compiled, without waiting, all written, in little memory."""

import pytest
import torch
import torch._dynamo
import torch._dynamo.testing
from gpu_calls import (
    HEADS,
    K_LEN,
    PATTERNS,
    Q_LEN,
    error_of,
    inputs_of,
    layout_of,
    options_of_calls,
    results_of,
)

from longspan import sparsity
from longspan_kernels import block_sparse_attention
from longspan_kernels.ops import attention_backward_op, attention_op

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def _graph_options(length):
    generator = torch.Generator("cuda").manual_seed(4)

    def numbers(*shape):
        return torch.randn(shape, generator=generator, device="cuda")

    return {
        "bias": numbers(2, 1, length).requires_grad_(),
        "key_padding_mask": torch.arange(length, device="cuda").expand(2, -1) % 5 != 4,
        "attn_mask": numbers(length, length),
        "document_ids": torch.arange(length, device="cuda").expand(2, -1) // 150,
        "window": (180, None),
        "dropout_p": 0.3,
        "dropout_seed": 11,
    }


def test_compiles_whole_under_autocast():
    layout = layout_of(32, heads=2, q_len=400, k_len=400)
    inputs = inputs_of(2, 2, 1, 400, 400, 64, torch.float32)
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
    # What is compiled around the call rounds to bfloat16 at fewer places: no element can be held to its own
    # size, where many are added up.
    for one, other in zip(*results, strict=True):
        assert error_of(one, other.double()) < 1e-2
        assert float((one - other).abs().max() / other.abs().max()) < 3e-2


@pytest.mark.parametrize("with_options", [False, True])
def test_opcheck(with_options):
    layout = layout_of(16, heads=2, q_len=100, k_len=100)
    q, k, v = inputs_of(2, 2, 1, 100, 100, 16, torch.float32)
    options = _graph_options(100)
    handle = layout.handle
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

    layout = layout_of(32)
    inputs = inputs_of(2, 4, 2, Q_LEN, K_LEN, 64, torch.bfloat16)
    options = options_of_calls()[option]
    if "dropout_seed" in options:
        options["dropout_seed"] = torch.tensor(7, device="cuda")  # a number would be copied to the device
    first = results_of(inputs, layout, "triton", **options)
    torch.cuda.synchronize()
    compiled = []
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", lambda **of: compiled.append(of["repr"]))
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = results_of(inputs, layout, "triton", **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert compiled == []
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_compilation_would_be_seen(monkeypatch):
    """The hook on which the test before this one relies is called."""
    from triton import knobs

    compiled = []
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", lambda **of: compiled.append(of["repr"]))
    layout = layout_of(32, heads=2, q_len=128, k_len=128)
    # A head dimension of no other test.
    block_sparse_attention(*inputs_of(1, 2, 2, 128, 128, 208, torch.float16), layout, backend="triton")
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
    inputs = inputs_of(1, HEADS, HEADS, length, length, 64, torch.bfloat16)
    results = results_of(inputs, layout, "triton")
    assert all(torch.isfinite(x).all() for x in results.values())
    # Values of one everywhere: each row is a mean of ones.
    ones = torch.ones_like(inputs[2])
    out = block_sparse_attention(inputs[0], inputs[1], ones, layout, backend="triton")
    torch.testing.assert_close(out, torch.ones_like(out), rtol=8e-3, atol=0)


def test_auto_is_triton():
    layout = layout_of(16, heads=2, q_len=100, k_len=100)
    inputs = inputs_of(1, 2, 2, 100, 100, 32, torch.bfloat16)
    chosen, named = (
        block_sparse_attention(*inputs, layout, backend=backend) for backend in ("auto", "triton")
    )
    assert torch.equal(chosen, named)


def test_memory_is_in_proportion_to_the_length():
    """131,072 tokens, one head: a byte for each pair of tokens would take 16 GiB."""
    peaks = []
    for length in (65536, 131072):
        layout = sparsity.BigBirdSparsityConfig(1, 64).layout(length)
        inputs = inputs_of(1, 1, 1, length, length, 64, torch.bfloat16)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results_of(inputs, layout, "triton")
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del inputs
    assert peaks[0] < 2**30
    assert peaks[1] < 2.2 * peaks[0]
