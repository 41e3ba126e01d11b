"""The GPU experiment: its command on a CPU, and FlexAttention's masks, which must be the layouts."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longspan.sparsity import BigBirdSparsityConfig, FixedSparsityConfig

FOLDER = Path(__file__).parents[2] / "experiments" / "attention_speed"


def module(name):
    specification = importlib.util.spec_from_file_location(f"attention_speed_{name}", FOLDER / f"{name}.py")
    loaded = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = loaded  # dataclasses look their module up
    specification.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def run(warm_python):
    def command(folder, *arguments):
        line = [warm_python, str(FOLDER / "gpu.py"), "--out", str(folder), *arguments]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return command


def test_tiny_run_is_recorded_and_resumed(run, tmp_path):
    run(tmp_path, "--tiny", "--cells", "dense|bigbird")
    records = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [record["pattern"] for record in records] == ["dense", "bigbird-heads"]
    for record in records:
        assert len(record["longspan"]["both_ms"]) == len(record["dense"]["math"]["both_ms"]) == 3
        assert record["derived"]["both"]["tflops"] > 0
    assert max(records[0]["relative_errors"]["math"].values()) < 1e-4

    assert "1 cells to measure, 2 there already" in run(tmp_path, "--tiny")
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == 3
    assert "local_sliding_window" in (tmp_path / "gpu.md").read_text()
    assert (tmp_path / "speedup.png").stat().st_size > 0
    assert not (tmp_path / "time.png").exists()  # one length is no curve
    longer = {**records[0], "cell": "dense/b16/d16/512", "length": 512}
    with (tmp_path / "gpu.jsonl").open("a") as file:
        file.write(json.dumps(longer) + "\n")
    run(tmp_path, "--report")
    assert (tmp_path / "time.png").stat().st_size > 0


def test_times_of_kernels_by_version_of_the_sources(tmp_path, warm_python):
    def line(cell, source, **ms):
        kernels = {name: {"ms": one} for name, one in ms.items()}
        return json.dumps({"cell": cell, "source": source, "kernels": kernels}) + "\n"

    path = tmp_path / "kernels.jsonl"
    parts = {"attention_fwd_kernel": 0.5, "attention_bwd_dq_kernel": 1.0, "attention_bwd_dkdv_kernel": 2.0}
    lines = [
        line("a", "old", **parts, combine_splits_kernel=0.1, sum_splits_kernel=0.2),
        line("a", "new", **parts),
    ]
    path.write_text("".join([*lines, line("b", "new", **parts)]))
    command = [warm_python, str(FOLDER / "contenders.py"), "--table", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:] == [
        "| a | 0.500, 1.000, 2.000, 0.300 | 0.500, 1.000, 2.000, 0.000 |",
        "| b |  | 0.500, 1.000, 2.000, 0.000 |",
    ]


def listed(counts, indices, layouts, blocks):
    """Blocks ``[layouts, rows, columns]`` that the tables of a mask name."""
    found = torch.zeros(layouts, blocks, blocks, dtype=torch.bool)
    for layout in range(layouts):
        for row in range(blocks):
            found[layout, row, indices[0, layout, row, : counts[0, layout, row]].long()] = True
    return found


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("attention", ["bidirectional", "unidirectional"])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("pattern", [BigBirdSparsityConfig, FixedSparsityConfig])
def test_block_mask_is_the_layout(size, attention, per_head, pattern):
    flex, length, heads = module("flex"), 256, 3
    extra = {"num_different_global_patterns": 3} if per_head and pattern is FixedSparsityConfig else {}
    config = pattern(heads, 16, different_layout_per_head=per_head, attention=attention, **extra)
    layout = config.layout(length)
    mask = flex.block_mask(layout, size, length, torch.device("cpu"))
    layouts, blocks = mask.kv_num_blocks.shape[1], length // size
    assert layouts == (heads if per_head else 1)

    part = listed(mask.kv_num_blocks, mask.kv_indices, layouts, blocks)
    turned = listed(mask.q_num_blocks, mask.q_indices, layouts, blocks)
    assert torch.equal(turned.transpose(1, 2), part)
    whole = torch.zeros_like(part)
    if mask.full_kv_num_blocks is not None:
        whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices, layouts, blocks)
        turned = listed(mask.full_q_num_blocks, mask.full_q_indices, layouts, blocks)
        assert torch.equal(turned.transpose(1, 2), whole)
    assert not (part & whole).any()

    positions = torch.arange(length)
    query, key = positions[:, None].expand(length, length), positions.expand(length, length)
    want = layout.to_dense().bool().repeat_interleave(16, 1).repeat_interleave(16, 2)
    if layout.causal:
        want &= key <= query
    for head in range(heads):
        number = torch.full_like(query, head)
        allowed = mask.mask_mod(torch.zeros_like(query), number, query, key)
        of = head if per_head else 0
        spread = [x[of].repeat_interleave(size, 0).repeat_interleave(size, 1) for x in (part, whole)]
        assert torch.equal(spread[0] & allowed | spread[1], want[head])
