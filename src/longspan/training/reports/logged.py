"""How a run is told to its loggers: its name, its pattern's figures and picture, and what it has cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from lightning.pytorch.loggers import Logger
from torch import nn

from longspan.analysis.distance import attention_distance
from longspan.analysis.flops import layouts_of
from longspan.analysis.picture import draw_pattern, ranges
from longspan.sparsity import SparsityConfig, from_dict
from longspan.training.loggers import MAX_NAME, WandbRun, log_configuration, log_picture, log_summary
from longspan.training.reports.facts import RunFacts
from longspan_kernels import BlockLayout

PICTURE = "pattern/picture"
# Arguments that a label leaves out: they follow the model and the objective, or a mean is to be over them.
_UNNAMED = ("num_heads", "block", "attention", "seed")


def pattern_label(facts: RunFacts, layers: int | None = None) -> str:
    """Name the pattern of a run, or the patterns of a mixture, so that runs of one label may be averaged.

    The plain name stands for the pattern with its defaults; other arguments follow it in brackets, and what
    is not the pattern of every layer has the layers' numbers: ``fixed[0–2, 5]+dense[3–4]``.

    Args:
        facts: what is known of the run.
        layers: number of the model's layers; None where it is not known.

    """
    labels = []
    for pattern in facts.patterns:
        numbers = pattern.layer_indices
        everywhere = numbers is None or (layers is not None and numbers == tuple(range(layers)))
        labels.append(
            _with_arguments(from_dict(pattern.config)) + ("" if everywhere else f"[{ranges(numbers or ())}]")
        )
    return "+".join(labels) or "none"


def _with_arguments(pattern: SparsityConfig) -> str:
    """Name a pattern with those of its arguments that are not the defaults of its class."""
    told = []
    for field in fields(pattern):
        if not field.init or field.name in _UNNAMED:
            continue
        value = getattr(pattern, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        # Defaults may be lists, which a pattern stores as tuples.
        if value != (tuple(default) if isinstance(default, list) else default):
            told.append(f"{field.name}={_in_short(value)}")
    return pattern.name + (f"({', '.join(told)})" if told else "")


def _in_short(value: Any) -> str:
    if isinstance(value, SparsityConfig):
        return _with_arguments(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_in_short, value))}]"
    return str(value)


def describe_start(
    loggers: Iterable[Logger],
    facts: RunFacts,
    settings: Mapping[str, Any],
    model: nn.Module,
    sweep: str | None,
) -> None:
    """Name the run and log its configuration, nested as it is, and what its pattern is like.

    The configuration gets, beside what was asked for, `sparsity.name` (the label of the pattern), `corpus`,
    `parameters` and `pattern`: `group` (label, objective, corpus and length, to group by: a mean over other
    runs would say nothing), `density` (share of the blocks that are kept) and `attention_distance` (mean
    distance in tokens of the kept pairs), over all layers and heads. Weights & Biases gets the figures in
    the run's summary too, where a plot finds them, and the pattern's picture.

    Args:
        loggers: the trainer's loggers, which have logged nothing yet.
        facts: what is known of the run.
        settings: the resolved configuration.
        model: the model, made sparse.
        sweep: name of the sweep that the run belongs to, or None.

    """
    loggers = list(loggers)
    length = facts.seq_len
    layouts = layouts_of(model, length)
    label = pattern_label(facts, len(layouts))
    corpus = facts.corpus.get("name", "unknown data")
    group = f"{label}, {facts.objective}, {corpus}, {length} tokens"
    pattern = pattern_figures(layouts, length, causal=facts.objective == "clm")
    sparsity = settings.get("sparsity")
    sparsity = dict(sparsity) if isinstance(sparsity, Mapping) else {"layers": sparsity}
    tags = [*dict.fromkeys(one.name for one in facts.patterns), f"length {length}"]
    name = f"{label} {length} seed {settings.get('seed')}"
    if len(name) > MAX_NAME:
        # The seed stays; the whole label is in the configuration.
        name = label[: MAX_NAME - len(name)] + name[len(label) :]
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.introduce(name, tags, sweep)
    log_configuration(
        loggers,
        {
            **settings,
            "sparsity": {**sparsity, "name": label},
            "pattern": {**pattern, "group": group},
            "corpus": facts.corpus,
            "parameters": facts.parameters,
        },
    )
    log_summary(loggers, {f"pattern/{name}": value for name, value in pattern.items()})
    kept = [layout for layout in layouts if layout is not None]
    if kept:
        log_picture(loggers, PICTURE, lambda: draw_pattern(kept, f"{label}, {length:,} tokens"))


def pattern_figures(layouts: list[BlockLayout | None], seq_len: int, causal: bool) -> dict[str, float | None]:
    """Return density and mean attention distance in tokens of a model's layers; None where it has none.

    Args:
        layouts: what each layer keeps; None for every block.
        seq_len: tokens of a sequence.
        causal: whether the layers are causal to the token.

    """
    if not layouts:
        return {"density": None, "attention_distance": None}
    densities = [1.0 if layout is None else layout.density for layout in layouts]
    return {
        "density": sum(densities) / len(densities),
        "attention_distance": attention_distance(layouts, seq_len, causal),
    }


def describe_end(loggers: Iterable[Logger], result: Mapping[str, Any]) -> None:
    """Log what a run has cost and reached to the summaries; `result` is what `collect_result` returned."""
    cost, metrics = result["cost"], result["metrics"]
    names = ("flops", "dense_flops", "flops_per_step", "dense_flops_per_step", "seconds")
    costs = {f"cost/{name}": cost[name] for name in names}
    log_summary(loggers, {**costs, "val/best_loss": metrics["best_val_loss"]})
