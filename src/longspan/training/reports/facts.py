"""What is known of a run before it starts: what the start report prints and the result records."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from longspan.config.patterns import distinct_patterns
from longspan.positions.extend import CONFIG_KEY
from longspan.training.callbacks.window_schedule import WindowSchedule
from longspan_kernels.backends import resolve_backend


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


@dataclass(frozen=True)
class ScheduleFacts:
    """What changes while a run trains.

    Attributes:
        stages: the stages in words, each with the optimizer step from which on it holds.
        last: the patterns of the last stage that are not those of the first.

    """

    stages: str
    last: tuple[PatternFacts, ...] = ()


@dataclass(frozen=True)
class RunFacts:
    """A run before it starts.

    Attributes:
        name: what to call it in a table.
        output_dir: where its files lie.
        model: class or architecture of the model.
        parameters: number of parameters; those shared count once.
        trainable_parameters: those that require a gradient.
        objective: name of the objective.
        patterns: the distinct patterns of its layers; empty for a model that is not sparse.
        seq_len: tokens of a sequence.
        tokens_per_step: input tokens of an optimizer step, of all processes.
        total_steps: optimizer steps; None when only time bounds the run.
        corpus: the corpus's account: files, bytes, sha256.
        byte_entropy: entropy of the byte frequencies of all the held-out text, in nats a byte; None where it
            is not known.
        device: what it runs on.
        precision: of the arithmetic.
        backend: the name of what computes the attention.
        overrides: what was asked for besides the defaults.
        extension: how the model's positions were extended: `method`, `from`, `to` and the method's options;
            None where they were not.
        budget: how much it may use, in words; None for no budget.
        schedules: what changes while it trains; `patterns` are those of the first stage.

    """

    name: str
    output_dir: str
    model: str
    parameters: int
    trainable_parameters: int
    objective: str
    patterns: tuple[PatternFacts, ...]
    seq_len: int
    tokens_per_step: int
    total_steps: int | None
    corpus: dict[str, Any]
    byte_entropy: float | None
    device: str
    precision: str
    backend: str
    overrides: tuple[str, ...]
    extension: dict[str, Any] | None = None
    budget: str | None = None
    schedules: tuple[ScheduleFacts, ...] = ()


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


def schedule_facts(schedule: Any, sparsity: Any, seq_len: int) -> ScheduleFacts:
    """Describe a schedule; one of patterns has begun.

    Args:
        schedule: one of `longspan.training.callbacks`.
        sparsity: the pattern of the model in the first stage, or one a layer.
        seq_len: tokens of a sequence of the data.

    """
    last: tuple[PatternFacts, ...] = ()
    if isinstance(schedule, WindowSchedule):
        patterns = schedule.at(schedule.stages[-1])
        first = distinct_patterns(sparsity)
        found = pattern_facts(patterns if isinstance(sparsity, Sequence) else patterns[0], seq_len)
        last = tuple(facts for facts in found if all(facts.config != one.to_dict() for one in first))
    return ScheduleFacts(schedule.in_words(seq_len), last)


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


def run_facts(
    *,
    name: str,
    output_dir: str,
    model: nn.Module,
    objective: str,
    sparsity: Any,
    seq_len: int,
    batch_size: int,
    corpus: Mapping[str, Any],
    byte_entropy: float | None,
    trainer: pl.Trainer,
    steps: int | None = None,
    model_name: str | None = None,
    backend: str = "auto",
    overrides: Iterable[str] = (),
    budget: str | None = None,
    schedules: Iterable[ScheduleFacts] = (),
) -> RunFacts:
    """Gather what is known of a run before it starts.

    Args:
        name: what to call the run in a table.
        output_dir: where its files lie.
        model: the model that is trained.
        objective: the objective's name.
        sparsity: the pattern, or one (or None) for each layer, or None.
        seq_len: tokens of a sequence.
        batch_size: sequences of a batch of one process.
        corpus: the corpus's account, plain types.
        byte_entropy: in nats a byte, or None.
        trainer: the trainer that will run it.
        steps: optimizer steps; None takes the trainer's `max_steps`.
        model_name: None takes the model's class.
        backend: what was asked to compute the attention; "auto" is resolved for the trainer's device.
        overrides: what was asked for besides the defaults.
        budget: how much the run may use, in words.
        schedules: what changes while it trains.

    Raises:
        ValueError: no backend has that name, or it does not serve the device.

    """
    parameters = list(model.parameters())
    if steps is None:
        steps = trainer.max_steps if trainer.max_steps != -1 else None
    return RunFacts(
        name=name,
        output_dir=str(output_dir),
        model=model_name or type(model).__name__,
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        objective=objective,
        patterns=pattern_facts(sparsity, seq_len),
        seq_len=seq_len,
        tokens_per_step=batch_size * seq_len * trainer.accumulate_grad_batches * trainer.world_size,
        total_steps=steps,
        corpus=dict(corpus),
        byte_entropy=byte_entropy,
        device=device_name(trainer),
        precision=str(trainer.precision),
        backend=resolve_backend(backend, trainer.strategy.root_device),
        overrides=tuple(overrides),
        extension=getattr(getattr(model, "config", None), CONFIG_KEY, None),
        budget=budget,
        schedules=tuple(schedules),
    )


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
