"""Launches of remembered kernels equal those that Triton makes, for each kind of call.

Triton compiles here, so `test_launch` runs this file in a process that does not interpret. Kernels are small:
what is compared is not what they compute, but which of them is launched, and with what.
"""

import dataclasses
import gc
import weakref

import pytest
import torch
from made_up_driver import made_up_gpu
from triton.runtime.jit import JITFunction

from longspan_kernels import Alibi, BlockLayout, T5Buckets, block_sparse_attention
from longspan_kernels.triton_backend import backend, launch, prepared
from longspan_kernels.triton_backend.tuning.choice import choose_configs

HEADS, LENGTH = 2, 128


@pytest.fixture
def gpu():
    with made_up_gpu() as gpu:
        yield gpu


def layout_of_all(block=64, heads=HEADS, length=LENGTH):
    blocks = length // block
    return BlockLayout.from_dense(torch.ones(heads, blocks, blocks).tril(), block)


def call(layout, dtype=torch.bfloat16, dim=32, shift=0, transposed=False, length=LENGTH, **options):
    """Forward and backward on tensors of a kind; shift moves them off their alignment."""

    def tensor():
        if transposed:
            return torch.randn(1, length, HEADS, dim, dtype=dtype).transpose(1, 2).requires_grad_()
        x = torch.randn(HEADS * length * dim + shift, dtype=dtype)[shift:]
        return x.view(1, HEADS, length, dim).requires_grad_()

    inputs = tensor(), tensor(), tensor()
    out = block_sparse_attention(*inputs, layout, backend="triton", **options)
    torch.autograd.grad(out, inputs, torch.randn_like(out))


def described(x):
    """What a launch depends on of an argument: numbers as they are, tensors without what they hold."""
    if isinstance(x, torch.Tensor):
        return x.dtype, tuple(x.shape), x.stride(), x.data_ptr() % 16
    if hasattr(x, "block_shape"):
        return described(x.base), x.shape, x.strides, x.block_shape
    if isinstance(x, tuple):
        return tuple(map(described, x))
    return getattr(x, "value", x)


def test_a_second_call_launches_what_the_first_did(gpu, monkeypatch):
    layout = layout_of_all()
    call(layout)
    first = gpu.launches.copy()
    gpu.launches.clear()
    assert [name for name, *_ in first] == [
        "attention_fwd_kernel",
        "attention_bwd_dq_kernel",
        "attention_bwd_dkdv_kernel",
    ]
    assert any(hasattr(x, "block_shape") for x in first[0][2])  # keys come through the bulk copy engine
    monkeypatch.setattr(launch.Launch, "_run_first", lambda *_: pytest.fail("Triton was asked again"))
    call(layout)
    assert [(name, grid, described(rest)) for name, grid, rest in gpu.launches] == [
        (name, grid, described(rest)) for name, grid, rest in first
    ]


def pairs(dtype=torch.bool, *shape):
    return torch.ones(shape or (LENGTH, LENGTH), dtype=dtype)


KINDS = {
    "another dtype": {"dtype": torch.float16},
    "another head dimension": {"dim": 48},
    "off the alignment": {"shift": 1},
    "half off the alignment": {"shift": 4},
    "other strides": {"transposed": True},
    "causal": {"causal": True},
    "window of one": {"window": (1, None)},
    "window": {"window": (5, 3)},
    "padding": {"key_padding_mask": pairs(torch.bool, 1, LENGTH)},
    "padding added": {"key_padding_mask": pairs(torch.float32, 1, LENGTH)},
    "mask": {"attn_mask": pairs()},
    "mask of one head": {"attn_mask": pairs(torch.bool, 1, 1, LENGTH, LENGTH)},
    "mask, transposed": {"attn_mask": pairs().t()},
    "bias": {"bias": pairs(torch.float32)},
    "bias off the alignment": {"bias": pairs(torch.float32, LENGTH * LENGTH + 1)[1:].view(LENGTH, LENGTH)},
    "bias that learns": {"bias": pairs(torch.float32).requires_grad_()},
    "bias a key": {"bias": pairs(torch.float32, 1, LENGTH).requires_grad_()},
    "bias a query": {"bias": pairs(torch.float32, LENGTH, 1).requires_grad_()},
    "a table of distances": {"relative_bias": T5Buckets(pairs(torch.float32, 32, HEADS))},
    "one that learns": {"relative_bias": T5Buckets(pairs(torch.float32, 8, HEADS).requires_grad_(), False)},
    "slopes": {"relative_bias": Alibi.of(HEADS)},
    "documents": {"document_ids": torch.zeros(1, LENGTH, dtype=torch.int64)},
    "documents int32": {"document_ids": torch.zeros(1, LENGTH, dtype=torch.int32)},
    "documents of every other place": {"document_ids": torch.zeros(1, 2 * LENGTH, dtype=torch.int64)[:, ::2]},
    "dropout": {"dropout_p": 0.5, "dropout_seed": 1},
    "little dropout": {"dropout_p": 0.1, "dropout_seed": 1},
    "scale": {"scale": 1.0},
}


