"""The sweep of tile sizes: all of it but what needs a GPU, with calls and clocks that are made up."""

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import types
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from longspan_kernels.triton_backend import kernel_configs
from longspan_kernels.triton_backend.kernel_configs import ConfigKey, KernelConfig, KernelConfigs

FOLDER = Path(__file__).parents[2] / "experiments" / "attention_speed"
BASE, FAST, BROKEN, WRONG = (KernelConfig(64, 64, stages, 4) for stages in (3, 2, 1, 4))
SIZES = KernelConfigs(BASE, BASE, BASE, KernelConfig(32, 32, 1, 4))
WHO = {"device": "Some GPU", "architecture": [8, 0], "versions": {"torch": "1"}, "source": "abc"}


@pytest.fixture
def part(monkeypatch):
    """part(name) -> a module of the experiment's folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def tune(part):
    return part("tune")


@pytest.fixture
def tables(part):
    return part("tune_table")


class Call:
    """Stands for a call of a pattern; `milliseconds` is its clock."""

    def __init__(self, log, factor=1.0):
        self.log, self.factor = log, factor

    def run(self, kernel, size, base):
        self.log.append((kernel, size, self.factor))
        if size == BROKEN:
            raise RuntimeError("out of resource:\nshared memory")
        return (torch.full((2,), 2.0 if size == WRONG else 1.0),)


def clock(log):
    def milliseconds(call):
        call()
        _, size, factor = log[-1]
        return factor * (1.0 if size == FAST else 2.0)

    return milliseconds


def record(size, ratio, *, kernel="forward", dim=64, block=64, **more):
    base_ms = {"bigbird": 1.0, "dense": 10.0}
    times = {"ms": {name: ms * ratio for name, ms in base_ms.items()}, "base_ms": base_ms}
    about = {"kernel": kernel, "dim": dim, "block": block, "date": "2026-01-01", **WHO}
    return {**about, "size": dataclasses.asdict(size), **times, **more}


@pytest.fixture
def run(warm_python):
    def command(*arguments):
        return subprocess.run(
            [warm_python, str(FOLDER / "tune.py"), *arguments],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )

    return command


def test_nothing_held_out_is_tuned_on(tune, part):
    suite = part("suite")
    assert not set(tune.PATTERNS) & set(suite.HELD_OUT)
    assert set(tune.PATTERNS) <= suite.PATTERNS.keys()


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("kernel", ["forward", "queries", "keys"])
def test_grid(tune, kernel, block):
    present = getattr(kernel_configs.TABLE[9, 0][kernel_configs.config_key(64, block)], kernel)
    sizes = tune.grid(kernel, block, present)
    assert len(sizes) == len(set(sizes)) > 10
    assert present not in sizes
    assert all(size.serves(block) for size in sizes)
    tiles = {(s.k_tile, s.q_tile) if kernel == "keys" else (s.q_tile, s.k_tile) for s in (*sizes, present)}
    expected = {(64, 64), (64, 32)} | (
        {(64, 128), (128, 64)} if block >= 64 else {(32, 64), (32, 32), (16, 16)}
    )
    assert expected <= tiles
    assert {(size.stages, size.warps) for size in sizes} >= {(1, 4), (2, 4), (3, 4)}
    assert len({size.registers for size in sizes}) == 2
    if block < 64:
        assert sizes.pop(0) == KernelConfig(block, block, 3, 1)
    changes = [
        sum(a != b for a, b in zip(dataclasses.astuple(size), dataclasses.astuple(present), strict=True))
        for size in sizes
    ]
    assert changes == sorted(changes)
    assert changes[0] == 1


def test_plan_needs_no_gpu(run, tmp_path):
    done = run("--plan", "--head-dim", "128", "--blocks", "64", "--kernels", "keys")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("keys, head dimension 128, block 64:")
    assert lines[-1].startswith(f"{len(lines) - 3} sizes")
    assert "held out: variable, bslongformer" in lines[0]


def test_without_a_gpu_it_says_so(run, tmp_path):
    done = run("--out", str(tmp_path / "tune.jsonl"))
    assert done.returncode == 1
    assert done.stderr.strip() == "no GPU that torch can use; --plan and --table need none"
    assert not (tmp_path / "tune.jsonl").exists()


def test_table_of_nothing(run, tmp_path):
    done = run("--table", "--out", str(tmp_path / "none.jsonl"))
    assert (done.returncode, done.stdout) == (0, "nothing measured yet\n")


def test_sizes_are_timed_in_turn_with_the_base(tune):
    log = []
    calls = {"bigbird": Call(log), "dense": Call(log, 10.0)}
    records = tune.time_group("forward", [FAST, BROKEN, WRONG], SIZES, calls, clock(log))
    by_size = {KernelConfig(**one["size"]): one for one in records}
    assert list(by_size) == [BASE, FAST, BROKEN, WRONG]
    assert by_size[FAST]["ms"] == {"bigbird": 1.0, "dense": 10.0}
    assert by_size[FAST]["base_ms"] == by_size[BASE]["ms"] == {"bigbird": 2.0, "dense": 20.0}
    assert by_size[BROKEN]["error"] == "RuntimeError: out of resource: shared memory"
    assert "bigbird: off by 1 of the largest" in by_size[WRONG]["error"]
    assert "ms" not in by_size[BROKEN] | by_size[WRONG]
    timed = [size for _, size, factor in log if factor == 1.0][5:]  # what is expected, then each once
    assert timed == [BASE, FAST, FAST, BASE] * (tune.ROUNDS // 2) + [BASE, FAST]


def test_full_memory_is_no_result_of_a_size(tune):
    class Full(Call):
        def run(self, kernel, size, base):
            if size == FAST:
                raise torch.OutOfMemoryError("full")
            return super().run(kernel, size, base)

    with pytest.raises(torch.OutOfMemoryError):
        tune.time_group("forward", [FAST], SIZES, {"dense": Full([])}, clock([]))


def test_compiled_kernels_are_seen(tune, monkeypatch):
    from triton.runtime.jit import JITFunction

    from longspan_kernels.triton_backend.kernels import forward

    compiled = types.SimpleNamespace(n_regs=168, n_spills=0, metadata=types.SimpleNamespace(shared=49152))
    monkeypatch.setattr(JITFunction, "run", lambda self, *values, **options: compiled)
    with tune.compiled_kernels() as found:
        forward.attention_fwd_kernel[(1,)]()
    told = tune.resources(found[tune.FUNCTIONS["forward"]])
    assert told == {"registers": 168, "spills": 0, "shared": 49152}
    assert tune.resources(None) == {}


def test_functions_are_those_of_the_kernels(tune):
    from longspan_kernels.triton_backend.kernels import backward, forward

    assert hasattr(forward, tune.FUNCTIONS["forward"])
    assert hasattr(backward, tune.FUNCTIONS["queries"])
    assert hasattr(backward, tune.FUNCTIONS["keys"])


@pytest.fixture
def machine(tune, monkeypatch, tmp_path):
    """machine(minutes) sweeps two groups of forward sizes and gives how many calls that took."""
    from longspan_kernels.triton_backend.tuning import autotune

    log, sizes = [], [FAST, BROKEN, *(KernelConfig(32, 32, stages, 8) for stages in (1, 2, 3))]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(tune, "identity", lambda device: WHO)
    monkeypatch.setattr(tune, "base_sizes", lambda dim, block: SIZES)
    monkeypatch.setattr(tune, "planned", lambda *_: iter([("forward", 64, 64, BASE, sizes)]))
    monkeypatch.setattr(tune, "problems", lambda dim, block: {"bigbird": Call(log)})
    monkeypatch.setattr(tune, "GROUP", 3)
    monkeypatch.setattr(autotune, "cuda_milliseconds", clock(log))
    options = argparse.Namespace(
        head_dim=[64], blocks=[64], kernels=["forward"], nearest=None, out=tmp_path / "tune.jsonl", workers=0
    )

    def sweep(deadline=float("inf")):
        before = len(log)
        tune.sweep(options, deadline)
        return len(log) - before

    sweep.log, sweep.out = log, options.out
    return sweep


def test_a_sweep_is_recorded_and_resumed(machine, tables, capsys):
    assert machine(deadline=0.0) == 0
    assert "no time left" in capsys.readouterr().out
    assert machine() > 0
    records = tables.load(machine.out)
    assert [KernelConfig(**one["size"]) for one in records].count(BASE) == 2  # in each group
    assert len(records) == 7
    assert machine() == 0
    machine.out.write_text("".join(machine.out.read_text().splitlines(keepends=True)[:4]))
    assert machine() > 0
    assert {json.dumps(one["size"]) for one in records} == {
        json.dumps(one["size"]) for one in tables.load(machine.out)
    }


def test_other_sources_are_swept_anew(machine, tune, monkeypatch):
    calls = machine()
    monkeypatch.setattr(tune, "identity", lambda device: {**WHO, "source": "changed"})
    assert machine() == calls


def test_a_lost_device_ends_the_run_and_the_next_goes_past(machine, tune, tables, monkeypatch, capsys):
    def lose(error, device):
        raise tune.DeviceLostError(f"{error}")

    with monkeypatch.context() as patch:
        patch.setattr(tune, "failure", lose)
        with pytest.raises(SystemExit) as stopped:
            machine()
    assert stopped.value.code == 3
    (line,) = tables.load(machine.out)
    assert KernelConfig(**line["size"]) == BROKEN
    assert "run again" in capsys.readouterr().out
    machine.log.clear()
    machine()
    assert BROKEN not in {size for _, size, _ in machine.log}


def test_a_line_that_was_cut_off_is_left_out_and_replaced(tables, tmp_path):
    path = tmp_path / "folder" / "tune.jsonl"
    tables.append(path, [{"a": 1}])
    with path.open("a") as file:
        file.write('{"a": 2, "b"')
    assert tables.load(path) == [{"a": 1}]
    tables.append(path, [{"a": 3}])
    assert tables.load(path) == [{"a": 1}, {"a": 3}]
    path.write_text('{"a"\n{"a": 1}\n')
    with pytest.raises(ValueError, match="line 1 is no JSON"):
        tables.load(path)


def test_ratios(tables):
    slow_clock = record(FAST, 0.5)
    slow_clock["ms"] = {name: 3 * ms for name, ms in slow_clock["ms"].items()}
    slow_clock["base_ms"] = {name: 3 * ms for name, ms in slow_clock["base_ms"].items()}
    records = [
        record(BASE, 1.0),
        slow_clock,  # measured when everything was three times slower
        record(BROKEN, 0.1, error="out of resource"),
        record(FAST, 2.0, block=128),
        record(WRONG, 0.1, block=128),  # not timed with 64
        record(FAST, 0.25, block=16),
        record(FAST, 0.75, kernel="keys"),
    ]
    found = tables.ratios(records)
    assert found[ConfigKey(64, 64), "forward"] == {FAST: pytest.approx((0.5 * 2.0) ** 0.5)}
    assert found[ConfigKey(64, 16), "forward"] == {FAST: pytest.approx(0.25)}
    assert found[ConfigKey(64, 64), "keys"] == {FAST: pytest.approx(0.75)}


def test_table_is_python_that_tuning_takes(tables):
    bound = KernelConfig(32, 64, 2, 4, 168)
    records = [
        {**record(KernelConfig(16, 16, 1, 4), 0.01), "source": "old"},
        record(BASE, 1.0),
        record(FAST, 0.5),
        record(BASE, 1.0, kernel="keys"),
        record(bound, 0.9, kernel="keys"),
    ]
    text = tables.table(records)
    python = text[text.index("(8, 0)") : text.index("}") + 1]
    found = eval(
        "{" + python + "}",
        {"ConfigKey": ConfigKey, "KernelConfig": KernelConfig, "KernelConfigs": KernelConfigs},
    )
    near = kernel_configs.nearest_configs((8, 0), ConfigKey(64, 64))
    assert found == {(8, 0): {ConfigKey(64, 64): KernelConfigs(FAST, near.queries, bound, near.bias)}}
    assert "other GPUs, versions or sources: 1 lines" in text
    assert "| forward | 64 | from 64 | `KernelConfig(64, 64, 2, 4)` | 0.500 | 2 |" in text
