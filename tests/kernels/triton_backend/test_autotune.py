"""An architecture without a table: tuned once, and never where it must not be."""

import json
import logging
import threading

import pytest
import torch

pytest.importorskip("triton")

from torch._subclasses import FakeTensorMode

from longspan_kernels import architecture
from longspan_kernels.triton_backend import kernel_configs
from longspan_kernels.triton_backend.kernel_configs import ConfigKey, KernelConfig
from longspan_kernels.triton_backend.tuning import autotune, config_cache
from longspan_kernels.triton_backend.tuning.choice import choose_configs


def test_tunes_once_and_remembers(tuner, caplog):
    problem = tuner.Problem()
    with caplog.at_level(logging.INFO):
        sizes = tuner.tuned(problem)
    assert (sizes.forward, sizes.queries, sizes.keys) == (tuner.FAST, tuner.FAST, tuner.FAST_KEYS)
    assert sizes.bias == kernel_configs.nearest_configs(tuner.AMPERE, tuner.WHOLE).bias
    tried = sum(
        len(
            autotune.candidates(kernel, tuner.WHOLE, getattr(kernel_configs.TABLE[9, 0][tuner.WHOLE], kernel))
        )
        for kernel in autotune.KERNELS
    )
    assert problem.timed == autotune.ROUNDS * tried

    runs = len(problem.runs)
    assert tuner.tuned(problem) is sizes
    assert len(problem.runs) == runs

    (file,) = config_cache.cache_directory().iterdir()
    stored = json.loads(file.read_text())
    assert stored["key"]["gpu"] == "Some GPU"
    assert stored["key"]["architecture"] == [8, 0]
    assert stored["sizes"]["forward"] == {
        "q_tile": 64, "k_tile": 32, "stages": 2, "warps": 4, "registers": None,
    }  # fmt: skip
    assert stored["timed"]["forward"]["milliseconds"][str(tuner.FAST)] == 1.0

    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert str(file) in warnings[0].getMessage()
    tuner.tuned(problem, ConfigKey(128, 64))
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_another_process_reads_the_file(tuner):
    sizes = tuner.tuned(tuner.Problem())
    tuner.forget()
    assert tuner.tuned(tuner.no_launch) == sizes


def test_calls_go_the_same_way(tuner, monkeypatch):
    problem = tuner.Problem()
    monkeypatch.setattr(autotune, "tuned_configs", lambda key, dtype, device: tuner.tuned(problem, key))
    first = choose_configs(torch.bfloat16, 64, 64, tuner.CPU)
    assert first.configs.forward == tuner.FAST
    assert first.is_final
    timed = problem.timed
    assert choose_configs(torch.float16, 48, 128, tuner.CPU) == first  # the same key
    assert problem.timed == timed


def test_a_choice_is_final_unless_timing_has_to_wait(tuner, monkeypatch):
    monkeypatch.setattr(autotune, "tuned_configs", lambda *_: None)
    assert choose_configs(torch.bfloat16, 64, 64, tuner.CPU).is_final  # nothing that is tried works
    with monkeypatch.context() as patch:
        compiling(patch)
        assert not choose_configs(torch.bfloat16, 64, 64, tuner.CPU).is_final
        assert choose_configs(torch.float32, 64, 64, tuner.CPU).is_final
        patch.setattr(architecture, "architecture_of", lambda device: (9, 0))
        assert choose_configs(torch.bfloat16, 64, 64, tuner.CPU).is_final


def test_kinds_are_tuned_one_by_one(tuner):
    kinds = [tuner.WHOLE, ConfigKey(64, 16), ConfigKey(128, 64)]
    problems = [tuner.Problem() for _ in kinds]
    for kind, problem in zip(kinds, problems, strict=True):
        tuner.tuned(problem, kind)
    assert [problem.made for problem in problems] == [1, 1, 1]
    assert len(list(config_cache.cache_directory().iterdir())) == 3


def test_median_of_interleaved_rounds():
    order, times = (
        [],
        {KernelConfig(16, 16, 1, 4): [9.0, 1.0, 1.1], KernelConfig(32, 32, 1, 4): [2.0, 2.0, 2.0]},
    )
    left = {size: list(each) for size, each in times.items()}

    def timer(call):
        call()
        return left[order[-1]].pop(0)

    def run(size):
        order.append(size)
        return (torch.ones(1),)

    medians, failed = autotune.measure(list(times), run, (torch.ones(1),), timer, rounds=3)
    assert medians == {KernelConfig(16, 16, 1, 4): 1.1, KernelConfig(32, 32, 1, 4): 2.0}
    assert not failed
    a, b = times
    assert order == [a, b, a, b, b, a, a, b]  # checked first, then every other round backwards


