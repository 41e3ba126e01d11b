"""What does not fit is refused, with the argument, its value and what is allowed."""

import math

import pytest
import torch

from longspan_kernels import available_backends, block_sparse_attention, resolve_backend


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 16, 4)}, r"must be \[batch, heads, length, dim\], got q \[2, 16, 4\]"),
        ({"q": torch.zeros(1, 2, 16, 4).int()}, "of one dtype, float64.*got torch.int32"),
        ({"k": torch.zeros(1, 1, 16, 4).double()}, "of one dtype.*torch.float32, torch.float64"),
        ({"v": torch.zeros(1, 1, 16, 4, device="meta")}, "on one device, got cpu, cpu, meta"),
        (
            {"k": torch.zeros(1, 1, 16, 5)},
            "k must be .* with q's batch and dim",
        ),
        ({"v": torch.zeros(1, 2, 16, 4)}, "v as k but for its dim"),
        ({"q": torch.zeros(1, 3, 16, 4)}, r"the layout is for 2 heads, but q has 3: q is \[1, 3, 16, 4\]"),
        (
            {"k": torch.zeros(1, 3, 16, 4), "v": torch.zeros(1, 3, 16, 4)},
            "heads of q must be a multiple of those of k and v",
        ),
        ({"q": torch.zeros(1, 2, 20, 4)}, "4 x 4 blocks of 4 tokens, but 20 queries and 16 keys need 5 x 4"),
        ({"key_padding_mask": torch.ones(16)}, r"key_padding_mask must be .* = \[1, 16\], got \[16\]"),
        ({"key_padding_mask": torch.ones(1, 16).long()}, "key_padding_mask must be bool .* got torch.int64"),
        ({"key_padding_mask": torch.ones(1, 16, requires_grad=True)}, "key_padding_mask requires a gradient"),
        (
            {"attn_mask": torch.ones(16, 8)},
            r"attn_mask must .* \[1, 2, 16, 16\], got \[16, 8\]",
        ),
        ({"attn_mask": torch.ones(1, 1, 1, 16, 16)}, "attn_mask must broadcast"),
        ({"attn_mask": torch.ones(16, 16).long()}, "attn_mask must be bool .* got torch.int64"),
        ({"attn_mask": torch.ones(16, 16, requires_grad=True)}, "pass what is learned as bias"),
        ({"bias": torch.ones(16, 16).bool()}, "bias must be floating point .* got torch.bool"),
        ({"bias": torch.ones(3, 1, 1)}, r"bias must broadcast .* got \[3, 1, 1\]"),
        ({"bias": torch.ones(16, 16, device="meta")}, "bias must be on q's device cpu, got meta"),
        ({"document_ids": torch.ones(1, 16)}, "document_ids must be integers, got torch.float32"),
        ({"document_ids": torch.ones(1, 8).long()}, r"document_ids must be .* = \[1, 16\], got \[1, 8\]"),
        ({"window": (-1, 0)}, r"window must be \(left, right\).* got \(-1, 0\)"),
        ({"window": (1,)}, r"window must be \(left, right\)"),
        ({"window": (1.5, 2)}, r"window must be \(left, right\).* got \(1.5, 2\)"),
        ({"window": 3}, r"window must be \(left, right\).* got 3"),
        ({"causal": "yes"}, "causal must be True, False or None, got 'yes'"),
        ({"scale": math.nan}, "scale must be a finite number or None, got nan"),
        ({"scale": math.inf}, "scale must be a finite number or None, got inf"),
        ({"scale": "a"}, "scale must be a finite number or None, got 'a'"),
        ({"scale": torch.ones((), requires_grad=True)}, r"scale must be a finite number .* got tensor\(1"),
        ({"dropout_p": 1.0}, r"dropout_p must be a number in \[0, 1\), got 1.0"),
        ({"dropout_p": "a"}, r"dropout_p must be a number in \[0, 1\), got 'a'"),
        ({"dropout_p": 0.1, "dropout_seed": -1}, r"dropout_seed must .* in \[0, 2\*\*64\), got -1"),
        ({"dropout_p": 0.1, "dropout_seed": 1.5}, r"dropout_seed must be a whole number .* got 1.5"),
        (
            {"dropout_p": 0.1, "dropout_seed": torch.zeros(1).long()},
            "dropout_seed must be an int64",
        ),
        ({"backend": "cuda"}, "backend must be one of 'auto', 'torch'.*got 'cuda'"),
    ],
)
def test_refused(kit, change, message):
    layout = kit.random_layout(2, 16, 16, 4)
    inputs = {"q": torch.zeros(1, 2, 16, 4), "k": torch.zeros(1, 1, 16, 4), "v": torch.zeros(1, 1, 16, 4)}
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(**{**inputs, **change}, layout=layout)


def test_documents_need_a_number_for_each_query(kit):
    layout = kit.random_layout(1, 20, 16, 4)
    q, k, v = kit.tensors(1, 1, 1, 20, 16)
    with pytest.raises(ValueError, match="got 20 queries and 16 keys"):
        block_sparse_attention(q, k, v, layout, document_ids=torch.zeros(1, 16).long())


def test_backends_by_name():
    assert available_backends() == ("torch", "triton")
    assert resolve_backend("auto", torch.device("cpu")) == "torch"
    assert resolve_backend("torch", torch.device("cpu")) == "torch"
    assert resolve_backend("reference", torch.device("cpu")) == "torch"  # the name of earlier versions


@pytest.mark.parametrize(
    ("block", "dtype", "dim", "message"),
    [
        (
            8,
            torch.float32,
            16,
            "serves blocks of 16, 32, 64, 128 tokens, got 8; backend='torch' serves any",
        ),
        (16, torch.float64, 16, "serves float32, bfloat16 and float16; backend='torch' serves float64"),
        (16, torch.float32, 300, "serves head dimensions up to 256, got 300 and 300; backend='torch'"),
        (16, torch.float32, 16, "needs a GPU, got tensors on cpu; backend='torch' serves any device"),
    ],
)
def test_what_triton_does_not_serve(kit, block, dtype, dim, message):
    pytest.importorskip("triton")
    layout = kit.random_layout(1, 32, 32, block)
    q, k, v = (x.to(dtype) for x in kit.tensors(1, 1, 1, 32, 32, dim=dim))
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(q, k, v, layout, backend="triton")
