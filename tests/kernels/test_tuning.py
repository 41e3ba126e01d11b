"""Tile sizes: the table, and what an architecture without one does. The GPU and its clock are made up."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from torch._subclasses import FakeTensorMode

from longspan_kernels import autotune, tuning, tuning_cache
from longspan_kernels.tuning import Kind, Size, Sizes

CPU = torch.device("cpu")
AMPERE = (8, 0)
WHOLE = Kind(64, False)
FAST = Size(64, 32, 2, 4)  # of every list of head dimension 64 but that of the keys, where it lies turned
FAST_KEYS = Size(32, 64, 2, 4)


class Problem:
    """Stands for a call: says what was run, fails where it is told to, and has a time for each size."""

    def __init__(self, broken=(), wrong=(), none=False):
        self.broken, self.wrong, self.none = broken, wrong, none
        self.runs, self.made, self.timed = [], 0, 0

    def __call__(self, kind, dtype, device):
        self.made += 1
        return self

    def expected(self):
        return {kernel: (torch.ones(4),) for kernel in autotune.KERNELS}

    def run(self, kernel, size):
        self.runs.append((kernel, size))
        if size in self.broken or self.none:
            raise RuntimeError("out of resource: shared memory")
        return (torch.full((4,), self.wrong[size]) if size in self.wrong else torch.ones(4),)

    def timer(self, call):
        call()
        self.timed += 1
        kernel, size = self.runs[-1]
        if size == (FAST_KEYS if kernel == "keys" else FAST):
            return 1.0
        return 3.0 if size == autotune.SAFE else 2.0


def forget():
    """What a new process knows: nothing."""
    autotune._found.clear()
    autotune._given_up.clear()
    autotune._announced = False
    tuning._found.clear()


@pytest.fixture(autouse=True)
def unknown_gpu(monkeypatch, tmp_path):
    """Let the CPU pass for a GPU without a table."""
    monkeypatch.setattr(tuning, "architecture_of", lambda device: AMPERE)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setenv("LONGSPAN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("LONGSPAN_AUTOTUNE", raising=False)
    forget()
    yield
    forget()


real_tuned_sizes = autotune.tuned_sizes


def tuned(problem, kind=WHOLE):
    return real_tuned_sizes(
        kind, torch.bfloat16, CPU, timer=lambda call: problem.timer(call), make_problem=problem
    )


def no_launch(*_):
    pytest.fail("timed")  # no Exception, so that nothing catches it


# The table.


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize(
    ("dim", "limit"), [(16, 64), (64, 64), (65, 128), (128, 128), (129, 256), (256, 256)]
)
def test_known_architecture_takes_its_table_and_times_nothing(monkeypatch, dim, limit, block):
    monkeypatch.setattr(tuning, "architecture_of", lambda device: (9, 0))
    monkeypatch.setattr(autotune, "tuned_sizes", no_launch)
    expected = tuning.TABLE[9, 0][Kind(limit, block < 64)]
    assert tuning.sizes_for(torch.bfloat16, dim, block, CPU) is expected
    assert tuning.sizes_for(torch.float16, dim, block, CPU) is expected


def test_each_architecture_has_its_own(monkeypatch):
    mine = Sizes(FAST, FAST, FAST_KEYS, autotune.SAFE)
    monkeypatch.setitem(tuning.TABLE, AMPERE, {WHOLE: mine})
    assert tuning.sizes_for(torch.bfloat16, 64, 64, CPU) is mine
    forget()
    monkeypatch.setattr(tuning, "architecture_of", lambda device: (9, 0))
    assert tuning.sizes_for(torch.bfloat16, 64, 64, CPU) is tuning.TABLE[9, 0][WHOLE]


def test_every_table_serves_every_kind_and_block():
    for architecture, table in tuning.TABLE.items():
        assert table.keys() == {Kind(dim, gathered) for dim in tuning.DIMS for gathered in (False, True)}
        for kind, sizes in table.items():
            for block in (16, 32) if kind.gathered else (64, 128):
                for size in (sizes.forward, sizes.queries, sizes.keys, sizes.bias):
                    assert size.serves(block), (architecture, kind, size)


def test_float32_is_never_timed(monkeypatch):
    monkeypatch.setattr(autotune, "tuned_sizes", no_launch)
    assert tuning.sizes_for(torch.float32, 64, 64, CPU).forward == Size(32, 32, 1, 4)


def test_no_gpu_takes_a_table_and_times_nothing(monkeypatch):
    monkeypatch.setattr(tuning, "architecture_of", lambda device: None)
    monkeypatch.setattr(autotune, "tuned_sizes", no_launch)
    assert tuning.sizes_for(torch.bfloat16, 64, 16, CPU) == tuning.TABLE[9, 0][Kind(64, True)]


def test_nearest_architecture(monkeypatch):
    kind = WHOLE
    low, high = (Sizes(*[Size(16, 16, stages, 4)] * 4) for stages in (1, 2))
    monkeypatch.setattr(tuning, "TABLE", {(7, 0): {kind: low}, (9, 0): {kind: high}})
    nearest = {one: tuning.nearest_sizes(one, kind) for one in ((7, 5), (8, 0), (8, 6), (12, 0))}
    assert nearest == {(7, 5): low, (8, 0): low, (8, 6): high, (12, 0): high}


def test_amd_gets_no_register_bound(monkeypatch):
    # Triton's AMD compiler refuses `maxnreg`.
    kind = Kind(64, True)
    assert tuning.TABLE[9, 0][kind].forward.registers == 128
    sizes = tuning.nearest_sizes("gfx942", kind)
    for size in (sizes.forward, sizes.queries, sizes.keys):
        assert "maxnreg" not in size.launch()
    assert sizes.forward.q_tile == tuning.TABLE[9, 0][kind].forward.q_tile
    mine = Sizes(FAST, FAST, FAST_KEYS, autotune.SAFE)
    monkeypatch.setitem(tuning.TABLE, "gfx90a", {kind: mine})
    assert tuning.nearest_sizes("gfx942", kind) is mine


def test_bits_of_a_schedule():
    assert Size(64, 128, 1, 4).serves(16)
    assert not Size(128, 128, 1, 4).serves(16)
    assert Size(128, 128, 1, 4).serves(32)
    assert Size(128, 128, 1, 4).serves(128)


@pytest.mark.parametrize(
    ("field", "value"),
    [("q_tile", 48), ("k_tile", 8), ("stages", 0), ("warps", 3), ("registers", 999), ("q_tile", "64")],
)
def test_a_size_that_cannot_be_launched_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must .*got {value!r}"):
        Size(**{"q_tile": 64, "k_tile": 64, "stages": 2, "warps": 4, field: value})


@pytest.mark.parametrize("dim", tuning.DIMS)
@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("kernel", autotune.KERNELS)
def test_candidates(kernel, dim, gathered):
    kind = Kind(dim, gathered)
    known = getattr(tuning.TABLE[9, 0][kind], kernel)
    sizes = autotune.candidates(kernel, kind, known)
    assert sizes[0] == known
    assert sizes[-1] == autotune.SAFE
    assert 4 <= len(sizes) == len(set(sizes)) <= 6
    assert all(size.serves(kind.block) for size in sizes)


# An architecture without a table.


def test_tunes_once_and_remembers(caplog):
    problem = Problem()
    with caplog.at_level(logging.INFO):
        sizes = tuned(problem)
    assert (sizes.forward, sizes.queries, sizes.keys) == (FAST, FAST, FAST_KEYS)
    assert sizes.bias == tuning.nearest_sizes(AMPERE, WHOLE).bias
    tried = sum(
        len(autotune.candidates(kernel, WHOLE, getattr(tuning.TABLE[9, 0][WHOLE], kernel)))
        for kernel in autotune.KERNELS
    )
    assert problem.timed == autotune.ROUNDS * tried

    runs = len(problem.runs)
    assert tuned(problem) is sizes
    assert len(problem.runs) == runs

    (file,) = tuning_cache.cache_directory().iterdir()
    stored = json.loads(file.read_text())
    assert stored["key"]["gpu"] == "Some GPU"
    assert stored["key"]["architecture"] == [8, 0]
    assert stored["sizes"]["forward"] == {
        "q_tile": 64, "k_tile": 32, "stages": 2, "warps": 4, "registers": None,
    }  # fmt: skip
    assert stored["timed"]["forward"]["milliseconds"][str(FAST)] == 1.0

    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert str(file) in warnings[0].getMessage()
    tuned(problem, Kind(128, False))
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_another_process_reads_the_file():
    sizes = tuned(Problem())
    forget()
    assert tuned(no_launch) == sizes


def test_sizes_for_goes_the_same_way(monkeypatch):
    problem = Problem()
    monkeypatch.setattr(autotune, "tuned_sizes", lambda kind, dtype, device: tuned(problem, kind))
    assert tuning.sizes_for(torch.bfloat16, 64, 64, CPU).forward == FAST
    monkeypatch.setattr(autotune, "tuned_sizes", no_launch)
    assert tuning.sizes_for(torch.float16, 48, 128, CPU).forward == FAST  # the same kind


def test_kinds_are_tuned_one_by_one():
    kinds = [WHOLE, Kind(64, True), Kind(128, False)]
    problems = [Problem() for _ in kinds]
    for kind, problem in zip(kinds, problems, strict=True):
        tuned(problem, kind)
    assert [problem.made for problem in problems] == [1, 1, 1]
    assert len(list(tuning_cache.cache_directory().iterdir())) == 3


def test_median_of_interleaved_rounds():
    order, times = [], {Size(16, 16, 1, 4): [9.0, 1.0, 1.1], Size(32, 32, 1, 4): [2.0, 2.0, 2.0]}
    left = {size: list(each) for size, each in times.items()}

    def timer(call):
        call()
        return left[order[-1]].pop(0)

    def run(size):
        order.append(size)
        return (torch.ones(1),)

    medians, failed = autotune.measure(list(times), run, (torch.ones(1),), timer, rounds=3)
    assert medians == {Size(16, 16, 1, 4): 1.1, Size(32, 32, 1, 4): 2.0}
    assert not failed
    a, b = times
    assert order == [a, b, a, b, b, a, a, b]  # checked first, then every other round backwards


def test_a_candidate_that_does_not_compile_is_left_out():
    problem = Problem(broken=[FAST])
    sizes = tuned(problem)
    assert FAST not in (sizes.forward, sizes.queries)
    assert sizes.keys == FAST_KEYS
    (file,) = tuning_cache.cache_directory().iterdir()
    assert "shared memory" in json.loads(file.read_text())["timed"]["forward"]["failed"][str(FAST)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0 + 2 * autotune.TOLERANCE])
def test_a_candidate_with_a_wrong_result_is_left_out(value):
    sizes = tuned(Problem(wrong={FAST: value}))
    assert FAST not in (sizes.forward, sizes.queries)


def test_rounding_is_not_wrong():
    assert tuned(Problem(wrong={FAST: 1.0 + autotune.TOLERANCE / 2})).forward == FAST


def test_where_no_candidate_works_the_nearest_table_serves_and_nothing_is_remembered(caplog):
    problem = Problem(none=True)
    assert tuned(problem) is None
    assert "no size tried works for forward" in caplog.text
    assert not tuning_cache.cache_directory().exists()
    runs = len(problem.runs)
    assert tuned(problem) is None
    assert len(problem.runs) == runs  # not at every call
    assert tuning.sizes_for(torch.bfloat16, 64, 64, CPU) == tuning.nearest_sizes(AMPERE, WHOLE)


def test_full_memory_says_nothing_of_a_size(caplog):
    problem = Problem()
    plain = problem.run

    def run(kernel, size):
        if size == FAST:
            raise torch.OutOfMemoryError("full")
        return plain(kernel, size)

    problem.run = run
    assert tuned(problem) is None
    assert "tuning failed" in caplog.text
    assert not tuning_cache.cache_directory().exists()


# Where it must not be timed.


def test_switched_off(monkeypatch):
    tuned(Problem())
    forget()
    monkeypatch.setenv("LONGSPAN_AUTOTUNE", "0")
    assert tuned(no_launch) is None
    assert tuning.sizes_for(torch.bfloat16, 64, 64, CPU) == tuning.nearest_sizes(AMPERE, WHOLE)
    monkeypatch.setenv("LONGSPAN_AUTOTUNE", "1")  # the nearest was not kept
    assert tuning.sizes_for(torch.bfloat16, 64, 64, CPU).forward == FAST


def test_switch_has_two_values(monkeypatch):
    monkeypatch.setenv("LONGSPAN_AUTOTUNE", "no")
    with pytest.raises(ValueError, match="LONGSPAN_AUTOTUNE must be 0 or 1, got 'no'"):
        tuned(no_launch)


def capturing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def compiling(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.parametrize("situation", [capturing, compiling])
def test_neither_in_a_capture_nor_in_a_trace(monkeypatch, situation):
    with monkeypatch.context() as patch:
        situation(patch)
        assert tuned(no_launch) is None
    sizes = tuned(Problem())  # what stood in then is not kept
    assert sizes.forward == FAST
    forget()
    situation(monkeypatch)
    assert tuned(no_launch) == sizes  # a file may be read


def test_not_under_fake_tensors():
    with FakeTensorMode():
        assert tuned(no_launch) is None
    assert tuned(Problem()).forward == FAST


def test_tuning_does_not_tune():
    problem, inner = Problem(), []
    plain = problem.run

    def run(kernel, size):
        inner.append(tuned(no_launch))
        return plain(kernel, size)

    problem.run = run
    found = []
    thread = threading.Thread(target=lambda: found.append(tuned(problem)), daemon=True)
    thread.start()
    thread.join(60)
    assert found[0].forward == FAST
    assert set(inner) == {None}


def test_threads_tune_once():
    problem, found = Problem(), []
    start = threading.Barrier(8)

    def call():
        start.wait()
        found.append(tuned(problem))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(sizes is found[0] for sizes in found)
    assert problem.made == 1


# The file.


def test_the_first_process_to_finish_decides():
    theirs = Sizes(*[autotune.SAFE] * 4)
    problem = Problem()
    plain = problem.run

    def run(kernel, size):
        if not problem.timed:  # meanwhile another process has finished
            tuning_cache.write(autotune.key_of(WHOLE, CPU), theirs, {})
        return plain(kernel, size)

    problem.run = run
    assert tuned(problem) == theirs


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: '{"key": {}}',
        lambda text: text.replace('"q_tile": 64', '"q_tile": 63'),
        lambda text: text.replace('"stages"', '"steps"'),
        lambda text: text.replace('"gpu": "Some GPU"', '"gpu": "Another"'),
        lambda text: text.replace('"bias"', '"else"'),
    ],
)
def test_a_damaged_file_counts_as_absent(damage, caplog):
    sizes = tuned(Problem())
    (file,) = tuning_cache.cache_directory().iterdir()
    damaged = damage(file.read_text())
    assert damaged != file.read_text()
    file.write_text(damaged)
    forget()
    problem = Problem()
    assert tuned(problem) == sizes
    assert problem.made == 1
    assert "count as absent" in caplog.text
    forget()
    assert tuned(no_launch) == sizes  # it was mended


def test_bytes_that_are_no_text_count_as_absent(caplog):
    tuned(Problem())
    (file,) = tuning_cache.cache_directory().iterdir()
    file.write_bytes(b"\xff\xfe\x00")
    assert tuning_cache.read(autotune.key_of(WHOLE, CPU)) is None
    assert "count as absent" in caplog.text


def test_a_directory_that_cannot_be_written_is_said_and_let_go(monkeypatch, tmp_path, caplog):
    # Not by permissions, which root does not feel: a file stands where the directory should be.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LONGSPAN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    problem = Problem()
    assert tuned(problem).forward == FAST
    assert "cannot be written" in caplog.text
    assert tuned(problem).forward == FAST
    assert problem.made == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_said_and_let_go(monkeypatch, tmp_path, caplog):
    tmp_path.chmod(0o500)
    monkeypatch.setenv("LONGSPAN_CACHE_DIR", str(tmp_path))
    assert tuned(Problem()).forward == FAST
    assert "cannot be written" in caplog.text


def test_nothing_is_left_of_a_write_that_fails(monkeypatch):
    def refuse(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    assert tuned(Problem()).forward == FAST
    assert list(tuning_cache.cache_directory().iterdir()) == []


def test_readers_see_whole_files_alone(caplog):
    key = autotune.key_of(WHOLE, CPU)
    both = [Sizes(*[Size(64, 64, stages, 4)] * 4) for stages in (1, 2)]
    tuning_cache.write(key, both[0], {})
    done = threading.Event()

    def write(sizes):
        while not done.is_set():
            tuning_cache.write(key, sizes, {"long": "x" * 100_000})

    writers = [threading.Thread(target=write, args=(sizes,)) for sizes in both]
    for writer in writers:
        writer.start()
    seen = [tuning_cache.read(key) for _ in range(200)]
    done.set()
    for writer in writers:
        writer.join()
    assert set(seen) <= set(both)
    assert not caplog.records


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (torch, "__version__", "9.9"),
        (autotune.triton, "__version__", "9.9"),
        (tuning_cache, "source_hash", lambda: "changed"),
        (torch.cuda, "get_device_name", lambda device: "Another GPU"),
        (tuning, "architecture_of", lambda device: (8, 6)),
    ],
    ids=["torch", "triton", "source", "gpu", "architecture"],
)
def test_another_version_or_gpu_is_tuned_anew(monkeypatch, owner, name, value):
    tuned(Problem())
    forget()
    monkeypatch.setattr(owner, name, value)
    problem = Problem()
    tuned(problem)
    assert problem.made == 1
    assert len(list(tuning_cache.cache_directory().iterdir())) == 2


def test_source_hash_is_of_every_source(monkeypatch, tmp_path):
    (tmp_path / "a.py").write_text("one")
    monkeypatch.setattr(tuning_cache.resources, "files", lambda package: tmp_path)
    hashes = set()
    for name, text in (("a.py", "one"), ("a.py", "two"), ("b.py", "one"), ("notes.md", "no source")):
        (tmp_path / name).write_text(text)
        tuning_cache.source_hash.cache_clear()
        hashes.add(tuning_cache.source_hash())
    tuning_cache.source_hash.cache_clear()
    assert len(hashes) == 3


def test_cache_directory(monkeypatch, tmp_path):
    assert tuning_cache.cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("LONGSPAN_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    for chosen in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", chosen)
        assert tuning_cache.cache_directory() == tmp_path / ".cache" / "longspan"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tuning_cache.cache_directory() == tmp_path / "xdg" / "longspan"


def test_no_home_directory(monkeypatch, caplog):
    def homeless():
        raise RuntimeError("no home")

    monkeypatch.delenv("LONGSPAN_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert tuned(Problem()).forward == FAST
    assert "not remembered" in caplog.text


# What is timed.


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


def test_random_state_is_left_alone():
    before = torch.get_rng_state()
    problem = autotune.typical_problem(Kind(64, True), torch.float32, CPU, tokens=64, heads=1)
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
