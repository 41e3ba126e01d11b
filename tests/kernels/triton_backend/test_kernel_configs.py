"""Tile sizes: the table, and what is timed where there is none."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


from longspan_kernels import architecture
from longspan_kernels.triton_backend import kernel_configs
from longspan_kernels.triton_backend.kernel_configs import ConfigKey, KernelConfig, KernelConfigs
from longspan_kernels.triton_backend.tuning import autotune
from longspan_kernels.triton_backend.tuning.choice import choose_configs

pytestmark = pytest.mark.usefixtures("tuner")


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize(
    ("dim", "limit"), [(16, 64), (64, 64), (65, 128), (128, 128), (129, 256), (256, 256)]
)
def test_known_architecture_takes_its_table_and_times_nothing(tuner, monkeypatch, dim, limit, block):
    monkeypatch.setattr(architecture, "architecture_of", lambda device: (9, 0))
    monkeypatch.setattr(autotune, "tuned_configs", tuner.no_launch)
    expected = kernel_configs.TABLE[9, 0][ConfigKey(limit, min(block, 64))]
    assert choose_configs(torch.bfloat16, dim, block, tuner.CPU).configs is expected
    assert choose_configs(torch.float16, dim, block, tuner.CPU).configs is expected


def test_each_architecture_has_its_own(tuner, monkeypatch):
    mine = KernelConfigs(tuner.FAST, tuner.FAST, tuner.FAST_KEYS, autotune.SAFE)
    monkeypatch.setitem(kernel_configs.TABLE, tuner.AMPERE, {tuner.WHOLE: mine})
    assert choose_configs(torch.bfloat16, 64, 64, tuner.CPU).configs is mine
    tuner.forget()
    monkeypatch.setattr(architecture, "architecture_of", lambda device: (9, 0))
    assert (
        choose_configs(torch.bfloat16, 64, 64, tuner.CPU).configs is kernel_configs.TABLE[9, 0][tuner.WHOLE]
    )


def test_every_table_serves_every_kind_and_block():
    for gpu, table in kernel_configs.TABLE.items():
        assert table.keys() == {
            ConfigKey(dim, block) for dim in kernel_configs.DIMS for block in kernel_configs.BLOCKS
        }
        for kind, sizes in table.items():
            for block in (64, 128) if kind.block == 64 else (kind.block,):
                for size in (sizes.forward, sizes.queries, sizes.keys, sizes.bias):
                    assert size.serves(block), (gpu, kind, size)


def test_one_block_configs_are_of_one_block_a_tile_and_step():
    for gpu, table in kernel_configs.ONE_BLOCK_CONFIGS.items():
        assert table.keys() <= kernel_configs.TABLE[gpu].keys()
        for kind, one_block in table.items():
            assert 0 < one_block.max_occupancy < 1
            sizes = [one_block.forward, one_block.queries, one_block.keys]
            assert any(sizes)
            assert {(one.q_tile, one.k_tile) for one in sizes if one} == {(kind.block, kind.block)}


def test_one_block_configs_are_for_half_types_on_known_gpus(tuner, monkeypatch):
    assert choose_configs(torch.bfloat16, 64, 16, tuner.CPU).one_block is None
    monkeypatch.setattr(architecture, "architecture_of", lambda device: (9, 0))
    expected = kernel_configs.ONE_BLOCK_CONFIGS[9, 0][ConfigKey(64, 16)]
    assert choose_configs(torch.bfloat16, 40, 16, tuner.CPU).one_block is expected
    assert choose_configs(torch.float32, 64, 16, tuner.CPU).one_block is None
    assert choose_configs(torch.bfloat16, 64, 64, tuner.CPU).one_block is None


def test_float32_is_never_timed(tuner, monkeypatch):
    monkeypatch.setattr(autotune, "tuned_configs", tuner.no_launch)
    assert choose_configs(torch.float32, 64, 64, tuner.CPU).configs.forward == KernelConfig(32, 32, 1, 4)


def test_no_gpu_takes_a_table_and_times_nothing(tuner, monkeypatch):
    monkeypatch.setattr(architecture, "architecture_of", lambda device: None)
    monkeypatch.setattr(autotune, "tuned_configs", tuner.no_launch)
    assert (
        choose_configs(torch.bfloat16, 64, 16, tuner.CPU).configs
        == kernel_configs.TABLE[9, 0][ConfigKey(64, 16)]
    )


def test_nearest_architecture(tuner, monkeypatch):
    kind = tuner.WHOLE
    low, high = (KernelConfigs(*[KernelConfig(16, 16, stages, 4)] * 4) for stages in (1, 2))
    monkeypatch.setattr(kernel_configs, "TABLE", {(7, 0): {kind: low}, (9, 0): {kind: high}})
    nearest = {one: kernel_configs.nearest_configs(one, kind) for one in ((7, 5), (8, 0), (8, 6), (12, 0))}
    assert nearest == {(7, 5): low, (8, 0): low, (8, 6): high, (12, 0): high}


def test_amd_gets_no_register_bound(tuner, monkeypatch):
    # Triton's AMD compiler refuses `maxnreg`.
    kind = ConfigKey(64, 16)
    assert kernel_configs.TABLE[9, 0][kind].forward.registers == 128
    sizes = kernel_configs.nearest_configs("gfx942", kind)
    for size in (sizes.forward, sizes.queries, sizes.keys):
        assert "maxnreg" not in size.launch_options()
    assert sizes.forward.q_tile == kernel_configs.TABLE[9, 0][kind].forward.q_tile
    mine = KernelConfigs(tuner.FAST, tuner.FAST, tuner.FAST_KEYS, autotune.SAFE)
    monkeypatch.setitem(kernel_configs.TABLE, "gfx90a", {kind: mine})
    assert kernel_configs.nearest_configs("gfx942", kind) is mine


def test_bits_of_a_schedule():
    assert KernelConfig(64, 128, 1, 4).serves(16)
    assert not KernelConfig(128, 128, 1, 4).serves(16)
    assert KernelConfig(128, 128, 1, 4).serves(32)
    assert KernelConfig(128, 128, 1, 4).serves(128)


@pytest.mark.parametrize(
    ("field", "value"),
    [("q_tile", 48), ("k_tile", 8), ("stages", 0), ("warps", 3), ("registers", 999), ("q_tile", "64")],
)
def test_a_size_that_cannot_be_launched_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must .*got {value!r}"):
        KernelConfig(**{"q_tile": 64, "k_tile": 64, "stages": 2, "warps": 4, field: value})


@pytest.mark.parametrize("dim", kernel_configs.DIMS)
@pytest.mark.parametrize("block", kernel_configs.BLOCKS)
@pytest.mark.parametrize("kernel", autotune.KERNELS)
def test_candidates(kernel, dim, block):
    kind = ConfigKey(dim, block)
    known = getattr(kernel_configs.TABLE[9, 0][kind], kernel)
    sizes = autotune.candidates(kernel, kind, known)
    assert sizes[0] == known
    assert sizes[-1] == autotune.SAFE
    assert 4 <= len(sizes) == len(set(sizes)) <= 6
    assert all(size.serves(kind.block) for size in sizes)


@pytest.mark.parametrize("block", [16, 64])
def test_typical_layout_is_like_bigbird(block):
    layout = autotune.typical_layout(block, heads=4, tokens=4096)
    assert (layout.heads, layout.layouts, layout.block, layout.causal) == (4, 1, block, False)
    kept = layout.to_dense()[0].bool()
    count = 4096 // block
    assert kept[:2].all()
    assert kept[:, :2].all()
    distance = (torch.arange(count)[:, None] - torch.arange(count)).abs()
    assert kept[distance <= 1].all()
    random = kept[2:, 2:].sum(1) - (distance <= 1)[2:, 2:].sum(1)
    assert random.max() == 3
    assert layout == autotune.typical_layout(block, heads=4, tokens=4096)


def test_random_state_is_left_alone(tuner):
    before = torch.get_rng_state()
    problem = autotune.typical_problem(ConfigKey(64, 16), torch.float32, tuner.CPU, tokens=64, heads=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert problem.q.shape == (4, 1, 64, 64)
    assert problem.out.isfinite().all()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_real_launches_under_the_interpreter():
    cases = Path(__file__).with_name("interpreted_tuning.py")
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(cases)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-20000:] + finished.stderr[-2000:]
