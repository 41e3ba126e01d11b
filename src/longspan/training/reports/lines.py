"""Formats the figures of a run: each function makes lines (label, text) from a value and the record."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from longspan.analysis.picture import ranges
from longspan.console import UNKNOWN, format_duration

Record = Mapping[str, Any]
Lines = list[tuple[str, str]]
# (value of the figure, record of all figures) -> lines; empty for a value that is not printed.
Line = Callable[[Any, Record], Lines]


def text(label: str) -> Line:
    """Print a value as it is; None has no line."""
    return lambda value, record: [] if value is None else [(label, str(value))]


def number(label: str, unit: str = "") -> Line:
    """Print a number with four decimals and its unit."""
    return lambda value, record: [(label, decimals(value, unit))]


def count(label: str, unit: str = "") -> Line:
    """Print a number without decimals and its unit."""
    return lambda value, record: [(label, whole(value, unit))]


def decimals(value: float | None, unit: str = "") -> str:
    """Write a number with four decimals; a dash for None."""
    return UNKNOWN if value is None else f"{value:.4f} {unit}".rstrip()


def whole(value: float | None, unit: str = "") -> str:
    """Write a number without decimals, with commas; a dash for None."""
    return UNKNOWN if value is None else f"{value:,.0f} {unit}".rstrip()


def model(parameters: int, record: Record) -> Lines:
    """The model's class and its parameters."""
    frozen = parameters - record["model"]["trainable_parameters"]
    of_them = f", {frozen:,} of them frozen" if frozen else ""
    return [("model", f"{record['model']['name']}, {parameters:,} parameters{of_them}")]


def positions(extension: Record | None, record: Record) -> Lines:
    """How positions were extended."""
    if extension is None:
        return []
    options = {name: value for name, value in extension.items() if name not in ("method", "from", "to")}
    given = "".join(f", {name} {value}" for name, value in options.items())
    first, last, method = (extension[name] for name in ("from", "to", "method"))
    return [("positions", f"extended from {first:,} to {last:,} by {method}{given}")]


def patterns(found: Sequence[Record], record: Record) -> Lines:
    """A line for each pattern, and one that names the pattern of each layer where they differ."""
    if not found:
        return [("pattern", "none: the model's own attention")]
    made = []
    for one in found:
        layers = "all layers" if one["layers"] is None else layers_of(one)
        made.append(
            (
                "pattern",
                f"{one['name']}: density {one['density']:.3f}, {one['kept_blocks']:,} of "
                f"{one['all_blocks']:,} blocks of {one['block']}, {one['heads']} heads, {layers}",
            )
        )
    if any(one["layer_indices"] is not None for one in found):
        made.append(("layers", _pattern_of_each_layer(found)))
    return made


def layers_of(pattern: Record) -> str:
    """Say which layers have a pattern, as `3 layers (0–1, 3)`."""
    numbers = pattern["layer_indices"]
    layers = "1 layer" if pattern["layers"] == 1 else f"{pattern['layers']} layers"
    return layers if numbers is None else f"{layers} ({ranges(numbers)})"


def _pattern_of_each_layer(found: Sequence[Record]) -> str:
    """Name the pattern of each layer from the lowest on, as `fixed*2 dense fixed*2 dense`."""
    names = {number: one["name"] for one in found for number in one["layer_indices"] or ()}
    runs = itertools.groupby(names.get(number, "dense") for number in range(max(names) + 1))
    counted = [(name, len(list(run))) for name, run in runs]
    return " ".join(name if times == 1 else f"{name}*{times}" for name, times in counted)


def schedules(stages: Sequence[str], record: Record) -> Lines:
    """A line for each schedule."""
    return [("schedule", one) for one in stages]


def corpus(account: Record, record: Record) -> Lines:
    """The corpus's name, and a line for each side."""
    made = [("corpus", str(account.get("name", UNKNOWN)))]
    for side in ("train", "validation"):
        if account.get(side) is None:
            continue
        known = {name: value for name, value in account[side].items() if value is not None}
        parts = []
        if "documents" in known:
            parts.append(f"{known['documents']:,} files")
        if "bytes" in known:
            parts.append(f"{known['bytes']:,} bytes")
        if "sha256" in known:
            parts.append(f"sha256 {known['sha256'][:12]}")
        unknown = "a stream: its size is not known"
        if account.get("details", {}).get("generated"):
            unknown = "generated from the seed, no text in both splits"
        made.append((f"  {side}", ", ".join(parts) or unknown))
    return made


def byte_entropy(value: float | None, record: Record) -> Lines:
    """The entropy of the held-out text, where it is known."""
    return [] if value is None else [("held-out byte entropy", decimals(value, "nats a byte"))]


def total_steps(steps: int | None, record: Record) -> Lines:
    """The optimizer steps of the run and their tokens."""
    if steps is None:
        return [("steps", "until the time is over")]
    return [("steps", f"{steps:,}, together {steps * record['tokens_per_step']:,} tokens")]


def device(name: str, record: Record) -> Lines:
    """The device, the precision and the attention backend."""
    return [("device", f"{name}, {record['precision']}, attention backend {record['backend']}")]


def below_byte_entropy(value: float | None, record: Record) -> Lines:
    """The entropy of the held-out text, and how far below it the model is."""
    metrics = record["metrics"]
    if metrics["byte_entropy"] is None:
        return []
    reached = decimals(metrics["nats_per_byte"], "nats a byte")
    below = f"{decimals(value, 'nats a byte')} (at {reached} of the validated sequences)"
    return [*byte_entropy(metrics["byte_entropy"], record), ("validation below it by", below)]


def steps(tokens: int, record: Record) -> Lines:
    """The optimizer steps that were trained, and their tokens."""
    return [("steps", f"{record['steps']:,}, together {tokens:,} tokens")]


def peak_memory(num_bytes: int, record: Record) -> Lines:
    """The peak memory."""
    return [("peak memory", f"{num_bytes / 2**30:.2f} GiB")]


def cost(split: Mapping[str, float | None], record: Record) -> Lines:
    """The cost of the run: time of the phases of a step, FLOPs, and share of the peak rate."""
    made, figures = [], record["cost"]
    known = {phase: seconds for phase, seconds in split.items() if seconds is not None}
    step = sum(known.values())
    if step:
        parts = ", ".join(f"{phase} {1e3 * seconds:,.1f} ms" for phase, seconds in known.items())
        made.append(("a step", f"{1e3 * step:,.1f} ms: {parts}"))
    if figures["flops"]:
        times = figures["dense_flops"] / figures["flops"]
        dense = f"dense attention {figures['dense_flops']:.4g}, {times:.2f} times"
        made.append(("FLOPs", f"{figures['flops']:.4g}; {dense}"))
    if figures["mfu"] is not None:
        dense = f"counted as dense attention {figures['dense_mfu']:.1%}"
        made.append(("MFU", f"{figures['mfu']:.1%} of the dense peak; {dense}"))
    return made


def wall_time(seconds: float, record: Record) -> Lines:
    """The wall time of the run."""
    return [("wall time", format_duration(seconds))]


def checkpoints(paths: Mapping[str, str | None], record: Record) -> Lines:
    """The best and the last checkpoint."""
    return [(f"{name} checkpoint", path or UNKNOWN) for name, path in paths.items()]


def files(paths: Mapping[str, str], record: Record) -> Lines:
    """The files of the run."""
    return list(paths.items())
