"""The figure of loss and accuracy by position and by distance, from the evaluation.json of the runs."""

from __future__ import annotations

from typing import Any

import altair as alt

from longspan.analysis.comparison import panels
from longspan.analysis.comparison.panels import Figure, Look
from longspan.analysis.comparison.series import Series, Setting
from longspan.analysis.comparison.statistics import LEVEL, estimate

_KINDS = {"by_position": "position in the sequence", "by_distance": "distance back to the answer"}
_VALUES = {"loss": ("loss", "nats/token", 1.0), "accuracy": ("accuracy", "%", 100.0)}


def evaluation_figure(setting: Setting, look: Look) -> Figure | None:
    """Draw loss and accuracy by position and by distance; return None if no run has them."""
    drawn = [
        panel
        for kind in _KINDS
        for value in _VALUES
        if (panel := _panel(setting, kind, value, look)) is not None
    ]
    if not drawn:
        return None
    caption = (
        f"Mean over seeds in each range of tokens. Bands: {LEVEL:.0%} confidence interval of the mean, for "
        "three or more seeds. Ranges without a scored token are left out."
    )
    return Figure("evaluation", "By position and by distance", caption, tuple(drawn), named=False)


def mean_by_range(one: Series, kind: str, value: str) -> list[dict[str, float]]:
    """Return the mean of a value over the runs of a series, in each range of tokens that all runs scored.

    Args:
        one: the series.
        kind: "by_position" or "by_distance".
        value: "loss" or "accuracy".

    Returns:
        For each range, ascending: `from` and `to` (tokens), the mean `y`, the number of runs `n` and, for
        more than two runs, the ends `low` and `high` of the confidence interval.

    """
    by_run = []
    for run in one.runs.values():
        ranges = run.evaluation.get(kind) or []
        by_run.append(
            {
                (part["from"], part["to"]): part[value]
                for part in ranges
                if part.get(value) is not None and part.get("scored", 1)
            }
        )
    rows = []
    for start, end in sorted(set.intersection(*(set(parts) for parts in by_run))):
        mean = estimate([parts[start, end] for parts in by_run])
        assert mean is not None
        row: dict[str, float] = {"from": start, "to": end, "y": mean.mean, "n": mean.n}
        if mean.n > 2 and mean.low is not None and mean.high is not None:
            row |= {"low": mean.low, "high": mean.high}
        rows.append(row)
    return rows


def _panel(setting: Setting, kind: str, value: str, look: Look) -> alt.LayerChart | None:
    name, unit, factor = _VALUES[value]
    rows: list[dict[str, Any]] = []
    for one in setting.series:
        for part in mean_by_range(one, kind, value):
            row: dict[str, Any] = {
                "series": one.label,
                "n": part["n"],
                "from": part["from"],
                "to": part["to"],
            }
            row |= {key: part[key] * factor for key in ("y", "low", "high") if key in part}
            # The middle of the range, above 0 for a logarithmic axis.
            row["x"] = max((part["from"] + part["to"]) / 2, 0.5)
            rows.append(row)
    if not rows:
        return None
    places = [row["x"] for row in rows]
    logarithmic = kind == "by_distance" and panels.needs_logarithm(places)
    x_ends = panels.domain(places, logarithmic) if logarithmic else (0.0, max(row["to"] for row in rows))
    y_ends = panels.domain([row[key] for row in rows for key in ("y", "low", "high") if key in row])
    if value == "accuracy":
        y_ends = (max(y_ends[0], -2.0), min(y_ends[1], 102.0))
    axis = alt.Axis(title=f"{_KINDS[kind]} (tokens)", tickCount=5, format="~s" if logarithmic else ",d")
    x = alt.X("x:Q", scale=panels.scale(x_ends, logarithmic), axis=axis)
    y_scale = panels.scale(y_ends)
    title = f"{name} ({unit})"
    tooltip = [
        alt.Tooltip("series:N", title="pattern"),
        alt.Tooltip("y:Q", title=title, format=".4~f"),
        alt.Tooltip("from:Q", title="from", format=","),
        alt.Tooltip("to:Q", title="to", format=","),
        alt.Tooltip("n:Q", title="seeds"),
    ]
    layers: list[Any] = []
    banded = [row for row in rows if "low" in row]
    if banded:
        layers.append(
            alt.Chart(panels.data(banded))
            .mark_area(clip=True)
            .encode(
                x=x,
                y=alt.Y("low:Q", scale=y_scale, title=title),
                y2="high:Q",
                color=look.colour(),
                opacity=panels.band_opacity(),
            )
        )
    base = alt.Chart(panels.data(rows)).encode(
        x=x, y=alt.Y("y:Q", scale=y_scale, axis=alt.Axis(title=title)), color=look.colour()
    )
    layers.append(base.mark_line(strokeWidth=2).encode(opacity=panels.opacity(1.0)))
    layers.append(
        base.mark_point(filled=True, size=30).encode(
            shape=look.shape(), tooltip=tooltip, opacity=panels.opacity(1.0)
        )
    )
    return panels.layered(layers)
