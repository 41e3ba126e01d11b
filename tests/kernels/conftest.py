"""An oracle of its own: dense attention in float64 by autograd, and Philox in Python's integers."""

import importlib.util
import itertools
import math
import os
from pathlib import Path

import pytest
import torch

from longspan_kernels import BlockLayout, block_sparse_attention

WORD = 2**32


def patch_the_interpreter_once():
    """Let Triton's interpreter replace the functions of `triton.language` once, and not in each call.

    It goes through all of them whenever one device function calls another, which is a third of the time of an
    interpreted kernel. What it puts in their place is the same each time.
    """
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set()

    def patch_once(function):
        if id(function.__globals__) not in patched:
            patched.add(id(function.__globals__))
            patch(function)
        return interpreter._LangPatchScope()  # of no changes: nothing is put back after a launch

    interpreter._patch_lang = patch_once
    dtype_of, dtypes = interpreter._get_np_dtype, {}

    def remembered_dtype(dtype):
        name = dtype.scalar.name
        if name not in dtypes:
            dtypes[name] = dtype_of(dtype)
        return dtypes[name]

    interpreter._get_np_dtype = remembered_dtype


if os.environ.get("TRITON_INTERPRET") == "1":
    patch_the_interpreter_once()


def philox_in_integers(counter, key):
    """Philox4x32-10 as the paper defines it, on unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        even, odd = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [odd // WORD ^ c[1] ^ k[0], odd % WORD, even // WORD ^ c[3] ^ k[1], even % WORD]
        k = [(k[0] + 0x9E3779B9) % WORD, (k[1] + 0xBB67AE85) % WORD]
    return c


def dropout_mask(seed, p, batch, heads, q_len, k_len):
    """Which weights dropout keeps, ``[batch, heads, q_len, k_len]``."""
    keep = torch.zeros(batch, heads, q_len, k_len, dtype=torch.bool)
    for b, h, i, four in itertools.product(range(batch), range(heads), range(q_len), range(-(-k_len // 4))):
        words = philox_in_integers((four, (i + k_len - q_len) % WORD, h, b), (seed % WORD, seed // WORD))
        for lane, word in enumerate(words[: k_len - 4 * four]):
            keep[b, h, i, 4 * four + lane] = word >= round(p * WORD)
    return keep


def token_mask(layout, q_len, k_len, causal=None, window=None):
    """What a layout and a window let through, ``[heads, q_len, k_len]``, from the geometry in words."""
    rows = (torch.arange(q_len) + layout.lead) // layout.block
    seen = layout.to_dense().bool()[:, rows][:, :, torch.arange(k_len) // layout.block]
    distance = torch.arange(k_len) - (torch.arange(q_len)[:, None] + k_len - q_len)
    if layout.causal if causal is None else causal:
        seen = seen & (distance <= 0)
    left, right = window or (None, None)
    if left is not None:
        seen = seen & (distance >= -left)
    if right is not None:
        seen = seen & (distance <= right)
    return seen


def dense_attention(
    q,
    k,
    v,
    layout,
    *,
    causal=None,
    scale=None,
    key_padding_mask=None,
    attn_mask=None,
    bias=None,
    document_ids=None,
    window=None,
    dropout_p=0.0,
    dropout_seed=None,
):
    """The context and the log-sum-exp, with every score in memory."""
    batch, heads, q_len, dim = q.shape
    k_len, groups = k.shape[2], heads // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    seen = token_mask(layout, q_len, k_len, causal, window).expand(batch, -1, -1, -1)
    scores = q @ k.mT * (dim**-0.5 if scale is None else scale)
    for mask in (attn_mask, bias, None if key_padding_mask is None else key_padding_mask[:, None, None]):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            seen = seen & mask
        else:
            scores = scores + mask.to(scores.dtype)
    if document_ids is not None:
        seen = seen & (document_ids[:, None, k_len - q_len :, None] == document_ids[:, None, None])
    scores = scores.masked_fill(~seen, -math.inf)
    empty = (scores == -math.inf).all(-1, keepdim=True)
    lse = scores.logsumexp(-1)
    weights = scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)
    if dropout_p:
        weights = (
            weights * dropout_mask(dropout_seed, dropout_p, batch, heads, q_len, k_len) / (1 - dropout_p)
        )
    return weights @ v, lse


def tensors(batch, heads, kv_heads, q_len, k_len, dim=4, v_dim=None, seed=0, dtype=torch.float64):
    """Random q, k, v that require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def one(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return (
        one(batch, heads, q_len, dim),
        one(batch, kv_heads, k_len, dim),
        one(batch, kv_heads, k_len, v_dim or dim),
    )


def random_layout(heads, q_len, k_len, block, *, causal=False, lead=0, density=0.5, seed=0):
    """A layout of blocks drawn at random, each head its own."""
    generator = torch.Generator().manual_seed(seed)
    shape = (heads, -(-(lead + q_len) // block), -(-k_len // block))
    return BlockLayout.from_dense(
        torch.rand(shape, generator=generator) < density, block, causal=causal, lead=lead
    )


def check(q, k, v, layout, tolerance=1e-11, **options):
    """Compare values, log-sum-exp and all gradients with dense attention; return the context."""
    out, lse = block_sparse_attention(q, k, v, layout, return_lse=True, **options)
    expected, expected_lse = dense_attention(q, k, v, layout, **options)
    assert out.is_contiguous()
    assert out.dtype == q.dtype
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse, expected_lse, rtol=tolerance, atol=tolerance)
    inputs = [x for x in (q, k, v, options.get("bias")) if x is not None and x.requires_grad]
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    weight_lse = torch.randn(lse.shape, generator=generator, dtype=lse.dtype)

    def gradients(out, lse):
        lse = lse.masked_fill(lse == -math.inf, 0)
        total = (out * weight).sum() + (lse * weight_lse).sum()
        return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)

    for mine, theirs in zip(gradients(out, lse), gradients(expected, expected_lse), strict=True):
        theirs = theirs.nan_to_num(0.0)  # the oracle's own log-sum-exp of nothing
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    return out


class Kit:
    """What the tests of this folder share."""

    philox_in_integers = staticmethod(philox_in_integers)
    dropout_mask = staticmethod(dropout_mask)
    token_mask = staticmethod(token_mask)
    dense_attention = staticmethod(dense_attention)
    tensors = staticmethod(tensors)
    random_layout = staticmethod(random_layout)
    check = staticmethod(check)


@pytest.fixture
def poison(monkeypatch):
    """Fill what is allocated empty with NaN, so that an element that is never written shows."""
    for name in ("empty", "empty_like", "new_empty", "new_empty_strided"):
        owner = torch.Tensor if name.startswith("new") else torch
        allocate = getattr(owner, name)

        def poisoned(*args, _allocate=allocate, **kwargs):
            x = _allocate(*args, **kwargs)
            return x.fill_(torch.nan) if x.is_floating_point() else x

        monkeypatch.setattr(owner, name, poisoned)


@pytest.fixture(scope="session")
def kit():
    return Kit


@pytest.fixture
def tuner(monkeypatch, tmp_path):
    """The CPU passes for a GPU without a table; the module `made_up_gpu` has what is tuned there, and how."""
    pytest.importorskip("triton")
    from longspan_kernels import architecture

    path = Path(__file__).parent / "triton_backend" / "made_up_gpu.py"
    specification = importlib.util.spec_from_file_location("made_up_gpu", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(architecture, "architecture_of", lambda device: module.AMPERE)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setenv("LONGSPAN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("LONGSPAN_AUTOTUNE", raising=False)
    module.forget()
    yield module
    module.forget()
