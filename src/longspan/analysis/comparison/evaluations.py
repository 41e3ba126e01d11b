"""Evaluation by position and by distance, where the runs wrote evaluation.json."""

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
    """Draw loss and accuracy by position and by distance; None where no run has them."""
    drawn = [
        panel
        for kind in _KINDS
        for value in _VALUES
        if (panel := _panel(setting, kind, value, look)) is not None
    ]
    if not drawn:
        return None
    caption = (
        f"Mean over seeds in each stretch of tokens. Bands: {LEVEL:.0%} confidence interval of the mean, of "
        "three seeds or more. Stretches in which nothing was scored are left out."
    )
    return Figure("evaluation", "By position and by distance", caption, tuple(drawn), named=False)


def mean_stretches(one: Series, kind: str, value: str) -> list[dict[str, float]]:
    """Mean of a value over the runs of a series, in each stretch that all of them scored."""
    by_run = []
    for run in one.runs.values():
        stretches = run.evaluation.get(kind) or []
        by_run.append(
            {
                (part["from"], part["to"]): part[value]
                for part in stretches
                if part.get(value) is not None and part.get("scored", 1)
            }
        )
    found = []
    for start, end in sorted(set.intersection(*(set(parts) for parts in by_run))):
        mean = estimate([parts[start, end] for parts in by_run])
        assert mean is not None
        row: dict[str, float] = {"from": start, "to": end, "y": mean.mean, "n": mean.n}
        if mean.n > 2 and mean.low is not None and mean.high is not None:
            row |= {"low": mean.low, "high": mean.high}
        found.append(row)
    return found


def _panel(setting: Setting, kind: str, value: str, look: Look) -> alt.LayerChart | None:
    name, unit, factor = _VALUES[value]
    rows: list[dict[str, Any]] = []
    for one in setting.series:
        for stretch in mean_stretches(one, kind, value):
            row: dict[str, Any] = {
                "series": one.label,
                "n": stretch["n"],
                "from": stretch["from"],
                "to": stretch["to"],
            }
            row |= {key: stretch[key] * factor for key in ("y", "low", "high") if key in stretch}
            # The middle; on a logarithmic axis none can be 0.
            row["x"] = max((stretch["from"] + stretch["to"]) / 2, 0.5)
            rows.append(row)
    if not rows:
        return None
    places = [row["x"] for row in rows]
    wide = kind == "by_distance" and panels.is_wide(places)
    x_ends = panels.domain(places, wide) if wide else (0.0, max(row["to"] for row in rows))
    y_ends = panels.domain([row[key] for row in rows for key in ("y", "low", "high") if key in row])
    if value == "accuracy":
        y_ends = (max(y_ends[0], -2.0), min(y_ends[1], 102.0))
    axis = alt.Axis(title=f"{_KINDS[kind]} (tokens)", tickCount=5, format="~s" if wide else ",d")
    x = alt.X("x:Q", scale=panels.scale(x_ends, wide), axis=axis)
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