def test_a_candidate_that_does_not_compile_is_left_out(tuner):
    problem = tuner.Problem(broken=[tuner.FAST])
    sizes = tuner.tuned(problem)
    assert tuner.FAST not in (sizes.forward, sizes.queries)
    assert sizes.keys == tuner.FAST_KEYS
    (file,) = config_cache.cache_directory().iterdir()
    assert "shared memory" in json.loads(file.read_text())["timed"]["forward"]["failed"][str(tuner.FAST)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0 + 2 * autotune.TOLERANCE])
def test_a_candidate_with_a_wrong_result_is_left_out(tuner, value):
    sizes = tuner.tuned(tuner.Problem(wrong={tuner.FAST: value}))
    assert tuner.FAST not in (sizes.forward, sizes.queries)


def test_rounding_is_not_wrong(tuner):
    assert tuner.tuned(tuner.Problem(wrong={tuner.FAST: 1.0 + autotune.TOLERANCE / 2})).forward == tuner.FAST


def test_where_no_candidate_works_the_nearest_table_serves_and_nothing_is_remembered(tuner, caplog):
    problem = tuner.Problem(none=True)
    assert tuner.tuned(problem) is None
    assert "no size tried works for forward" in caplog.text
    assert not config_cache.cache_directory().exists()
    runs = len(problem.runs)
    assert tuner.tuned(problem) is None
    assert len(problem.runs) == runs  # not at every call
    assert choose_configs(torch.bfloat16, 64, 64, tuner.CPU).configs == kernel_configs.nearest_configs(
        tuner.AMPERE, tuner.WHOLE
    )


def test_full_memory_says_nothing_of_a_size(tuner, caplog):
    problem = tuner.Problem()
    plain = problem.run

    def run(kernel, size):
        if size == tuner.FAST:
            raise torch.OutOfMemoryError("full")
        return plain(kernel, size)

    problem.run = run
    assert tuner.tuned(problem) is None
    assert "tuning failed" in caplog.text
    assert not config_cache.cache_directory().exists()


def test_switched_off(tuner, monkeypatch):
    tuner.tuned(tuner.Problem())
    tuner.forget()
    monkeypatch.setenv("LONGSPAN_AUTOTUNE", "0")
    assert tuner.tuned(tuner.no_launch) is None
    assert choose_configs(torch.bfloat16, 64, 64, tuner.CPU).configs == kernel_configs.nearest_configs(
        tuner.AMPERE, tuner.WHOLE
    )
    monkeypatch.setenv("LONGSPAN_AUTOTUNE", "1")  # the nearest was not kept
    assert choose_configs(torch.bfloat16, 64, 64, tuner.CPU).configs.forward == tuner.FAST


def test_switch_has_two_values(tuner, monkeypatch):
    monkeypatch.setenv("LONGSPAN_AUTOTUNE", "no")
    with pytest.raises(ValueError, match="LONGSPAN_AUTOTUNE must be 0 or 1, got 'no'"):
        tuner.tuned(tuner.no_launch)


def capturing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def compiling(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.parametrize("situation", [capturing, compiling])
def test_neither_in_a_capture_nor_in_a_trace(tuner, monkeypatch, situation):
    with monkeypatch.context() as patch:
        situation(patch)
        assert tuner.tuned(tuner.no_launch) is None
    sizes = tuner.tuned(tuner.Problem())  # what stood in then is not kept
    assert sizes.forward == tuner.FAST
    tuner.forget()
    situation(monkeypatch)
    assert tuner.tuned(tuner.no_launch) == sizes  # a file may be read


def test_not_under_fake_tensors(tuner):
    with FakeTensorMode():
        assert tuner.tuned(tuner.no_launch) is None
    assert tuner.tuned(tuner.Problem()).forward == tuner.FAST


def test_tuning_does_not_tune(tuner):
    problem, inner = tuner.Problem(), []
    plain = problem.run

    def run(kernel, size):
        inner.append(tuner.tuned(tuner.no_launch))
        return plain(kernel, size)

    problem.run = run
    found = []
    thread = threading.Thread(target=lambda: found.append(tuner.tuned(problem)), daemon=True)
    thread.start()
    thread.join(60)
    assert found[0].forward == tuner.FAST
    assert set(inner) == {None}


def test_threads_tune_once(tuner):
    problem, found = tuner.Problem(), []
    start = threading.Barrier(8)

    def call():
        start.wait()
        found.append(tuner.tuned(problem))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(sizes is found[0] for sizes in found)
    assert problem.made == 1
