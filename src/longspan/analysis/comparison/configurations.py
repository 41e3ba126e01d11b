"""Differences between the configurations of runs; keys that do not affect a comparison are left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from longspan.analysis.comparison.runs import Run
from longspan.records.settings import NOT_PART_OF_A_SERIES, SEED_KEYS, is_within

# Groups of the keys that define the pattern of a run.
PATTERN_GROUPS = ("sparsity", "schedule")


def settings(run: Run) -> dict[str, str]:
    """Return the configuration of a run as text, by dotted key; `<run>` replaces the path of its folder."""
    config = run.result.get("config") or {}
    run_folder = str(config.get("output_dir") or "\0")
    compared = [item for item in _flatten(config) if not is_within(item[0], NOT_PART_OF_A_SERIES)]
    return {key: value.replace(run_folder, "<run>") for key, value in compared}


def group_of(key: str) -> str:
    """Return the Hydra group of a dotted key."""
    return key.partition(".")[0]


def seed_keys(runs: Sequence[Run]) -> set[str]:
    """Return the keys that follow the seed of the run: named `seed`, and equal to it in every run."""
    all_settings = [(str(run.seed), settings(run)) for run in runs]
    names = {key for _, one in all_settings for key in one if key.rpartition(".")[2] == "seed"}
    if len({seed for seed, _ in all_settings}) < 2:
        # With one seed, any key of the same value would look as if it followed the seed; these are known to.
        return names.intersection(SEED_KEYS)
    return {key for key in names if all(one.get(key, seed) == seed for seed, one in all_settings)}


def differing(settings_of_runs: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values differ between configurations, in order of first occurrence."""
    all_settings = list(settings_of_runs)
    keys = dict.fromkeys(key for one in all_settings for key in one)
    return [key for key in keys if len({one.get(key) for one in all_settings}) > 1]


def facts(run: Run) -> dict[str, str]:
    """Return the facts of a run that are not in its configuration: device, data, versions and sizes."""
    result = run.result
    corpus = result.get("corpus") or {}
    values: dict[str, Any] = {
        "device": result.get("device"),
        "attention backend": result.get("backend"),
        "precision": result.get("precision"),
        "tokens": result.get("tokens"),
        "parameters": (result.get("model") or {}).get("parameters"),
    }
    for side in ("train", "validation"):
        statistics = corpus.get(side) or {}
        values[f"corpus, {side} (sha256)"] = (statistics.get("sha256") or "")[:12] or None
    for package, version in (result.get("versions") or {}).items():
        values[f"version of {package}"] = version
    return {key: _text(value) for key, value in values.items() if value is not None}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, key + ".")
        else:
            yield key, _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
