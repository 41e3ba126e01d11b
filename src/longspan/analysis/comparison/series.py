"""Sorts runs for a comparison: by objective, corpus and length; then by pattern; then by seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longspan.analysis.comparison.configurations import (
    differing,
    seed_keys,
    settings,
)
from longspan.analysis.comparison.runs import Run

OBJECTIVES = {"clm": "Causal language modelling", "mlm": "Masked language modelling"}
# The default baseline.
DENSE = "dense"


@dataclass(frozen=True)
class Series:
    """Runs that differ only in their seed.

    Attributes:
        label: name of the pattern, and the settings that differ between series of this pattern.
        runs: runs by seed.
        settings: configuration that the runs share, from `configurations.settings`.

    """

    label: str
    runs: dict[int, Run]
    settings: dict[str, str]

    def values(self, quantity: Any) -> dict[int, float]:
        """Return the values of a `Quantity` by seed, without the runs that lack it."""
        values = {seed: quantity.of(run) for seed, run in self.runs.items()}
        return {seed: value for seed, value in values.items() if value is not None}


@dataclass(frozen=True)
class Setting:
    """Runs that share a table: they have the same objective, corpus or task, and length.

    Attributes:
        key: short name, for file names.
        title: heading.
        series: series sorted by label, `dense` first.
        repeated: names of runs that are left out because a later run has the same configuration and seed.

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
        """Return the series with a label; None if there is none."""
        return next((one for one in self.series if one.label == label), None)

    def baseline(self, label: str | None = None) -> Series | None:
        """Return the series of reference.

        Args:
            label: label of the series. None for the first of these that exists: the series `dense`, the first
                dense series, the first series; `remarks` names it if it is not `dense`.

        Returns:
            The series; None if no series has the label, or there is no series.

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
    sorted_settings: list[Setting] = []
    for (objective, corpus, length), members in sorted(by_setting.items()):
        series, repeated = _series(members)
        title = f"{OBJECTIVES.get(objective, objective)}, {corpus}, {length:,} tokens"
        key = re.sub(r"[^\w.-]+", "_", f"{objective}_{corpus}_{length}")
        # Titles with different special characters can have the same key.
        taken = {one.key for one in sorted_settings}
        number = 2
        while key in taken:
            key = f"{key.removesuffix(f'_{number - 1}') if number > 2 else key}_{number}"
            number += 1
        sorted_settings.append(Setting(key, title, series, repeated))
    return sorted_settings


def _series(runs: Sequence[Run]) -> tuple[tuple[Series, ...], tuple[str, ...]]:
    """Return the series of the runs of a setting, and the names of repeated runs."""
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
    all_series = []
    for key, members in groups.items():
        label = dict(key)["sparsity.label"]
        same_label = [dict(other) for other in groups if dict(other)["sparsity.label"] == label]
        names = differing(same_label)
        label = " ".join([label, *(f"{_short(name, names)}={dict(key).get(name)}" for name in names)])
        shared = {name: value for name, value in key if name != "sparsity.label"}
        all_series.append(Series(label, dict(sorted(members.items())), shared))
    all_series.sort(key=lambda one: (one.label != DENSE, one.label))
    return tuple(all_series), tuple(repeated)


def pattern_label(run: Run) -> str:
    """Return the name of the pattern of a run; for a mixture, all names with their numbers of layers."""
    patterns = run.result.get("patterns") or []
    if not patterns:
        return "no pattern"
    if len(patterns) == 1 and patterns[0].get("layers") in (None, _layers(run)):
        return patterns[0]["name"]
    return " + ".join(
        one["name"] + ("" if one.get("layers") is None else f"×{one['layers']}") for one in patterns
    )


def density(run: Run) -> float | None:
    """Return the share of kept blocks of a run, the mean over its layers; None if a layer has no pattern."""
    patterns = run.result.get("patterns") or []
    weights = [one.get("layers") or 1 for one in patterns]
    layers = _layers(run)
    if not patterns or (patterns[0].get("layers") is not None and layers and sum(weights) != layers):
        return None
    kept = sum(one["density"] * weight for one, weight in zip(patterns, weights, strict=True))
    return kept / sum(weights)


def _layers(run: Run) -> int | None:
    return ((run.result.get("config") or {}).get("model") or {}).get("num_layers")


def _short(name: str, names: Sequence[str]) -> str:
    """Return the last part of a dotted key; the whole key if another one has the same last part."""
    last = name.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in names) == 1 else name
