"""The figures of a run, each in one place: value, key in result.json, printed line, logged name.

To add a figure, add an entry to `START` (known before training) or `END` (known after it). result.json, the
two printed reports and the summaries of the loggers are made from these tables.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from longspan.training.build import Run
from longspan.training.callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from longspan.training.callbacks.throughput import Throughput, peak_memory
from longspan.training.performance.step_clock import PHASES
from longspan.training.reports import facts, lines
from longspan.training.reports.lines import Line, count, number, text


@dataclass(frozen=True)
class Figure:
    """A figure of a run.

    Attributes:
        key: its place in the record of a run and in result.json; a dot stands for a mapping inside another.
        value: makes it of the run, in plain types; None: it is not known.
        start: its lines in the report at the start, made of the value and the record of all figures.
        end: its lines in the report at the end, likewise.
        summary: its name in the summaries of the loggers.
        in_result: whether result.json holds it.

    """

    key: str
    value: Callable[[Run], Any]
    start: Line | None = None
    end: Line | None = None
    summary: str | None = None
    in_result: bool = True


START = (
    Figure("name", lambda run: run.name),
    Figure("overrides", lambda run: list(run.overrides)),
    Figure("model.name", lambda run: type(run.module.model).__name__),
    # Parameters that are shared count once.
    Figure("model.parameters", lambda run: facts.parameters(run.module.model), start=lines.model),
    Figure("model.trainable_parameters", lambda run: facts.parameters(run.module.model, trainable=True)),
    # How they were extended: `method`, `from`, `to` and the method's options; None: they were not.
    Figure("positions", lambda run: facts.extension(run.module.model), start=lines.positions),
    Figure("objective", lambda run: run.module.objective.name, start=text("objective")),
    # Of the first stage, where they change while the run trains.
    Figure(
        "patterns", lambda run: facts.describe_patterns(run.patterns, run.data.seq_len), start=lines.patterns
    ),
    Figure(
        "pattern.density",
        lambda run: facts.mean_density(run.module.model, run.data.seq_len),
        summary="pattern/density",
        in_result=False,
    ),
    # Mean distance in tokens of the kept pairs, over all layers and heads.
    Figure(
        "pattern.attention_distance",
        lambda run: facts.mean_distance(run.module.model, run.data.seq_len, run.module.objective.causal),
        summary="pattern/attention_distance",
        in_result=False,
    ),
    # The stages in words, each with the optimizer step from which on it holds.
    Figure(
        "schedules",
        lambda run: [schedule.in_words(run.data.seq_len) for schedule in run.schedules],
        start=lines.schedules,
    ),
    Figure("corpus", lambda run: run.data.corpus_info.to_dict(), start=lines.corpus),
    # Of all the held-out text, in nats a byte.
    Figure("metrics.byte_entropy", lambda run: run.data.byte_entropy, start=lines.byte_entropy),
    Figure("seq_len", lambda run: run.data.seq_len, start=count("sequence", "tokens")),
    # Of all processes.
    Figure("tokens_per_step", lambda run: facts.tokens_per_step(run), start=count("a step", "tokens")),
    Figure(
        "budget_in_words",
        lambda run: None if run.budget is None else str(run.budget),
        start=text("budget"),
        in_result=False,
    ),
    # None: time alone bounds the run.
    Figure(
        "total_steps",
        lambda run: None if run.trainer.max_steps == -1 else run.trainer.max_steps,
        start=lines.total_steps,
        in_result=False,
    ),
    Figure("device", lambda run: facts.device_name(run.trainer), start=lines.device),
    Figure("precision", lambda run: str(run.trainer.precision)),
    Figure("backend", lambda run: run.backend),
    Figure("pictures", lambda run: facts.pictures(run), in_result=False),
    Figure("output_dir", lambda run: str(run.output_dir), start=text("files")),
    Figure("versions", lambda run: facts.versions()),
    Figure("config", lambda run: run.settings),
)

END = (
    Figure("date", lambda run: datetime.now(UTC).isoformat(timespec="seconds")),
    Figure("status", lambda run: "finished" if run.trainer.state.finished else "interrupted"),
    # Of the last step. Losses are in nats a token.
    Figure(
        "metrics.train_loss",
        lambda run: _logged(run, "train/loss", run.module.loss_before),
        end=number("train loss", "nats a token"),
    ),
    Figure(
        "metrics.val_loss",
        lambda run: _logged(run, "val/loss"),
        end=number("validation loss", "nats a token"),
    ),
    Figure(
        "metrics.best_val_loss",
        lambda run: _best_loss(run),
        end=number("best validation loss", "nats a token"),
        summary="val/best_loss",
    ),
    Figure(
        "metrics.perplexity",
        lambda run: _logged(run, "val/perplexity"),
        end=number("perplexity"),
    ),
    # The share of scored tokens to which the model gives the largest probability.
    Figure("metrics.accuracy", lambda run: _logged(run, "val/accuracy"), end=number("accuracy")),
    Figure(
        "metrics.bits_per_byte",
        lambda run: _logged(run, "val/bits_per_byte"),
        end=number("bits per byte"),
    ),
    # Of the validated sequences.
    Figure("metrics.nats_per_byte", lambda run: _nats_per_byte(run)),
    Figure("metrics.below_byte_entropy", lambda run: _below_byte_entropy(run), end=lines.below_byte_entropy),
    Figure("steps", lambda run: run.trainer.global_step),
    # Of all processes, from the run's first start on.
    Figure("tokens", lambda run: run.module.tokens_seen, end=lines.steps),
    Figure(
        "throughput.tokens_per_second",
        lambda run: _of_throughput(run, "tokens_per_second"),
        end=count("speed", "tokens a second"),
    ),
    Figure("throughput.step_seconds", lambda run: _of_throughput(run, "step_seconds")),
    Figure("throughput.peak_memory_bytes", lambda run: peak_memory(run.module.device), end=lines.peak_memory),
    # From the run's first start on. FLOPs of all processes; `dense_`: had every block been kept. Of a step:
    # the last one. `mfu`: the utilisation; None on a device of which the peak rate is not known. `split`:
    # seconds of an optimizer step's `data`, `forward`, `backward` and `optimizer`. `seconds`: of training
    # without validation.
    Figure("cost.flops", lambda run: _cost(run, "flops"), summary="cost/flops"),
    Figure("cost.dense_flops", lambda run: _cost(run, "dense_flops"), summary="cost/dense_flops"),
    Figure("cost.flops_per_step", lambda run: _cost(run, "flops_per_step"), summary="cost/flops_per_step"),
    Figure(
        "cost.dense_flops_per_step",
        lambda run: _cost(run, "dense_flops_per_step"),
        summary="cost/dense_flops_per_step",
    ),
    Figure("cost.mfu", lambda run: _cost(run, "mfu")),
    Figure("cost.dense_mfu", lambda run: _cost(run, "dense_mfu")),
    Figure("cost.seconds", lambda run: _cost(run, "seconds"), summary="cost/seconds"),
    Figure("cost.split", lambda run: _cost(run, "split") or dict.fromkeys(PHASES), end=lines.cost),
    # Of wall time, of this process.
    Figure("seconds", lambda run: time.perf_counter() - run.started, end=lines.wall_time),
    # `unit` ("tokens", "flops" or "seconds"), `limit` and what was `used` of it; None: there is no budget.
    Figure(
        "budget",
        lambda run: None if run.budget is None else run.budget.to_dict(run.trainer, run.module),
    ),
    Figure("checkpoints", lambda run: _checkpoints(run), end=lines.checkpoints),
    Figure("files", lambda run: facts.files(run), end=lines.files),
)


def record_of(run: Run, figures: Iterable[Figure]) -> dict[str, Any]:
    """Return the values of figures of a run, nested by their keys."""
    record: dict[str, Any] = {}
    for figure in figures:
        *groups, name = figure.key.split(".")
        place = record
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = figure.value(run)
    return record


def value_of(record: Mapping[str, Any], key: str) -> Any:
    """Return the value of a record at a dotted key."""
    for name in key.split("."):
        record = record[name]
    return record


def lines_of(record: Mapping[str, Any], figures: Iterable[Figure], report: str) -> list[tuple[str, str]]:
    """Return the lines of figures in a report, "start" or "end": labels and texts."""
    made: list[tuple[str, str]] = []
    for figure in figures:
        line: Line | None = getattr(figure, report)
        if line is not None:
            made += line(value_of(record, figure.key), record)
    return made


def summaries(record: Mapping[str, Any], figures: Iterable[Figure]) -> dict[str, Any]:
    """Return the figures of a record that go to the summaries of the loggers, by their names there."""
    return {one.summary: value_of(record, one.key) for one in figures if one.summary is not None}


def _callback(run: Run, kind: type) -> Any:
    callbacks: list[Any] = run.trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def _logged(run: Run, name: str, default: float | None = None) -> float | None:
    value = run.trainer.callback_metrics.get(name)
    return default if value is None else float(value)


def _best_loss(run: Run) -> float | None:
    best = _callback(run, BestCheckpoint)
    return None if best is None or best.best_model_score is None else float(best.best_model_score)


def _nats_per_byte(run: Run) -> float | None:
    bits = _logged(run, "val/bits_per_byte")
    return None if bits is None else bits * math.log(2)


def _below_byte_entropy(run: Run) -> float | None:
    nats, entropy = _nats_per_byte(run), run.data.byte_entropy
    return None if nats is None or entropy is None else entropy - nats


def _of_throughput(run: Run, name: str) -> float | None:
    throughput = _callback(run, Throughput)
    return None if throughput is None else getattr(throughput, name)


def _cost(run: Run, name: str) -> Any:
    throughput = _callback(run, Throughput)
    return None if throughput is None else throughput.costs()[name]


def _checkpoints(run: Run) -> dict[str, str | None]:
    best, last = _callback(run, BestCheckpoint), _callback(run, LastCheckpoint)
    return {
        "best": None if best is None else best.best_model_path or None,
        "last": last.path if last is not None and last.written else None,
    }
