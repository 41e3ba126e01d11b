"""The experiment on tasks at a size of seconds: every cell, again from where it stopped, and its table."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "experiments" / "long_range_tasks"


@pytest.fixture
def run(warm_python):
    def command(out, *options):
        line = [warm_python, str(FOLDER / "separate.py"), "--scale", "tiny", "--out", str(out), *options]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return command


@pytest.mark.slow
def test_every_cell_once(run, tmp_path):
    (tmp_path / "README.md").write_text("before\n<!-- tiny: begin -->\nold\n<!-- tiny: end -->\nafter\n")
    run(tmp_path, "--workers", "1")
    lines = (tmp_path / "tiny.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    found = {tuple(record["cell"].values()) for record in records}
    assert len(found) == len(records) == 3 * 3 * 2
    for record in records:
        assert 0 <= record["accuracy"] <= 1
        assert 1.5 < record["loss"] < 6  # of some dozen words, by a model of two steps
        assert record["steps"] == 2
        scored = sum(one["scored"] for one in record["by_distance"])
        assert scored == (0 if record["cell"]["task"] == "listops" else record["scored"])
        assert sum(one["scored"] for one in record["by_cell"]) == record["scored"]
        said = record["predicted"]
        buckets = [[(b["from"], b["scored"]) for b in x["by_distance"]] for x in (record, said)]
        assert buckets[0] == buckets[1]
        if record["cell"]["pattern"] == "dense":
            assert said["reach"] == 1.0
    # One seed, the same texts for all patterns.
    scored = {(r["cell"]["task"], r["cell"]["seed"]): set() for r in records}
    for record in records:
        scored[record["cell"]["task"], record["cell"]["seed"]].add(record["scored"])
    assert all(len(one) == 1 for one in scored.values())

    # Cut in the middle of a sweep, it goes on with what is missing, to the same figures.
    (tmp_path / "tiny.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    printed = run(tmp_path, "--workers", "2")
    again = (tmp_path / "tiny.jsonl").read_text().splitlines()
    assert again[:-1] == lines[:-1]
    last = json.loads(again[-1])
    assert printed.count('"cell"') == 1
    assert last["cell"] == records[-1]["cell"]
    assert last["loss"] == pytest.approx(records[-1]["loss"], rel=1e-4)

    table = run(tmp_path, "--table")
    assert table.count("| local_sliding_window |") == 3
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n<!-- tiny: begin -->\n2")
    assert readme.endswith("<!-- tiny: end -->\nafter\n")
    assert "old" not in readme
    assert (tmp_path / "tiny.png").stat().st_size > 10_000


@pytest.fixture
def modules(monkeypatch):
    """The experiment's modules, which are siblings of its script."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("plan", "prediction", "learning", "tables", "separate")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("pattern", ["local_sliding_window", "bigbird", "fixed"])
@pytest.mark.parametrize("task", ["needle", "recall", "listops"])
def test_the_prediction_counts_paths(modules, task, pattern):
    scale = modules["plan"].CPU
    lesson = scale.lessons[task]
    texts = modules["learning"].make_texts(lesson, "validation", 0, 0, 12)
    said = modules["prediction"].predict(pattern, scale, lesson, texts)
    # All paths of two layers, from the dense matrix of pairs of tokens.
    kept = scale.pattern(pattern).layout(lesson.seq_len).to_dense()[0].bool()
    pairs = kept.repeat_interleave(scale.block, 0).repeat_interleave(scale.block, 1)
    pairs = (pairs.tril() | torch.eye(lesson.seq_len, dtype=torch.bool)).double()
    paths = torch.linalg.matrix_power(pairs, scale.layers) > 0
    shares = []
    for row, place in (texts["labels"] != -100).nonzero().tolist():
        distance = int(texts["distances"][row, place])
        if distance >= 0:
            assert texts["input_ids"][row, place - distance] == texts["labels"][row, place]
            shares.append(float(paths[place, place - distance]))
        else:
            tokens = [i for i in range(place) if texts["input_ids"][row, i] > 0]
            shares.append(sum(float(paths[place, i]) for i in tokens) / len(tokens))
    assert said["reach"] == pytest.approx(sum(shares) / len(shares))
    if said["ceiling"] is not None:
        assert said["ceiling"] == pytest.approx(said["reach"] + (1 - said["reach"]) * lesson.chance)


def test_intervals(modules):
    interval = modules["tables"].interval
    assert interval([0.5]) == (0.5, None)
    # Three values a standard deviation of 1 apart: 4.303 / sqrt(3).
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(2.4843, abs=1e-3)


def test_training_stops_where_a_task_is_solved(modules, monkeypatch):
    learning, lesson = modules["learning"], modules["plan"].TINY.lessons["needle"]
    monkeypatch.setattr(learning, "WINDOW", 1)
    monkeypatch.setattr(learning, "SOLVED", 100.0)
    texts = learning.make_texts(lesson, "train", 0, 0, lesson.steps * lesson.batch)
    torch.manual_seed(0)
    model = learning.build_model("llama", "clm", lesson.task.tokenizer.vocab_size, lesson.seq_len, 8, 1, 1)
    assert learning.train(model, [texts], lesson, 1e-3, torch.device("cpu"))["steps"] == 1


def test_shorter_texts_come_first(modules, monkeypatch, tmp_path):
    """Each stage has texts of its length, and none but the last ends early."""
    learning, plan = modules["learning"], modules["plan"]
    lesson = replace(plan.TINY.lessons["recall"], shorter=((32, 3), (48, 1)))
    assert [(stage.seq_len, stage.steps) for stage in lesson.stages] == [(32, 3), (48, 1), (64, 2)]
    path = tmp_path / "texts.pt"
    learning.prepare(lesson, 0, 4, path, importlib.import_module("separate").Inline())
    texts = torch.load(path)
    assert [tuple(one["input_ids"].shape) for one in texts["train"]] == [(12, 32), (4, 48), (8, 64)]
    assert texts["validation"][0]["input_ids"].shape == (4, 64)
    monkeypatch.setattr(learning, "WINDOW", 1)
    monkeypatch.setattr(learning, "SOLVED", 100.0)
    torch.manual_seed(0)
    model = learning.build_model("llama", "clm", lesson.task.tokenizer.vocab_size, lesson.seq_len, 8, 1, 1)
    found = learning.train(model, texts["train"], lesson, 1e-3, torch.device("cpu"))
    assert found["steps"] == 3 + 1 + 1


def test_the_search_for_settings(tmp_path, warm_python):
    command = [warm_python, str(FOLDER / "tune.py"), "--scale", "tiny", "--workers", "1", "--lr", "1e-3"]
    command += ["2e-3", "--tasks", "needle", "--out", str(tmp_path)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "tiny_tune.jsonl").read_text().splitlines()]
    assert [line["cell"]["lr"] for line in lines] == [1e-3, 2e-3]
    assert lines[0]["loss"] != lines[1]["loss"]
    assert all(len(line["train_losses"]) == 1 for line in lines)
