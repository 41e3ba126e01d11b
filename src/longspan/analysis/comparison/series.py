"""Runs sorted for comparison: by what they were trained to do, by pattern, and by seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longspan.analysis.comparison.configurations import (
    PATTERN_GROUPS,
    differing,
    group_of,
    seed_keys,
    settings,
)
from longspan.analysis.comparison.runs import Run

OBJECTIVES = {"clm": "Causal language modelling", "mlm": "Masked language modelling"}
# The pattern that the others are measured by, where it was run.
DENSE = "dense"


@dataclass(frozen=True)
class Series:
    """Runs that differ in their seed alone.

    Attributes:
        label: the pattern's name, with what else tells the series from others of that pattern.
        runs: by seed.
        settings: the configuration that they share, see `configurations.settings`.

    """

    label: str
    runs: dict[int, Run]
    settings: dict[str, str]

    def values(self, quantity: Any) -> dict[int, float]:
        """A quantity of each run that has it, by seed."""
        found = {seed: quantity.of(run) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass(frozen=True)
class Setting:
    """Runs whose figures stand in one table: one objective, one corpus or task, one length.

    Attributes:
        key: for file names.
        title: for a heading.
        series: by label; `dense` comes first.
        repeated: names of runs left out because a later one has the same configuration and seed.

    """

    key: str
    title: str
    series: tuple[Series, ...]
    repeated: tuple[str, ...] = ()

    @property
    def runs(self) -> list[Run]:
        """All runs of all series."""
        return [run for one in self.series for run in one.runs.values()]

    def named(self, label: str) -> Series | None:
        """The series of a label."""
        return next((one for one in self.series if one.label == label), None)

    def baseline(self, label: str | None = None) -> Series | None:
        """The series to measure others by: that of the label.

        Without a label `dense`, or else the first of the dense ones, or else, where none is dense, the first;
        `remarks` says which.
        """
        if label:
            return self.named(label)
        dense = (one for one in self.series if one.label.startswith(f"{DENSE} ") and " + " not in one.label)
        return self.named(DENSE) or next(dense, None) or next(iter(self.series), None)


def sort_runs(runs: Sequence[Run]) -> list[Setting]:
    """Sort runs into settings and series."""
    by_setting: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        corpus = str((run.result.get("corpus") or {}).get("name") or "unknown data")
        key = (str(run.result.get("objective")), corpus, int(run.result.get("seq_len") or 0))
        by_setting.setdefault(key, []).append(run)
    found = []
    for (objective, corpus, length), members in sorted(by_setting.items()):
        series, repeated = _series(members)
        title = f"{OBJECTIVES.get(objective, objective)}, {corpus}, {length:,} tokens"
        key = re.sub(r"[^\w.-]+", "_", f"{objective}_{corpus}_{length}")
        # Other characters than those of file names are all written alike.
        taken = {one.key for one in found}
        number = 2
        while key in taken:
            key = f"{key.removesuffix(f'_{number - 1}') if number > 2 else key}_{number}"
            number += 1
        found.append(Setting(key, title, series, repeated))
    return found


def _series(runs: Sequence[Run]) -> tuple[tuple[Series, ...], tuple[str, ...]]:
    seeds = seed_keys(runs)
    groups: dict[tuple[tuple[str, str], ...], dict[int, Run]] = {}
    repeated = []
    for run in sorted(runs, key=lambda run: str(run.result.get("date"))):
        shared = {key: value for key, value in settings(run).items() if key not in seeds}
        # A result without a configuration is identified by its other fields.
        shared |= {"sparsity.label": pattern_label(run)}
        members = groups.setdefault(tuple(sorted(shared.items())), {})
        seed = 0 if run.seed is None else run.seed
        if seed in members:
            repeated.append(members[seed].name)
        members[seed] = run
    made = []
    for key, members in groups.items():
        label = dict(key)["sparsity.label"]
        rivals = [dict(other) for other in groups if dict(other)["sparsity.label"] == label]
        told_by = differing(rivals)
        label = " ".join([label, *(f"{_short(name, told_by)}={dict(key).get(name)}" for name in told_by)])
        shared = {name: value for name, value in key if name != "sparsity.label"}
        made.append(Series(label, dict(sorted(members.items())), shared))
    made.sort(key=lambda one: (one.label != DENSE, one.label))
    return tuple(made), tuple(repeated)


def pattern_label(run: Run) -> str:
    """Name the pattern of a run; of a mixture all of them, with how many layers have each."""
    patterns = run.result.get("patterns") or []
    if not patterns:
        return "no pattern"
    if len(patterns) == 1 and patterns[0].get("layers") in (None, _layers(run)):
        return patterns[0]["name"]
    return " + ".join(
        one["name"] + ("" if one.get("layers") is None else f"×{one['layers']}") for one in patterns
    )


def density(run: Run) -> float | None:
    """Share of the blocks that a run keeps, the mean over its layers; None where some have no pattern."""
    patterns = run.result.get("patterns") or []
    weights = [one.get("layers") or 1 for one in patterns]
    layers = _layers(run)
    if not patterns or (patterns[0].get("layers") is not None and layers and sum(weights) != layers):
        return None
    kept = sum(one["density"] * weight for one, weight in zip(patterns, weights, strict=True))
    return kept / sum(weights)


def pattern_keys(keys: Sequence[str]) -> list[str]:
    """Those of some keys that say which pattern a run has."""
    return [key for key in keys if group_of(key) in PATTERN_GROUPS]


def _layers(run: Run) -> int | None:
    return ((run.result.get("config") or {}).get("model") or {}).get("num_layers")


def _short(name: str, names: Sequence[str]) -> str:
    """The last part of a dotted key, unless another key ends like it."""
    last = name.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in names) == 1 else name
