"""What is printed: what a run will do, what it has reached, and the comparison of several runs."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from longspan.analysis.picture import ranges
from longspan.console import UNKNOWN, format_duration
from longspan.training.reports.facts import PatternFacts, RunFacts


def warn_unidirectional_pattern(objective: str, sparsity: Any) -> None:
    """Warn when a masked objective is to be trained through a pattern that hides the future of a token.

    Args:
        objective: the objective's name; the warning is for "mlm".
        sparsity: a pattern, or one (or None) for each layer, or None.

    """
    patterns = sparsity if isinstance(sparsity, Sequence) else [sparsity]
    names = {pattern.name for pattern in patterns if getattr(pattern, "attention", "") == "unidirectional"}
    if objective == "mlm" and names:
        warnings.warn(
            f"the pattern {', '.join(sorted(names))} is unidirectional and the objective is masked: a hidden "
            "token is predicted from what stands before it alone; leave sparsity.attention to the objective "
            "unless this is what you want",
            stacklevel=2,
        )


def start_report(facts: RunFacts) -> RenderableType:
    """Return what a run will do, ready to print."""
    table = _two_columns()
    frozen = facts.parameters - facts.trainable_parameters
    parameters = f"{facts.parameters:,} parameters" + (f", {frozen:,} of them frozen" if frozen else "")
    table.add_row("model", f"{facts.model}, {parameters}")
    if facts.extension is not None:
        table.add_row("positions", _extension_line(facts.extension))
    table.add_row("objective", facts.objective)
    if not facts.patterns:
        table.add_row("pattern", "none: the model's own attention")
    for pattern in facts.patterns:
        table.add_row("pattern", _pattern_line(pattern))
    if any(pattern.layer_indices is not None for pattern in facts.patterns):
        table.add_row("layers", _layers_line(facts.patterns))
    for schedule in facts.schedules:
        table.add_row("schedule", schedule.stages)
    for key, value in _corpus_lines(facts.corpus):
        table.add_row(key, value)
    if facts.byte_entropy is not None:
        table.add_row("held-out byte entropy", f"{facts.byte_entropy:.4f} nats a byte")
    table.add_row("sequence", f"{facts.seq_len:,} tokens")
    table.add_row("a step", f"{facts.tokens_per_step:,} tokens")
    if facts.budget is not None:
        table.add_row("budget", facts.budget)
    if facts.total_steps is None:
        table.add_row("steps", "until the time is over")
    else:
        total = facts.total_steps * facts.tokens_per_step
        table.add_row("steps", f"{facts.total_steps:,}, together {total:,} tokens")
    table.add_row("device", f"{facts.device}, {facts.precision}, attention backend {facts.backend}")
    table.add_row("files", facts.output_dir)
    shown = [(_title(one), one.drawing) for one in facts.patterns]
    for schedule in facts.schedules:
        shown += [(f"{_title(one)}: at last", one.drawing) for one in schedule.last]
    pictures = [Group(Text(title, style="bold"), Text(drawing)) for title, drawing in shown]
    return Group(Text(f"Longspan: {facts.name}", style="bold"), table, Padding(Columns(pictures), (1, 2)))


def end_report(result: Mapping[str, Any]) -> RenderableType:
    """Return what a run reached, ready to print; `result` is what `collect_result` returned."""
    metrics, throughput = result["metrics"], result["throughput"]
    table = _two_columns()
    table.add_row("train loss", _number(metrics["train_loss"], " nats a token"))
    table.add_row("validation loss", _number(metrics["val_loss"], " nats a token"))
    table.add_row("best validation loss", _number(metrics["best_val_loss"], " nats a token"))
    table.add_row("perplexity", _number(metrics["perplexity"]))
    table.add_row("accuracy", _number(metrics.get("accuracy")))
    table.add_row("bits per byte", _number(metrics["bits_per_byte"]))
    if metrics["byte_entropy"] is not None:
        table.add_row("held-out byte entropy", _number(metrics["byte_entropy"], " nats a byte"))
        below = _number(metrics["below_byte_entropy"], " nats a byte")
        reached = _number(metrics["nats_per_byte"], " nats a byte")
        table.add_row("validation below it by", f"{below} (at {reached} of the validated sequences)")
    table.add_row("steps", f"{result['steps']:,}, together {result['tokens']:,} tokens")
    table.add_row("speed", _count(throughput["tokens_per_second"], " tokens a second"))
    table.add_row("peak memory", f"{throughput['peak_memory_bytes'] / 2**30:.2f} GiB")
    for label, line in _cost_lines(result["cost"]):
        table.add_row(label, line)
    table.add_row("wall time", format_duration(result["seconds"]))
    for name, path in {**result["checkpoints"], **result["files"]}.items():
        kind = "checkpoint" if name in result["checkpoints"] else "file"
        table.add_row(f"{name} {kind}" if kind == "checkpoint" else name, path or UNKNOWN)
    title = f"{result['name']}: {result['status']} after {result['steps']:,} steps"
    return Group(Text(title, style="bold"), table)


def comparison_table(results: Sequence[Mapping[str, Any]], title: str = "Comparison") -> Table:
    """Return a table that compares runs, a row each, by validation loss; the best is marked with a star.

    A run is called by those of its overrides that not all runs share.

    Args:
        results: what `collect_result` returned, or `read_result` read, for each run.
        title: printed above.

    """
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name, justify in (
        ("run", "left"),
        ("pattern", "left"),
        ("density", "right"),
        ("val loss", "right"),
        ("bits per byte", "right"),
        ("tokens/s", "right"),
        ("time", "right"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    ordered = sorted(results, key=lambda result: _loss(result))
    shared = (
        set.intersection(*(set(result["overrides"]) for result in results)) if len(results) > 1 else set()
    )
    for place, result in enumerate(ordered):
        best = place == 0 and result["metrics"]["val_loss"] is not None
        patterns = result["patterns"]
        table.add_row(
            "*" if best else "",
            Text(" ".join(one for one in result["overrides"] if one not in shared) or result["name"]),
            ", ".join(pattern["name"] for pattern in patterns) or "none",
            ", ".join(f"{pattern['density']:.3f}" for pattern in patterns) or UNKNOWN,
            _number(result["metrics"]["val_loss"]),
            _number(result["metrics"]["bits_per_byte"]),
            _count(result["throughput"]["tokens_per_second"]),
            format_duration(result["seconds"]),
            style="bold green" if best else None,
        )
    return table


def _loss(result: Mapping[str, Any]) -> float:
    loss = result["metrics"]["val_loss"]
    return float("inf") if loss is None else loss


def _two_columns() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _pattern_line(pattern: PatternFacts) -> str:
    layers = "all layers" if pattern.layers is None else _layers_of(pattern)
    return (
        f"{pattern.name}: density {pattern.density:.3f}, {pattern.kept_blocks:,} of {pattern.all_blocks:,} "
        f"blocks of {pattern.block}, {pattern.heads} heads, {layers}"
    )


def _layers_of(pattern: PatternFacts) -> str:
    """Say which layers have a pattern, as `3 layers (0–1, 3)`."""
    numbers = pattern.layer_indices
    count = "1 layer" if pattern.layers == 1 else f"{pattern.layers} layers"
    return count if numbers is None else f"{count} ({ranges(numbers)})"


def _title(pattern: PatternFacts) -> str:
    return pattern.name if pattern.layers is None else f"{pattern.name}, {_layers_of(pattern)}"


def _layers_line(patterns: Sequence[PatternFacts]) -> str:
    """Name the pattern of each layer from the lowest on, as `fixed*2 dense fixed*2 dense`."""
    names = {n: pattern.name for pattern in patterns for n in pattern.layer_indices or ()}
    last = max(names)
    runs = itertools.groupby(names.get(n, "dense") for n in range(last + 1))
    counted = [(name, len(list(run))) for name, run in runs]
    return " ".join(name if count == 1 else f"{name}*{count}" for name, count in counted)


def _extension_line(extension: Mapping[str, Any]) -> str:
    first, last, method = (extension[name] for name in ("from", "to", "method"))
    options = {name: value for name, value in extension.items() if name not in ("method", "from", "to")}
    given = "".join(f", {name} {value}" for name, value in options.items())
    return f"extended from {first:,} to {last:,} by {method}{given}"


def _cost_lines(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a run has cost: where its steps' time went, its FLOPs, and the share of the peak."""
    lines = []
    split = {phase: seconds for phase, seconds in cost["split"].items() if seconds is not None}
    whole = sum(split.values())
    if whole:
        parts = ", ".join(f"{phase} {1e3 * seconds:,.1f} ms" for phase, seconds in split.items())
        lines.append(("a step", f"{1e3 * whole:,.1f} ms: {parts}"))
    if cost["flops"]:
        times = cost["dense_flops"] / cost["flops"]
        lines.append(
            ("FLOPs", f"{cost['flops']:.4g}; dense attention {cost['dense_flops']:.4g}, {times:.2f} times")
        )
    if cost["mfu"] is not None:
        lines.append(
            (
                "MFU",
                f"{cost['mfu']:.1%} of the dense peak; counted as dense attention {cost['dense_mfu']:.1%}",
            )
        )
    return lines


def _corpus_lines(corpus: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a line for each side of the corpus."""
    lines = [("corpus", str(corpus.get("name", UNKNOWN)))]
    for side in ("train", "validation"):
        account = corpus.get(side)
        if account is None:
            continue
        parts = []
        if account.get("documents") is not None:
            parts.append(f"{account['documents']:,} files")
        if account.get("bytes") is not None:
            parts.append(f"{account['bytes']:,} bytes")
        if account.get("sha256") is not None:
            parts.append(f"sha256 {account['sha256'][:12]}")
        unknown = "a stream: its size is not known"
        if corpus.get("details", {}).get("generated"):
            unknown = "generated from the seed, no text in both splits"
        lines.append((f"  {side}", ", ".join(parts) or unknown))
    return lines


def _number(value: float | None, unit: str = "") -> str:
    return UNKNOWN if value is None else f"{value:.4f}{unit}"


def _count(value: float | None, unit: str = "") -> str:
    return UNKNOWN if value is None else f"{value:,.0f}{unit}"
