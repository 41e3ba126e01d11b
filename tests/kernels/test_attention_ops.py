"""The custom op: autograd, torch.compile, autocast, and handles of layouts."""

import copy
import gc
import pickle

import pytest
import torch
import torch._dynamo
import torch._dynamo.testing
from torch.utils._python_dispatch import TorchDispatchMode

from longspan_kernels import BlockLayout, block_sparse_attention
from longspan_kernels.arguments import Arguments
from longspan_kernels.layout import csr, handles
from longspan_kernels.ops import attention_backward_op, attention_op
from longspan_kernels.torch_backend import attention


def _everything(kit, q_len=10, k_len=13):
    layout = kit.random_layout(2, q_len, k_len, 4, causal=True, lead=1, seed=1)
    q, k, v = kit.tensors(2, 2, 1, q_len, k_len, dim=3)
    options = {
        "bias": torch.randn(2, 1, k_len, dtype=torch.float64, requires_grad=True),
        "key_padding_mask": torch.arange(k_len).expand(2, -1) != 4,
        "attn_mask": torch.randn(q_len, k_len),
        "document_ids": torch.arange(k_len).expand(2, -1) // 9,
        "window": (8, None),
        "dropout_p": 0.3,
        "dropout_seed": 11,
    }
    return layout, (q, k, v), options


@pytest.mark.parametrize("with_options", [False, True])
def test_gradcheck(kit, with_options):
    layout, inputs, options = _everything(kit)
    bias = options.pop("bias")

    def attend(q, k, v, bias):
        return block_sparse_attention(
            q, k, v, layout, bias=bias, return_lse=True, **(options if with_options else {})
        )

    def finite(q, k, v, bias):
        out, lse = attend(q, k, v, bias)
        return out, lse[lse > -torch.inf]

    assert torch.autograd.gradcheck(finite, (*inputs, bias))


def test_a_backward_that_others_watch(kit):
    """The forward passes the dispatcher by; whoever listens to the backward alone still sees an op."""
    layout = kit.random_layout(2, 16, 16, 4, seed=1)
    q, k, v = kit.tensors(1, 2, 2, 16, 16)
    out = block_sparse_attention(q, k, v, layout)
    weights = torch.randn(3, *out.shape, dtype=out.dtype)
    batched = torch.autograd.grad(out, q, weights, is_grads_batched=True, retain_graph=True)[0]
    for one, weight in zip(batched, weights, strict=True):
        torch.testing.assert_close(one, torch.autograd.grad(out, q, weight, retain_graph=True)[0])

    class Watch(TorchDispatchMode):
        seen = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen.append(function)
            return function(*args, **(kwargs or {}))

    with Watch() as watch:
        torch.autograd.grad(out, q, weights[0])
    assert attention_backward_op in watch.seen


@pytest.mark.parametrize("with_options", [False, True])
def test_opcheck(kit, with_options):
    layout, (q, k, v), options = _everything(kit)
    handle = layout.handle
    masks = [None] * 8
    numbers = [handle.number, 0.5, None, None, 0.0, "torch"]
    if with_options:
        masks = [
            options["key_padding_mask"],
            options["attn_mask"][None, None],
            options["bias"][None],
            options["document_ids"],
            torch.tensor(3),
            torch.randn(8, 2, requires_grad=True),
            torch.randint(8, (9,), dtype=torch.int32),
            torch.rand(2),
        ]
        numbers = [handle.number, 0.5, 8, 0, 0.3, "torch"]
    torch.library.opcheck(attention_op, (q, k, v, *masks, *numbers))
    out, lse = attention_op(q, k, v, *masks, *numbers)
    tensors = [x.detach() for x in (q, k, v, out, lse, torch.randn_like(out))]
    masks = [None if mask is None else mask.detach() for mask in masks]
    for wanted in {False, with_options}:
        torch.library.opcheck(attention_backward_op, (*tensors, None, *masks, *numbers, wanted, wanted))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_without_a_graph_break(kit, backend):
    layout, (q, k, v), options = _everything(kit, 40, 53)
    bias = options.pop("bias")

    def attend(q, k, v, bias):
        return block_sparse_attention(q * 2, k, v, layout, bias=bias, **options).sin()

    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    results = []
    for function in (attend, compiled):
        out = function(q, k, v, bias)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v, bias))))
    torch.testing.assert_close(*results)


