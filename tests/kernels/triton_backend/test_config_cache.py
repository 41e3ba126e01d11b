"""The files in which tuned sizes are remembered."""

import os
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")


from longspan_kernels import architecture
from longspan_kernels.triton_backend.kernel_configs import KernelConfig, KernelConfigs
from longspan_kernels.triton_backend.tuning import autotune, config_cache


def test_the_first_process_to_finish_decides(tuner):
    theirs = KernelConfigs(*[autotune.SAFE] * 4)
    problem = tuner.Problem()
    plain = problem.run

    def run(kernel, size):
        if not problem.timed:  # meanwhile another process has finished
            config_cache.write(autotune.cache_key_of(tuner.WHOLE, tuner.CPU), theirs, {})
        return plain(kernel, size)

    problem.run = run
    assert tuner.tuned(problem) == theirs


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
def test_a_damaged_file_counts_as_absent(tuner, damage, caplog):
    sizes = tuner.tuned(tuner.Problem())
    (file,) = config_cache.cache_directory().iterdir()
    damaged = damage(file.read_text())
    assert damaged != file.read_text()
    file.write_text(damaged)
    tuner.forget()
    problem = tuner.Problem()
    assert tuner.tuned(problem) == sizes
    assert problem.made == 1
    assert "count as absent" in caplog.text
    tuner.forget()
    assert tuner.tuned(tuner.no_launch) == sizes  # it was mended


def test_bytes_that_are_no_text_count_as_absent(tuner, caplog):
    tuner.tuned(tuner.Problem())
    (file,) = config_cache.cache_directory().iterdir()
    file.write_bytes(b"\xff\xfe\x00")
    assert config_cache.read(autotune.cache_key_of(tuner.WHOLE, tuner.CPU)) is None
    assert "count as absent" in caplog.text


def test_a_directory_that_cannot_be_written_is_said_and_let_go(tuner, monkeypatch, tmp_path, caplog):
    # Not by permissions, which root does not feel: a file stands where the directory should be.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LONGSPAN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    problem = tuner.Problem()
    assert tuner.tuned(problem).forward == tuner.FAST
    assert "cannot be written" in caplog.text
    assert tuner.tuned(problem).forward == tuner.FAST
    assert problem.made == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_said_and_let_go(tuner, monkeypatch, tmp_path, caplog):
    tmp_path.chmod(0o500)
    monkeypatch.setenv("LONGSPAN_CACHE_DIR", str(tmp_path))
    assert tuner.tuned(tuner.Problem()).forward == tuner.FAST
    assert "cannot be written" in caplog.text


def test_nothing_is_left_of_a_write_that_fails(tuner, monkeypatch):
    def refuse(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    assert tuner.tuned(tuner.Problem()).forward == tuner.FAST
    assert list(config_cache.cache_directory().iterdir()) == []


def test_readers_see_whole_files_alone(tuner, caplog):
    key = autotune.cache_key_of(tuner.WHOLE, tuner.CPU)
    both = [KernelConfigs(*[KernelConfig(64, 64, stages, 4)] * 4) for stages in (1, 2)]
    config_cache.write(key, both[0], {})
    done = threading.Event()

    def write(sizes):
        while not done.is_set():
            config_cache.write(key, sizes, {"long": "x" * 100_000})

    writers = [threading.Thread(target=write, args=(sizes,)) for sizes in both]
    for writer in writers:
        writer.start()
    seen = [config_cache.read(key) for _ in range(200)]
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
        (config_cache, "source_hash", lambda: "changed"),
        (torch.cuda, "get_device_name", lambda device: "Another GPU"),
        (architecture, "architecture_of", lambda device: (8, 6)),
    ],
    ids=["torch", "triton", "source", "gpu", "architecture"],
)
def test_another_version_or_gpu_is_tuned_anew(tuner, monkeypatch, owner, name, value):
    tuner.tuned(tuner.Problem())
    tuner.forget()
    monkeypatch.setattr(owner, name, value)
    problem = tuner.Problem()
    tuner.tuned(problem)
    assert problem.made == 1
    assert len(list(config_cache.cache_directory().iterdir())) == 2


def test_source_hash_is_of_every_source(monkeypatch, tmp_path):
    (tmp_path / "a.py").write_text("one")
    monkeypatch.setattr(config_cache, "SOURCES", tmp_path)
    hashes = set()
    for name, text in (
        ("a.py", "one"),
        ("a.py", "two"),
        ("b.py", "one"),
        ("below/c.py", "one"),
        ("notes.md", "no source"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        config_cache.source_hash.cache_clear()
        hashes.add(config_cache.source_hash())
    config_cache.source_hash.cache_clear()
    assert len(hashes) == 4


def test_cache_directory(tuner, monkeypatch, tmp_path):
    assert config_cache.cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("LONGSPAN_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    for chosen in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", chosen)
        assert config_cache.cache_directory() == tmp_path / ".cache" / "longspan"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert config_cache.cache_directory() == tmp_path / "xdg" / "longspan"


def test_no_home_directory(tuner, monkeypatch, caplog):
    def homeless():
        raise RuntimeError("no home")

    monkeypatch.delenv("LONGSPAN_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert tuner.tuned(tuner.Problem()).forward == tuner.FAST
    assert "not remembered" in caplog.text
