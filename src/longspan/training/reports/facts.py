"""Facts about the parts of a run, from which its figures are made: patterns, model, device, files."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from longspan.analysis.distance import attention_distance
from longspan.analysis.flops import layouts_of
from longspan.config.patterns import distinct_patterns
from longspan.positions.extend import CONFIG_KEY
from longspan.records.run_folder import RESULT_FILE
from longspan.training.build import Run
from longspan.training.callbacks.evaluation import Evaluation
from longspan.training.callbacks.window_schedule import WindowSchedule
from longspan.training.loggers import CsvLogger, WandbRun
from longspan.training.reports.lines import layers_of
from longspan.version import __version__

PACKAGES = ("torch", "lightning", "transformers")


@dataclass(frozen=True)
class PatternFacts:
    """A pattern at the length of a run.

    Attributes:
        name: its short name.
        density: share of the blocks that are kept, over all heads, in [0, 1].
        kept_blocks: kept blocks of all heads.
        all_blocks: blocks of all heads.
        block: edge of a block in tokens.
        heads: number of heads.
        layers: how many layers have this pattern; None for all of the model's.
        drawing: a picture of the first head in characters; of each pattern of a mixture of heads.
        config: the pattern's arguments.
        layer_indices: which layers those are, counted from 0; None for all of them.

    """

    name: str
    density: float
    kept_blocks: int
    all_blocks: int
    block: int
    heads: int
    layers: int | None
    drawing: str
    config: dict[str, Any]
    layer_indices: tuple[int, ...] | None = None


def pattern_facts(sparsity: Any, seq_len: int, width: int = 32) -> tuple[PatternFacts, ...]:
    """Describe the patterns of a model.

    Args:
        sparsity: a pattern, or one (or None) for each layer, or None.
        seq_len: length in tokens at which their layouts are taken.
        width: the most characters of a line of the drawings.

    """
    per_layer = list(sparsity) if isinstance(sparsity, Sequence) else [sparsity]
    facts = []
    for pattern in distinct_patterns(sparsity):
        layout = pattern.layout(seq_len)
        facts.append(
            PatternFacts(
                name=pattern.name,
                density=float(layout.density),
                kept_blocks=round(layout.density * layout.heads * layout.q_blocks * layout.k_blocks),
                all_blocks=layout.heads * layout.q_blocks * layout.k_blocks,
                block=layout.block,
                heads=layout.heads,
                layers=per_layer.count(pattern) if isinstance(sparsity, Sequence) else None,
                drawing=draw_heads(pattern, layout, width),
                config=dict(pattern.to_dict()),
                layer_indices=tuple(n for n, one in enumerate(per_layer) if one == pattern)
                if isinstance(sparsity, Sequence)
                else None,
            )
        )
    return tuple(facts)


def draw_heads(pattern: Any, layout: Any, width: int) -> str:
    """Draw the first head, or the first head of each pattern among the heads, one below the other."""
    children = getattr(pattern, "children", ())
    if len(children) < 2:
        return layout.draw(width=width)
    pictures, head = [], 0
    for child in children:
        last = head + child.num_heads - 1
        heads = f"head {head}" if last == head else f"heads {head}–{last}"
        pictures.append(f"{heads}: {child.name}\n{layout.draw(head, width)}")
        head = last + 1
    return "\n".join(pictures)


def describe_patterns(sparsity: Any, seq_len: int) -> list[dict[str, Any]]:
    """Return the result of `pattern_facts` as plain types, without the drawings."""
    described = [asdict(pattern) for pattern in pattern_facts(sparsity, seq_len)]
    for pattern in described:
        del pattern["drawing"]
    return described


def pictures(run: Run) -> list[tuple[str, str]]:
    """Return a title and a drawing of each pattern of a run, and of those with which a schedule ends."""
    first = pattern_facts(run.patterns, run.data.seq_len)
    found = [(_title(pattern), pattern.drawing) for pattern in first]
    for schedule in run.schedules:
        if isinstance(schedule, WindowSchedule):
            patterns = schedule.at(schedule.stages[-1])
            last = pattern_facts(
                patterns if isinstance(run.patterns, Sequence) else patterns[0], run.data.seq_len
            )
            new = [pattern for pattern in last if all(pattern.config != one.config for one in first)]
            found += [(f"{_title(pattern)}: at last", pattern.drawing) for pattern in new]
    return found


def _title(pattern: PatternFacts) -> str:
    return pattern.name if pattern.layers is None else f"{pattern.name}, {layers_of(asdict(pattern))}"


def mean_density(model: nn.Module, seq_len: int) -> float | None:
    """Return the share of kept blocks, the mean over a model's sparse layers; None without such a layer."""
    densities = [1.0 if layout is None else layout.density for layout in layouts_of(model, seq_len)]
    return sum(densities) / len(densities) if densities else None


def mean_distance(model: nn.Module, seq_len: int, causal: bool) -> float | None:
    """Return the mean distance in tokens of the pairs that a model's layers keep; None: it has no such layer.

    Args:
        model: the model, made sparse.
        seq_len: tokens of a sequence.
        causal: whether the layers are causal to the token.

    """
    layouts = layouts_of(model, seq_len)
    return attention_distance(layouts, seq_len, causal) if layouts else None


def parameters(model: nn.Module, trainable: bool = False) -> int:
    """Return the number of parameters, or of those that require a gradient; shared ones count once."""
    return sum(one.numel() for one in model.parameters() if one.requires_grad or not trainable)


def extension(model: Any) -> dict[str, Any] | None:
    """Return how a model's positions were extended; None: they were not."""
    return getattr(getattr(model, "config", None), CONFIG_KEY, None)


def tokens_per_step(run: Run) -> int:
    """Return the input tokens of an optimizer step, of all processes."""
    batches = run.trainer.accumulate_grad_batches * run.trainer.world_size
    return batches * run.data.batch_size * run.data.seq_len


def device_name(trainer: pl.Trainer) -> str:
    """Return what the trainer runs on, in words: kind, model and number."""
    kind = trainer.strategy.root_device.type
    if kind == "cuda":
        name = torch.cuda.get_device_name(trainer.strategy.root_device)
    elif kind == "cpu":
        name = f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
    else:
        name = kind
    return name if trainer.world_size == 1 else f"{trainer.world_size} × {name}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    # Longspan's version is read from its source, since it may run without installation.
    found = {"python": platform.python_version(), "longspan": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def files(run: Run) -> dict[str, str]:
    """Return the paths of the files that a run has written, by what they are."""
    found = {"result": str(run.output_dir / RESULT_FILE)}
    for callback in run.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Evaluation) and callback.written:
            found["evaluation"] = str(callback.path)
    for logger in run.trainer.loggers:
        if isinstance(logger, CsvLogger):
            found["metrics"] = logger.metrics_file
        elif isinstance(logger, WandbRun):
            found["wandb"] = str(logger.folder)
    return found
