"""The data of a run for its loggers: name, figures and picture of the pattern, and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from longspan.analysis.flops import layouts_of
from longspan.analysis.picture import draw_pattern, ranges
from longspan.sparsity import SparsityConfig, from_dict
from longspan.training.build import Run
from longspan.training.loggers import MAX_NAME, WandbRun, log_configuration, log_picture, log_summary
from longspan.training.reports.figures import END, START, summaries

PICTURE = "pattern/picture"
# Arguments that a label leaves out: they follow from model and objective, or means are taken over them.
_UNNAMED = ("num_heads", "block", "attention", "seed")


def pattern_label(patterns: Sequence[Mapping[str, Any]], layers: int | None = None) -> str:
    """Name the pattern of a run, or the patterns of a mixture, so that runs of one label may be averaged.

    The plain name stands for the pattern with its defaults; other arguments follow it in brackets, and what
    is not the pattern of every layer has the layers' numbers: ``fixed[0–2, 5]+dense[3–4]``.

    Args:
        patterns: the patterns of the run's record.
        layers: number of the model's layers; None where it is not known.

    """
    labels = []
    for pattern in patterns:
        numbers = pattern["layer_indices"]
        everywhere = numbers is None or (layers is not None and numbers == tuple(range(layers)))
        labels.append(
            _with_arguments(from_dict(pattern["config"]))
            + ("" if everywhere else f"[{ranges(numbers or ())}]")
        )
    return "+".join(labels) or "none"


def _with_arguments(pattern: SparsityConfig) -> str:
    """Name a pattern with those of its arguments that are not the defaults of its class."""
    arguments = []
    for field in fields(pattern):
        if not field.init or field.name in _UNNAMED:
            continue
        value = getattr(pattern, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        # Defaults may be lists, which a pattern stores as tuples.
        if value != (tuple(default) if isinstance(default, list) else default):
            arguments.append(f"{field.name}={_in_short(value)}")
    return pattern.name + (f"({', '.join(arguments)})" if arguments else "")


def _in_short(value: Any) -> str:
    if isinstance(value, SparsityConfig):
        return _with_arguments(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_in_short, value))}]"
    return str(value)


def log_run_start(run: Run, record: Mapping[str, Any], sweep: str | None) -> None:
    """Name the run and log its configuration, nested as it is, and what its pattern is like.

    The configuration gets, beside the settings, `sparsity.name` (the label of the pattern), `corpus`,
    `parameters` and `pattern`: `group` (label, objective, corpus and length, to group by: a mean over other
    runs would say nothing), `density` and `attention_distance`. Weights & Biases gets these figures in the
    run's summary too, where a plot finds them, and the pattern's picture.

    Args:
        run: the run, whose loggers have logged nothing yet.
        record: what `longspan.training.reports.results.start_record` returned.
        sweep: name of the sweep that the run belongs to, or None.

    """
    length = record["seq_len"]
    layouts = layouts_of(run.module.model, length)
    label = pattern_label(record["patterns"], len(layouts))
    corpus = record["corpus"].get("name", "unknown data")
    sparsity = run.settings.get("sparsity")
    sparsity = dict(sparsity) if isinstance(sparsity, Mapping) else {"layers": sparsity}
    tags = [*dict.fromkeys(one["name"] for one in record["patterns"]), f"length {length}"]
    name = f"{label} {length} seed {run.settings.get('seed')}"
    if len(name) > MAX_NAME:
        # The seed stays; the whole label is in the configuration.
        name = label[: MAX_NAME - len(name)] + name[len(label) :]
    for logger in run.loggers:
        if isinstance(logger, WandbRun):
            logger.introduce(name, tags, sweep)
    group = f"{label}, {record['objective']}, {corpus}, {length} tokens"
    log_configuration(
        run.loggers,
        {
            **run.settings,
            "sparsity": {**sparsity, "name": label},
            "pattern": {**record["pattern"], "group": group},
            "corpus": record["corpus"],
            "parameters": record["model"]["parameters"],
        },
    )
    log_summary(run.loggers, summaries(record, START))
    kept = [layout for layout in layouts if layout is not None]
    if kept:
        log_picture(run.loggers, PICTURE, lambda: draw_pattern(kept, f"{label}, {length:,} tokens"))


def log_run_end(run: Run, result: Mapping[str, Any]) -> None:
    """Log cost and results of a run to the summaries, from the result of `collect_result`."""
    log_summary(run.loggers, summaries(result, END))