def test_a_layout_compiles_once(kit):
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, k, v, layout: block_sparse_attention(q, k, v, layout, dropout_p=0.1),
        fullgraph=True,
        backend=counter,
    )
    one, other = (kit.random_layout(2, 32, 32, 8, seed=seed) for seed in (1, 2))
    q, k, v = kit.tensors(1, 2, 2, 32, 32)
    for _ in range(3):
        compiled(q, k, v, one)
    assert counter.frame_count == 1
    compiled(q, k, v, other)
    assert counter.frame_count == 2
    compiled(q, k, v, one)
    assert counter.frame_count == 2


@pytest.mark.parametrize("as_handle", [False, True])
def test_layouts_of_one_shape_compiled_give_each_its_own_result(kit, as_handle):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(block_sparse_attention, fullgraph=True, backend=counter)
    layouts = [kit.random_layout(2, 32, 32, 8, seed=seed) for seed in (1, 2, 3)]
    inputs = kit.tensors(1, 2, 2, 32, 32)
    results = []
    for layout in (*layouts, *layouts):
        argument = layout.handle if as_handle else layout
        results.append(compiled(*inputs, argument))
        expected = block_sparse_attention(*inputs, layout)
        torch.testing.assert_close(results[-1], expected)
        grads = [torch.autograd.grad(out.square().sum(), inputs) for out in (results[-1], expected)]
        torch.testing.assert_close(*grads)
    assert (results[0] - results[1]).abs().max() > 0.01
    assert counter.frame_count == 3


@pytest.mark.parametrize("copied", [copy.copy, lambda layout: pickle.loads(pickle.dumps(layout))])
def test_an_equal_layout_does_not_compile_again(kit, copied):
    """A graph serves a content: also after the object it was compiled with is gone."""
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(block_sparse_attention, fullgraph=True, backend=counter)
    inputs = kit.tensors(1, 2, 2, 32, 32)
    layout = kit.random_layout(2, 32, 32, 8, seed=3)
    first = compiled(*inputs, layout)
    other = copied(layout)
    assert other is not layout
    del layout
    gc.collect()
    assert torch.equal(compiled(*inputs, other), first)
    assert counter.frame_count == 1


def test_a_layout_held_elsewhere_is_guarded(kit):
    """By a closure, as by an argument."""
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    inputs = kit.tensors(1, 2, 2, 32, 32)
    layout = kit.random_layout(2, 32, 32, 8, seed=1)
    compiled = torch.compile(
        lambda q, k, v: block_sparse_attention(q, k, v, layout), fullgraph=True, backend=counter
    )
    compiled(*inputs)
    layout = kit.random_layout(2, 32, 32, 8, seed=2)
    torch.testing.assert_close(compiled(*inputs), block_sparse_attention(*inputs, layout))
    assert counter.frame_count == 2


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_whole_under_autocast(kit, backend):
    layout = kit.random_layout(2, 40, 40, 8, causal=True, seed=1)
    inputs = kit.tensors(2, 2, 1, 40, 40, dtype=torch.float32)

    def attend(q, k, v):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return block_sparse_attention(q * 2, k, v, layout, dropout_p=0.3, dropout_seed=11).sin()

    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    results = []
    for function in (attend, compiled):
        out = function(*inputs)
        assert out.dtype == torch.bfloat16
        results.append((out, *torch.autograd.grad(out.float().square().sum(), inputs)))
    torch.testing.assert_close(*results, rtol=3e-2, atol=3e-2)


