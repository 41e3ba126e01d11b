"""How a run is told to its loggers: its name, its pattern's figures and picture, and what it has cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from torch import nn

from longspan.analysis.distance import attention_distance
from longspan.analysis.flops import layouts_of
from longspan.analysis.picture import draw_pattern
from longspan.training.facts import RunFacts
from longspan.training.loggers import WandbRun, log_configuration, log_picture, log_summary
from longspan_kernels import BlockLayout

PICTURE = "pattern/picture"


def pattern_label(facts: RunFacts) -> str:
    """Name the pattern of a run, or the patterns of a mixture."""
    return "+".join(pattern.name for pattern in facts.patterns) or "none"


def describe_start(
    loggers: Iterable[Logger],
    facts: RunFacts,
    settings: Mapping[str, Any],
    model: nn.Module,
    sweep: str | None,
) -> None:
    """Name the run and log its configuration, nested as it is, and what its pattern is like.

    The configuration gets, beside what was asked for, `sparsity.name` to group by, `corpus`, `parameters` and
    `pattern`: `density` (share of the blocks that are kept) and `attention_distance` (mean distance in tokens
    of the kept pairs), over all layers and heads. Weights & Biases gets them in the run's summary too,
    where a plot finds them, and the pattern's picture.

    Args:
        loggers: the trainer's loggers, which have logged nothing yet.
        facts: what is known of the run.
        settings: the resolved configuration.
        model: the model, made sparse.
        sweep: name of the sweep that the run belongs to, or None.

    """
    loggers = list(loggers)
    label, length = pattern_label(facts), facts.seq_len
    layouts = layouts_of(model, length)
    pattern = pattern_figures(layouts, length, causal=facts.objective == "clm")
    sparsity = settings.get("sparsity")
    sparsity = dict(sparsity) if isinstance(sparsity, Mapping) else {"layers": sparsity}
    tags = [*dict.fromkeys(one.name for one in facts.patterns), f"length {length}"]
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.introduce(f"{label} {length} seed {settings.get('seed')}", tags, sweep)
    log_configuration(
        loggers,
        {
            **settings,
            "sparsity": {**sparsity, "name": label},
            "pattern": pattern,
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
