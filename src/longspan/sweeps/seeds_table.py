"""The runs of a sweep that differ in nothing but their seed, as one row of a table: mean and spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from longspan.console import UNKNOWN, format_duration
from longspan.records.settings import NOT_PART_OF_A_MEAN, is_within

Result = Mapping[str, Any]


def group_seeds(results: Sequence[Result]) -> dict[tuple[str, ...], list[Result]]:
    """Group results by what was asked for besides the seed, in whatever order.

    What makes no other job of a sweep makes no other group. Overrides are compared and not the
    whole configuration: a result holds it resolved, and there `data.seed` is a number that follows the seed.

    Args:
        results: what `longspan.records.run_folder.read_result` read, for each run.

    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        asked = [one for one in result["overrides"] if not is_within(_key_of(one), NOT_PART_OF_A_MEAN)]
        key = tuple(sorted(asked))
        groups.setdefault(key, []).append(result)
    return groups


def seeds_table(results: Sequence[Result], title: str = "Over seeds") -> Table | None:
    """Return a table with a row for the runs of all seeds; the best mean loss is marked with a star.

    What follows ± is the sample standard deviation over the runs, with one less than their number below it; a
    single run has none. A run without a figure is left out of its mean.

    Args:
        results: as in `group_seeds`.
        title: printed above.

    Returns:
        None where no group has a second run.

    """
    groups = group_seeds(results)
    if all(len(runs) < 2 for runs in groups.values()):
        return None
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name, justify in (
        ("runs of", "left"),
        ("pattern", "left"),
        ("density", "right"),
        ("seeds", "right"),
        ("val loss", "right"),
        ("bits per byte", "right"),
        ("tokens/s", "right"),
        ("time", "right"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    shared = set.intersection(*(set(key) for key in groups)) if len(groups) > 1 else set()
    ordered = sorted(groups.items(), key=lambda item: _mean(_losses(item[1]), float("inf")))
    for place, (key, runs) in enumerate(ordered):
        best = place == 0 and bool(_losses(runs))
        patterns = runs[0]["patterns"]
        table.add_row(
            "*" if best else "",
            Text(" ".join(one for one in key if one not in shared) or runs[0]["name"]),
            ", ".join(pattern["name"] for pattern in patterns) or "none",
            ", ".join(f"{pattern['density']:.3f}" for pattern in patterns) or UNKNOWN,
            str(len(runs)),
            _spread(_losses(runs)),
            _spread(_figures(runs, lambda run: run["metrics"]["bits_per_byte"])),
            _whole(_figures(runs, lambda run: run["throughput"]["tokens_per_second"])),
            format_duration(statistics.fmean(run["seconds"] for run in runs)),
            style="bold green" if best else None,
        )
    return table


def _key_of(override: str) -> str:
    """The dotted key that an override gives: `callbacks.best` of `+callbacks/best@x=y`."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")


def _losses(runs: Sequence[Result]) -> list[float]:
    return _figures(runs, lambda run: run["metrics"]["val_loss"])


def _figures(runs: Sequence[Result], read: Callable[[Result], float | None]) -> list[float]:
    return [value for value in map(read, runs) if value is not None]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return statistics.fmean(values) if values else otherwise


def _spread(values: Sequence[float]) -> str:
    if not values:
        return UNKNOWN
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def _whole(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):,.0f}" if values else UNKNOWN
