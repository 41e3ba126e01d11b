"""The Triton backend under the interpreter: biases by distance, the custom op, far strides.

Run by `test_triton_values`, as `interpreted_triton` is, whose cases and comparisons it shares.
"""

import pytest
import torch
from interpreted_triton import (
    _DOCUMENTS,
    _PADDING,
    HEADS,
    K_LEN,
    OPTIONS,
    Q_LEN,
    _numbers,
    check,
    tensors,
)

from longspan_kernels import Alibi, BlockLayout, T5Buckets, block_sparse_attention
from longspan_kernels.ops import attention_backward_op, attention_op
from longspan_kernels.triton_backend import schedule as schedules

pytestmark = pytest.mark.usefixtures("poison")


RELATIVE = {
    "t5": lambda: T5Buckets(_numbers(32, HEADS).requires_grad_()),
    "t5_near": lambda: T5Buckets(_numbers(8, HEADS).requires_grad_(), max_distance=7),
    "t5_backwards": lambda: T5Buckets(_numbers(12, HEADS).requires_grad_(), False, 30),
    "alibi": lambda: Alibi.of(HEADS),
}


LENGTHS = [(K_LEN, K_LEN), (Q_LEN, K_LEN), (K_LEN, Q_LEN)]


# Slow under the interpreter: every pair of lengths for T5's buckets, for the others by turns.
@pytest.mark.parametrize(
    ("name", "block", "options", "lengths"),
    [("t5", 16, "plain", lengths) for lengths in LENGTHS]
    + [(name, 16, "plain", LENGTHS[number % 3]) for number, name in enumerate(RELATIVE) if number]
    + [(name, 64, "all", LENGTHS[number % 3]) for number, name in enumerate(RELATIVE)],
    ids=str,
)
def test_biases_by_distance(kit, monkeypatch, name, block, options, lengths):
    """Values and the gradient of the table; tiles are split, and each head may have its layout."""
    monkeypatch.setattr(schedules, "_MIN_SPLIT_STEPS", 1)
    monkeypatch.setattr(schedules, "_MAX_WHOLE_STEPS", 0)
    monkeypatch.setattr(schedules, "_TARGET_PROGRAMS", 10**9)
    relative = RELATIVE[name]()
    shared = options == "plain"
    layout = kit.random_layout(1 if shared else HEADS, *lengths, block, density=0.8, seed=4)
    layout = BlockLayout.from_dense(layout.to_dense().expand(HEADS, -1, -1), block)
    inputs = tensors(kit, 2, HEADS, 1, *lengths)
    chosen = {**OPTIONS["all"], "bias": None} if options == "all" and lengths == (K_LEN, K_LEN) else {}
    results = {}
    for backend in ("triton", "torch"):
        leaves = [x.detach().double() if backend == "torch" else x.detach() for x in inputs]
        its = relative
        if isinstance(relative, T5Buckets):
            numbers = relative.table.detach().to(leaves[0].dtype).requires_grad_()
            its = T5Buckets(numbers, relative.bidirectional, relative.max_distance)
        leaves = [x.requires_grad_() for x in leaves]
        out = block_sparse_attention(*leaves, layout, relative_bias=its, backend=backend, **chosen)
        learned = [its.table] if isinstance(its, T5Buckets) else []
        weight = _numbers(*out.shape).to(out.dtype)
        results[backend] = out, *torch.autograd.grad(out, [*leaves, *learned], weight)
    for mine, theirs in zip(*results.values(), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=5e-5, atol=5e-5)
        assert mine.is_contiguous()  # as the op promises to torch.compile


