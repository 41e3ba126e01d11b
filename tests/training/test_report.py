import io
import json
import re
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from longspan.console import print_report
from longspan.records.run_folder import read_result
from longspan.training.build import Run
from longspan.training.callbacks.throughput import Throughput
from longspan.training.loggers import CsvLogger
from longspan.training.reports.facts import pattern_facts
from longspan.training.reports.figures import END, START
from longspan.training.reports.report import comparison_table, end_report, start_report
from longspan.training.reports.results import collect_result, start_record, write_result
from longspan_kernels.layout import BlockLayout

CORPUS = {
    "name": "tiny",
    "train": {"documents": 1234, "bytes": 56789, "sha256": "0123456789abcdef" * 4, "long_bytes": 0},
    "validation": {"documents": None, "bytes": None, "sha256": None, "long_bytes": None},
    "details": {},
}

# Of result.json.
KEYS = [
    "backend",
    "budget",
    "checkpoints",
    "config",
    "corpus",
    "cost",
    "date",
    "device",
    "files",
    "metrics",
    "model",
    "name",
    "objective",
    "output_dir",
    "overrides",
    "patterns",
    "positions",
    "precision",
    "schedules",
    "seconds",
    "seq_len",
    "status",
    "steps",
    "throughput",
    "tokens",
    "tokens_per_step",
    "versions",
]


@dataclass(frozen=True)
class Banded:
    """A pattern of the diagonal blocks."""

    name: str = "banded"
    attention: str = "bidirectional"
    block: int = 4

    def layout(self, seq_len):
        blocks = seq_len // self.block
        return BlockLayout.from_dense(
            torch.eye(blocks, dtype=torch.bool).expand(2, blocks, blocks), self.block
        )

    def to_dict(self):
        return {"name": self.name, "block": self.block}


def text_of(report):
    stream = io.StringIO()
    print_report(report, stream)
    return stream.getvalue()


def line_of(text, label):
    return next(line for line in text.splitlines() if line.strip().startswith(label))


def run_of(tiny, patterns=Banded()):
    """The tiny run as the parts that `build` makes, started 61 seconds ago."""
    corpus_info = SimpleNamespace(to_dict=lambda: CORPUS)
    return Run(
        name="first",
        settings={"seed": 0},
        overrides=("sparsity=banded",),
        output_dir=tiny.directory,
        data=SimpleNamespace(corpus_info=corpus_info, byte_entropy=3.25, seq_len=32, batch_size=2),
        module=tiny.module,
        patterns=patterns,
        schedules=[],
        budget=None,
        loggers=[],
        trainer=tiny.trainer,
        backend="torch",
        started=time.perf_counter() - 61,
    )


def result_of(tiny):
    run = run_of(tiny)
    return collect_result(start_record(run), run)


@pytest.fixture
def finished(tmp_path, make_run):
    run = make_run(
        tmp_path,
        callbacks=[Throughput(skip=1)],
        loggers=[CsvLogger(str(tmp_path))],
        accumulate_grad_batches=2,
    )
    run.fit()
    return run, result_of(run)


def test_start_report(tmp_path, make_run):
    run = make_run(tmp_path, accumulate_grad_batches=2)
    text = text_of(start_report(start_record(run_of(run, [Banded(), None, Banded()]))))
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    assert f"TinyModel, {parameters:,} parameters" in line_of(text, "model")
    assert "density 0.125, 16 of 128 blocks of 4, 2 heads, 2 layers" in line_of(text, "pattern")
    assert "1,234 files, 56,789 bytes, sha256 0123456789ab" in line_of(text, "train")
    assert "3.2500 nats" in line_of(text, "held-out byte entropy")
    assert "128 tokens" in line_of(text, "a step")
    assert "12, together 1,536 tokens" in line_of(text, "steps")
    assert "cpu" in line_of(text, "device")
    assert line_of(text, "device").endswith("attention backend torch")
    assert str(tmp_path) in line_of(text, "files")
    for row in Banded().layout(32).draw(width=32).splitlines():
        assert row in text
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_shared_and_frozen_parameters(tmp_path, make_run):
    run = make_run(tmp_path)
    run.model.head.weight = run.model.embedding.weight
    run.model.hidden.requires_grad_(False)
    record = start_record(run_of(run))
    assert record["model"]["parameters"] == 11 * 8 + 11 + 16 + 72
    assert "72 of them frozen" in text_of(start_report(record))


def test_a_model_without_pattern(tmp_path, make_run):
    assert pattern_facts(None, 32) == ()
    assert "the model's own attention" in text_of(
        start_report(start_record(run_of(make_run(tmp_path), None)))
    )