@pytest.mark.parametrize("block", [16, 64])
def test_every_kind_gets_the_kernel_that_triton_would_choose(gpu, monkeypatch, block):
    """All kinds through one process, each twice: what is remembered for one must not serve another."""

    class ComparedLaunch(launch.Launch):
        @property
        def run(self):
            return self.run_and_compare

        @run.setter
        def run(self, function):
            self.remembered = function

        def run_and_compare(self, *arguments):
            before = len(gpu.launches)
            self.remembered(*arguments)
            chosen = self.kernel[self.grid](*arguments, **self.options)
            assert self.compiled is chosen
            kept, fresh = gpu.launches[before:]
            assert (kept[0], kept[1], described(kept[2])) == (fresh[0], fresh[1], described(fresh[2]))

    monkeypatch.setattr(prepared, "Launch", ComparedLaunch)
    layout = layout_of_all(block)
    for _ in range(2):
        for options in ({}, *KINDS.values()):
            call(layout, **options)
    per_head = torch.ones(HEADS, LENGTH // block, LENGTH // block)
    per_head[1, 0, 1:] = 0
    call(BlockLayout.from_dense(per_head, block))
    call(layout_of_all(block, length=2 * LENGTH), length=2 * LENGTH)
    assert len(gpu.launches) > 200


def test_nothing_of_a_call_stays(gpu):
    layout = layout_of_all()
    mask = pairs()
    q = torch.randn(1, HEADS, LENGTH, 32, dtype=torch.bfloat16, requires_grad=True)
    out = block_sparse_attention(q, q, q, layout, attn_mask=mask, backend="triton")
    out.sum().backward()
    gpu.launches.clear()
    seen = [weakref.ref(x) for x in (layout, mask, q, out)]
    del layout, mask, q, out
    gc.collect()
    assert [x() for x in seen] == [None] * 4


def test_a_choice_that_is_not_final_is_asked_for_again(gpu, monkeypatch):
    """A GPU without a table, and a call during which nothing may be timed: the next one asks again."""
    layout = layout_of_all()
    asked, is_final = [], False

    def choose(*arguments):
        asked.append(arguments)
        return dataclasses.replace(choose_configs(*arguments), is_final=is_final)

    monkeypatch.setattr(backend, "choose_configs", choose)
    call(layout)
    call(layout)
    assert len(asked) == 4  # forward and backward
    is_final = True
    call(layout)
    call(layout)
    assert len(asked) == 6


def test_no_keys_at_all(gpu):
    layout = BlockLayout.from_dense(torch.zeros(HEADS, 2, 0), 64)
    q = torch.randn(1, HEADS, LENGTH, 64, dtype=torch.bfloat16)
    k = torch.randn(1, HEADS, 0, 64, dtype=torch.bfloat16)
    block_sparse_attention(q, k, k, layout, backend="triton")
    assert [name for name, *_ in gpu.launches] == ["attention_fwd_kernel"]


def test_a_call_that_failed_to_compile_fails_again(gpu, monkeypatch):
    def broken(self, *arguments, **options):
        raise RuntimeError("out of registers")

    layout = layout_of_all()
    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", broken)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of registers"):
                call(layout)
    call(layout)
    assert gpu.launches
