"""Tuning on a GPU that is made to look unknown: real launches and real clocks."""

import json

import pytest
import torch

pytest.importorskip("triton")

from longspan_kernels import BlockLayout, architecture, block_sparse_attention
from longspan_kernels.triton_backend import kernel_configs
from longspan_kernels.triton_backend.kernel_configs import ConfigKey
from longspan_kernels.triton_backend.tuning import autotune

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(architecture, "architecture_of", lambda device: (1, 0))
    monkeypatch.setenv("LONGSPAN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("LONGSPAN_AUTOTUNE", raising=False)
    for known in (autotune._tuned, autotune._failed):
        known.clear()
    yield
    for known in (autotune._tuned, autotune._failed):
        known.clear()


def attend(block):
    layout = BlockLayout.from_dense(torch.ones(2, 256 // block, 256 // block), block)
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (1, 2, 256, 64)
    q, k, v = (torch.randn(shape, generator=generator, device="cuda").bfloat16() for _ in range(3))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = block_sparse_attention(*leaves, layout, backend="triton")
    expected = torch.nn.functional.scaled_dot_product_attention(*leaves)
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
    mine, theirs = (torch.autograd.grad(one.float().square().sum(), leaves) for one in (out, expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("block", [16, 64])
def test_the_first_call_tunes_and_later_ones_do_not(tmp_path, monkeypatch, block):
    state = torch.cuda.get_rng_state()
    attend(block)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    (file,) = tmp_path.iterdir()
    timed = json.loads(file.read_text())["timed"]
    assert timed.keys() == set(autotune.KERNELS)
    assert all(ms > 0 for one in timed.values() for ms in one["milliseconds"].values())
    assert not any("wrong result" in why for one in timed.values() for why in one["failed"].values())
    monkeypatch.setattr(autotune, "measure", lambda *_: pytest.fail("timed again"))
    attend(block)
    autotune._tuned.clear()
    attend(block)  # from the file


def test_a_capture_is_not_disturbed(tmp_path):
    layout = BlockLayout.from_dense(torch.ones(1, 4, 4), 64)
    q = torch.randn(1, 1, 256, 64, device="cuda", dtype=torch.bfloat16)
    sizes = kernel_configs.nearest_configs((1, 0), ConfigKey(64, 64))
    with pytest.MonkeyPatch.context() as patch:
        # Compiled, and its schedule made, before the capture.
        patch.setattr(autotune, "tuned_configs", lambda *_: sizes)
        expected = block_sparse_attention(q, q, q, layout, backend="triton")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = block_sparse_attention(q, q, q, layout, backend="triton")
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
    assert not list(tmp_path.iterdir())