def test_result(tmp_path, finished):
    run, result = finished
    path = write_result(result, tmp_path)
    assert path == tmp_path / "result.json"
    assert read_result(tmp_path) == read_result(path) == json.loads(json.dumps(result))
    metrics = result["metrics"]
    assert metrics["val_loss"] == pytest.approx(run.val_loss)
    # One byte a token: the validation loss is the loss a byte.
    assert metrics["nats_per_byte"] == pytest.approx(run.val_loss, rel=1e-5)
    assert metrics["below_byte_entropy"] == pytest.approx(3.25 - run.val_loss, rel=1e-5)
    assert result["status"] == "finished"
    assert (result["steps"], result["tokens"]) == (12, 12 * 32)
    assert result["patterns"][0]["name"] == "banded"
    assert result["patterns"][0]["density"] == 0.125
    assert result["corpus"] == CORPUS
    assert result["config"] == {"seed": 0}
    assert result["checkpoints"]["last"] == run.last
    assert result["files"]["metrics"] == str(tmp_path / "metrics.csv")
    assert result["throughput"]["tokens_per_second"] > 0
    assert result["throughput"]["peak_memory_bytes"] > 2**20
    # Two layers of 8 x 8 and 8 x 11, 32 tokens a step.
    assert result["cost"]["flops_per_step"] == 6 * (64 + 88) * 32
    assert result["cost"]["flops"] == result["cost"]["dense_flops"] == 12 * 6 * (64 + 88) * 32
    assert result["cost"]["mfu"] is None
    assert 0 < result["cost"]["seconds"] < 61
    assert sum(result["cost"]["split"].values()) == pytest.approx(
        result["throughput"]["step_seconds"], rel=0.5
    )
    assert result["versions"]["torch"] == torch.__version__


def test_what_json_cannot_hold_is_null(tmp_path, finished):
    _, result = finished
    result["metrics"]["val_loss"] = float("nan")
    assert read_result(write_result(result, tmp_path))["metrics"]["val_loss"] is None


def test_end_report(tmp_path, finished):
    run, result = finished
    text = text_of(end_report(result))
    metrics = result["metrics"]
    assert "first: finished after 12 steps" in text
    assert f"{metrics['val_loss']:.4f} nats a token" in line_of(text, "validation loss")
    assert "3.2500 nats a byte" in line_of(text, "held-out byte entropy")
    assert f"{metrics['below_byte_entropy']:.4f} nats a byte" in line_of(text, "validation below it by")
    assert f"{metrics['bits_per_byte']:.4f}" in line_of(text, "bits per byte")
    assert "1:01" in line_of(text, "wall time")
    assert run.last in line_of(text, "last checkpoint")
    assert str(tmp_path / "checkpoints" / "best.ckpt") in line_of(text, "best checkpoint")
    assert str(tmp_path / "metrics.csv") in line_of(text, "metrics")
    assert re.search(r"[\d.]+ ms: data [\d.]+ ms, forward [\d.]+ ms, ", line_of(text, "a step"))
    assert "3.502e+05; dense attention 3.502e+05, 1.00 times" in line_of(text, "FLOPs")
    assert "MFU" not in text


def test_end_report_of_a_known_device(finished):
    _, result = finished
    cost = {**result["cost"], "flops": 4e15, "dense_flops": 1e16, "mfu": 0.123, "dense_mfu": 0.3075}
    text = text_of(end_report({**result, "cost": cost}))
    assert "4e+15; dense attention 1e+16, 2.50 times" in line_of(text, "FLOPs")
    assert "12.3% of the dense peak; counted as dense attention 30.8%" in line_of(text, "MFU")


def test_a_run_whose_cost_is_not_measured(tmp_path, make_run):
    run = make_run(tmp_path, max_steps=1).fit()
    result = result_of(run)
    assert result["cost"]["flops"] is None
    assert result["cost"]["seconds"] is None
    assert "FLOPs" not in text_of(end_report(result))


def test_an_interrupted_run_is_reported(tmp_path, make_run):
    run = make_run(tmp_path)
    run.model.fail_at = 3
    with pytest.raises(RuntimeError, match="on purpose"):
        run.fit()
    result = result_of(run)
    assert result["status"] == "interrupted"
    assert result["metrics"]["val_loss"] is None
    assert "first: interrupted after 2 steps" in text_of(end_report(result))


def test_comparison(finished):
    _, result = finished

    def variant(name, loss):
        metrics = {**result["metrics"], "val_loss": loss}
        return {**result, "overrides": [f"sparsity={name}"], "metrics": metrics}

    text = text_of(comparison_table([variant("a", 2.5), variant("b", None), variant("c", 1.25)]))
    found = [line for line in text.splitlines() if "sparsity=" in line]
    assert [line.split("sparsity=")[1][0] for line in found] == ["c", "a", "b"]
    assert ["*" in line for line in found] == [True, False, False]
    assert "1.2500" in found[0]
    assert "0.125" in found[0]


def test_a_comparison_names_runs_by_what_they_do_not_share(finished):
    _, result = finished
    runs = [{**result, "overrides": ["experiment=smoke", f"seed={seed}"]} for seed in (1, 2)]
    text = text_of(comparison_table(runs))
    assert "experiment=smoke" not in text
    assert "seed=1" in text
    assert "seed=2" in text
    assert "experiment=smoke seed=1" in text_of(comparison_table(runs[:1]))


def test_every_figure_has_one_place(finished):
    """The keys of result.json, each from one entry of the tables."""
    _, result = finished
    keys = [figure.key for figure in (*START, *END) if figure.in_result]
    assert len(set(keys)) == len(keys)
    tops = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    assert sorted(tops) == sorted(result) == KEYS
