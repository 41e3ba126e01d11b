"""The tables of a comparison as rows of text, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longspan.analysis.comparison.configurations import PATTERN_GROUPS, differing, facts
from longspan.analysis.comparison.quantities import Quantity, qualities, quantities
from longspan.analysis.comparison.runs import Run
from longspan.analysis.comparison.series import Series, Setting
from longspan.analysis.comparison.statistics import Estimate, estimate, paired


@dataclass(frozen=True)
class TextTable:
    """Headings and rows of text.

    Attributes:
        headings: headings of the columns.
        rows: one text per column in each row.
        numbers: number of columns with numbers; they are the last ones.
        marked: for each row, the indices of the columns with the best value; empty for a table without marks.

    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: int
    marked: tuple[frozenset[int], ...] = ()


def results_table(setting: Setting) -> TextTable:
    """Return one row per series: mean and interval of each quantity, and the number of seeds of the quality.

    A mean over another number of seeds has that number beside it: a diverged run has a speed but no quality.
    """
    shown = quantities(setting)
    first_quality = next((quality.key for quality in qualities(setting)), None)
    means = [[estimate(list(one.values(quantity).values())) for quantity in shown] for one in setting.series]
    best = {column: _best(quantity, [row[column] for row in means]) for column, quantity in enumerate(shown)}
    rows, marked = [], []
    for number, (one, estimates) in enumerate(zip(setting.series, means, strict=True)):
        by_key = {quantity.key: value for quantity, value in zip(shown, estimates, strict=True)}
        of_quality = by_key.get(first_quality or "")
        seeds = of_quality.n if of_quality else 0 if first_quality else len(one.runs)
        texts = [
            quantity.write_estimate(value) + ("" if value is None or value.n == seeds else f" (n={value.n})")
            for quantity, value in zip(shown, estimates, strict=True)
        ]
        rows.append((one.label, *texts, str(seeds)))
        marked.append(frozenset(column + 1 for column in best if best[column] == number))
    headings = ("pattern", *(quantity.title for quantity in shown), "n")
    return TextTable(headings, tuple(rows), len(shown) + 1, tuple(marked))


def difference(quantity: Quantity, one: Series, other: Series) -> Estimate | None:
    """Return the paired difference `one - other` over the shared seeds; None without one."""
    return paired(one.values(quantity), other.values(quantity))


def differences_table(setting: Setting, quantity: Quantity) -> TextTable:
    """Return the paired differences of all pairs of series, row minus column, with intervals."""
    labels = [one.label for one in setting.series]
    rows = []
    for one in setting.series:
        texts = [
            "" if one is other else _difference_text(quantity, difference(quantity, one, other))
            for other in setting.series
        ]
        rows.append((one.label, *texts))
    return TextTable((f"{quantity.title}: row − column", *labels), tuple(rows), len(labels))


def baseline_table(setting: Setting, baseline: Series) -> TextTable:
    """Return the paired differences of each series to the baseline, in every quality."""
    shown = qualities(setting)
    rows = []
    for one in setting.series:
        if one is not baseline:
            means = [difference(quantity, one, baseline) for quantity in shown]
            texts = [_difference_text(quantity, mean) for quantity, mean in zip(shown, means, strict=True)]
            rows.append((one.label, *texts, str(max((mean.n for mean in means if mean), default=0))))
    headings = (f"less {baseline.label}", *(quantity.title for quantity in shown), "shared seeds")
    return TextTable(headings, tuple(rows), len(shown) + 1)


def _difference_text(quantity: Quantity, mean: Estimate | None) -> str:
    if mean is None:
        return "no shared seed"
    return quantity.write_estimate(mean, sign=True) + ("*" if mean.excludes_zero else "")


def configuration_table(setting: Setting) -> TextTable:
    """Return the keys and facts that differ between the series of a setting, one column per series."""
    columns = [one.settings | _shared_facts(list(one.runs.values())) for one in setting.series]
    rows = [(key, *(_short(one.get(key, "–")) for one in columns)) for key in differing(columns)]
    return TextTable(("key", *(one.label for one in setting.series)), tuple(rows), 0)


def settings_table(settings: Sequence[Setting]) -> TextTable:
    """Return the keys and facts that differ between settings but not within one, one column per setting."""
    columns = []
    for setting in settings:
        series = [one.settings | _shared_facts(list(one.runs.values())) for one in setting.series]
        within = set(differing(series))
        columns.append({key: value for one in series for key, value in one.items() if key not in within})
    shared = set.intersection(*(set(one) for one in columns))
    rows = [
        (key, *(_short(one[key]) for one in columns))
        for key in differing(columns)
        if key in shared and key.partition(".")[0] not in PATTERN_GROUPS
    ]
    return TextTable(("key", *(setting.title for setting in settings)), tuple(rows), 0)


def runs_table(settings: Sequence[Setting]) -> TextTable:
    """Return one row per run: folder, setting, pattern, seed, steps, tokens and validation loss."""
    rows = []
    for setting in settings:
        for one in setting.series:
            for seed, run in one.runs.items():
                loss = run.result["metrics"].get("val_loss")
                rows.append(
                    (
                        run.name,
                        setting.title,
                        one.label,
                        str(seed),
                        f"{run.result.get('steps') or 0:,}",
                        f"{run.result.get('tokens') or 0:,}",
                        "–" if loss is None else f"{loss:.4f}",
                    )
                )
    headings = ("run", "setting", "pattern", "seed", "steps", "tokens", "validation loss (nats/token)")
    return TextTable(headings, tuple(rows), 4)


def _shared_facts(runs: Sequence[Run]) -> dict[str, str]:
    """Return the facts of runs; a fact that differs between them has all values, separated by commas."""
    all_facts = [facts(run) for run in runs]
    keys = dict.fromkeys(key for one in all_facts for key in one)
    return {key: ", ".join(dict.fromkeys(one.get(key, "–") for one in all_facts)) for key in keys}


def _short(value: str) -> str:
    """Return the class name of an import path of Longspan; other values unchanged."""
    return value.rpartition(".")[2] if value.startswith("longspan.") else value


def _best(quantity: Quantity, means: Sequence[Estimate | None]) -> int | None:
    """Return the index of the best mean; None if neither direction is better or fewer than two are known."""
    known = {number: mean.mean for number, mean in enumerate(means) if mean is not None}
    if quantity.lower_is_better is None or len(known) < 2:
        return None
    return (min if quantity.lower_is_better else max)(known, key=lambda number: known[number])