@pytest.mark.parametrize("with_options", [False, True])
def test_opcheck(kit, with_options):
    layout = kit.random_layout(2, 40, 40, 16)
    q, k, v = tensors(kit, 1, 2, 2, 40, 40)
    numbers = [layout.handle.number, 0.5, None, None, 0.0, "triton"]
    masks = [None] * 8
    if with_options:
        masks = [
            _PADDING[:1, :40].contiguous(), _numbers(1, 1, 40, 40), _numbers(1, 2, 40, 40).requires_grad_(),
            _DOCUMENTS[:1, :40].contiguous(), torch.tensor(3), _numbers(12, 2).requires_grad_(),
            torch.randint(12, (9,), dtype=torch.int32), torch.rand(2),
        ]  # fmt: skip
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(attention_op, (q, k, v, *masks, *numbers), test_utils=utils)
    out, lse = attention_op(q, k, v, *masks, *numbers)
    inputs = [x.detach() for x in (q, k, v, out, lse, torch.ones_like(out))]
    masks = [None if mask is None else mask.detach() for mask in masks]
    arguments = (*inputs, None, *masks, *numbers, with_options, with_options)
    torch.library.opcheck(attention_backward_op, arguments, test_utils=utils)


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_results_lie_as_what_they_belong_to(kit, monkeypatch, kv_heads):
    """Token by token, as a model projects them, with splits and as fake tensors promise torch.compile."""
    monkeypatch.setattr(schedules, "_MIN_SPLIT_STEPS", 1)
    monkeypatch.setattr(schedules, "_MAX_WHOLE_STEPS", 0)
    layout = kit.random_layout(2, 60, 60, 16, density=0.8)
    q, k, v = tensors(kit, 2, 2, kv_heads, 60, 60)
    by_tokens = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k, v)]
    out = block_sparse_attention(*by_tokens, layout, backend="triton")
    gradients = torch.autograd.grad(out, by_tokens, torch.ones_like(out))
    for one in (out, *(gradients if kv_heads == 2 else gradients[:1])):
        assert one.transpose(1, 2).is_contiguous()
        assert not one.is_contiguous()
        assert not one._is_view()
    with torch.no_grad():
        frozen = block_sparse_attention(*by_tokens, layout, backend="triton")
    frozen.mul_(torch.ones((), requires_grad=True))  # no view, which could not be changed in place
    # A part of one projection of all three.
    together = torch.stack([x.detach().transpose(1, 2) for x in (q, q, q)], 2).unbind(2)[1].transpose(1, 2)
    assert not together.is_contiguous()
    part = block_sparse_attention(together, *by_tokens[1:], layout, backend="triton")
    assert part.transpose(1, 2).is_contiguous()
    assert torch.equal(part, out)
    same = block_sparse_attention(q, k, v, layout, backend="triton")
    assert same.is_contiguous()
    expected = (same, *torch.autograd.grad(same, (q, k, v), torch.ones_like(same)))
    for one, other in zip((out, *gradients), expected, strict=True):
        assert torch.equal(one, other)
    numbers = [layout.handle.number, 0.5, None, None, 0.0, "triton"]
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(attention_op, (*by_tokens, *[None] * 8, *numbers), test_utils=utils)
    inputs = [x.detach() for x in by_tokens]
    out, lse = attention_op(*inputs, *[None] * 8, *numbers)
    arguments = (*inputs, out, lse, torch.ones_like(out), None, *[None] * 8, *numbers, False, False)
    torch.library.opcheck(attention_backward_op, arguments, test_utils=utils)


def test_a_scale_that_vanishes_in_float32(kit):
    """All seen keys weigh the same, and none that causality hides is seen."""
    layout = BlockLayout.from_dense(torch.ones(HEADS, 2, 2).tril(), 16)
    inputs = tensors(kit, 1, HEADS, HEADS, 20, 20)
    out = block_sparse_attention(*inputs, layout, scale=1e-46, causal=True, backend="triton")
    means = inputs[2].cumsum(2) / torch.arange(1, 21)[:, None]
    torch.testing.assert_close(out, means, rtol=1e-5, atol=1e-5)


def test_strides_whose_multiples_exceed_32_bits(kit):
    """Of a mask and of keys; the memory between the heads is never touched."""
    heads, far = 9, 2**28
    layout = kit.random_layout(heads, 32, 32, 16, density=0.9)
    q, k, v = tensors(kit, 1, heads, heads, 32, 32)
    mask = torch.empty_strided((1, heads, 32, 32), (0, far, 32, 1), dtype=torch.bool)
    mask.copy_(_numbers(1, heads, 32, 32) > -1)
    # Not `torch.empty`, which fills what it allocates.
    keys = torch.empty_strided((1, heads, 32, 16), (0, far, 16, 1), dtype=torch.float16).copy_(k.detach())
    half = [x.detach().half() for x in (q, k, v)]
    out = block_sparse_attention(half[0], keys, half[2], layout, attn_mask=mask, backend="triton")
    same = block_sparse_attention(*half, layout, attn_mask=mask.contiguous(), backend="triton")
    assert torch.equal(out, same)


def test_no_keys_at_all(kit):
    layout = BlockLayout.from_dense(torch.zeros(HEADS, 2, 0), 16)
    q, k, v = tensors(kit, 1, HEADS, HEADS, 20, 0)
    check(q, k, v, layout)