def test_a_compiled_graph_keeps_its_layout(kit):
    """The backward of a compiled graph knows the number alone."""
    torch._dynamo.reset()
    compiled = torch.compile(block_sparse_attention, fullgraph=True, backend="aot_eager")
    q, k, v = kit.tensors(1, 2, 2, 32, 32)
    layout = kit.random_layout(2, 32, 32, 8, seed=77)
    out = compiled(q, k, v, layout)
    del layout
    gc.collect()
    out.sum().backward()
    assert q.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_torch_does(kit, dtype):
    layout = kit.random_layout(2, 40, 40, 8, density=1.0)
    q, k, v = kit.tensors(1, 2, 2, 40, 40, dtype=torch.float32)
    bias = torch.randn(40, 40, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        out, lse = block_sparse_attention(q, k, v, layout, bias=bias, return_lse=True)
        theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        inside = torch.autograd.grad(out.float().sum(), (q, bias), retain_graph=True)
    assert out.dtype == theirs.dtype == dtype
    assert lse.dtype == torch.float32
    halves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    expected = block_sparse_attention(*halves, layout, bias=bias)
    assert torch.equal(out, expected)
    outside = torch.autograd.grad(out.float().sum(), (q, bias))
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))
    assert inside[0].dtype == torch.float32
    with torch.autocast("cpu", dtype=dtype):
        assert block_sparse_attention(*(x.double() for x in (q, k, v)), layout).dtype == torch.float64


def test_equal_layouts_share_a_handle(kit):
    one, same, other = (kit.random_layout(1, 16, 16, 4, seed=seed) for seed in (5, 5, 6))
    assert one is not same
    assert one.handle == same.handle
    assert one.handle.number != other.handle.number
    number = one.handle.number
    del one
    gc.collect()
    assert handles.layout_of(number) == same


def test_the_registry_keeps_no_layout_alive(kit):
    layout = BlockLayout.from_dense(torch.eye(7)[None], 3)
    handle = layout.handle
    assert handles.layout_of(handle.number) is layout
    digest = layout.digest
    assert handles.by_digest(digest) is layout
    del layout
    gc.collect()
    with pytest.raises(RuntimeError, match=f"handle {handle.number} names no living BlockLayout"):
        handles.layout_of(handle.number)
    q, k, v = kit.tensors(1, 1, 1, 21, 21)
    with pytest.raises(RuntimeError, match=f"no BlockLayout of digest {digest} lives"):
        handles.by_digest(digest)
    with pytest.raises(RuntimeError, match="no living BlockLayout"):
        block_sparse_attention(q, k, v, handle)


def test_two_layouts_of_one_number_are_refused(monkeypatch):
    monkeypatch.setattr(csr, "number_of", lambda digest: 5)
    layout = BlockLayout.from_dense(torch.eye(6)[None], 3)
    assert BlockLayout.from_dense(torch.eye(6)[None], 3).handle.number == 5  # an equal one is no other
    with pytest.raises(RuntimeError, match=f"two different layouts have the number 5.*{layout.digest}"):
        BlockLayout.from_dense(torch.eye(5)[None], 3)
    del layout
    gc.collect()
    assert BlockLayout.from_dense(torch.eye(5)[None], 3).handle.number == 5


def test_a_backward_keeps_its_layout_alive(kit):
    q, k, v = kit.tensors(1, 1, 1, 21, 21)
    out = block_sparse_attention(q, k, v, BlockLayout.from_dense(torch.eye(7)[None].flip(1), 3))
    gc.collect()
    out.sum().backward()
    assert v.grad.abs().sum() > 0


def test_memory_is_in_proportion_to_the_kept_blocks(kit):
    """32K tokens, one block a row: all pairs take 1 GiB as bytes, the kept ones 2 MiB of float32."""
    blocks = 512
    length = 64 * blocks
    offsets, columns = torch.arange(blocks + 1)[None], torch.arange(blocks)
    layout = BlockLayout.from_csr(offsets, columns, torch.tensor([0]), block=64, k_blocks=blocks)
    q, k, v = (x.detach() for x in kit.tensors(1, 1, 1, length, length, dtype=torch.float32))
    arguments = Arguments(
        layout,
        0.5,
        left=40,
        right=3,
        key_padding_mask=torch.arange(length)[None] % 7 > 0,
        attn_mask=torch.randn(1, 1, length, 1),
        bias=torch.randn(1, 1, 1, length),
        document_ids=torch.arange(length)[None] // 100,
        dropout_p=0.1,
        dropout_seed=torch.tensor(1),
    )
    with _Largest() as seen:
        out, lse = attention.forward(q, k, v, arguments)
        grads = attention.backward(q, k, v, out, lse, torch.randn_like(out), None, arguments, True)
    assert grads[0].abs().sum() > 0
    assert 2**20 < seen.largest <= 2**24


class _Largest(TorchDispatchMode):
    """Watches the largest storage, in bytes, that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.untyped_storage().nbytes())
        return result
