"""What differs between the configurations of runs, leaving out what says nothing of the runs themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from longspan.analysis.comparison.runs import Run
from longspan.records.settings import NOT_PART_OF_A_SERIES, SEED_KEYS, is_within

# Keys that say which pattern a run has.
PATTERN_GROUPS = ("sparsity", "schedule")


def settings(run: Run) -> dict[str, str]:
    """The configuration of a run by dotted keys, as text; paths in its own folder are those of any run."""
    config = run.result.get("config") or {}
    own = str(config.get("output_dir") or "\0")
    compared = [one for one in _flatten(config) if not is_within(one[0], NOT_PART_OF_A_SERIES)]
    return {key: value.replace(own, "<run>") for key, value in compared}


def group_of(key: str) -> str:
    """The Hydra group of a dotted key."""
    return key.partition(".")[0]


def seed_keys(runs: Sequence[Run]) -> set[str]:
    """Keys that follow the run's seed: named seed, and equal to it in every run."""
    all_settings = [(str(run.seed), settings(run)) for run in runs]
    names = {key for _, one in all_settings for key in one if key.rpartition(".")[2] == "seed"}
    if len({seed for seed, _ in all_settings}) < 2:
        # With one seed every zero would look like it; only the key itself and the data's order are known to.
        return names.intersection(SEED_KEYS)
    return {key for key in names if all(one.get(key, seed) == seed for seed, one in all_settings)}


def differing(settings_of_runs: Iterable[Mapping[str, str]]) -> list[str]:
    """Keys whose values are not the same in all of some configurations, in the order they first occur."""
    all_settings = list(settings_of_runs)
    keys = dict.fromkeys(key for one in all_settings for key in one)
    return [key for key in keys if len({one.get(key) for one in all_settings}) > 1]


def facts(run: Run) -> dict[str, str]:
    """What is known of a run beside its configuration: what it ran on, and what it read."""
    result = run.result
    corpus = result.get("corpus") or {}
    found: dict[str, Any] = {
        "device": result.get("device"),
        "attention backend": result.get("backend"),
        "precision": result.get("precision"),
        "tokens": result.get("tokens"),
        "parameters": (result.get("model") or {}).get("parameters"),
    }
    for side in ("train", "validation"):
        account = corpus.get(side) or {}
        found[f"corpus, {side} (sha256)"] = (account.get("sha256") or "")[:12] or None
    for package, version in (result.get("versions") or {}).items():
        found[f"version of {package}"] = version
    return {key: _text(value) for key, value in found.items() if value is not None}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, key + ".")
        else:
            yield key, _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
