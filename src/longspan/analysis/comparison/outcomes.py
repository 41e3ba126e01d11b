"""Figures of the results of training: quality against cost, and paired differences between patterns."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from longspan.analysis.comparison import panels
from longspan.analysis.comparison.label_places import Box, beside_points, text_width
from longspan.analysis.comparison.panels import Figure, Look
from longspan.analysis.comparison.quantities import Quantity, qualities, quantities
from longspan.analysis.comparison.series import Series, Setting
from longspan.analysis.comparison.statistics import LEVEL, Estimate, estimate
from longspan.analysis.comparison.tables import difference

COSTS = ("density", "tokens_per_second", "peak_memory")
# With two runs the interval is about 13 times as wide as their difference, and would fill the figure.
_LEAST_FOR_AN_INTERVAL = 3
# The distance in pixels from which a line connects a point and its label.
_LINE_FROM = 14.0


def tradeoffs(setting: Setting, look: Look) -> list[Figure]:
    """Draw each quality against density, speed and peak memory: one figure per quality."""
    known = {quantity.key: quantity for quantity in quantities(setting)}
    figures = []
    for quality in qualities(setting):
        drawn = [
            panel
            for key in COSTS
            if key in known and (panel := _scatter(setting, known[key], quality, look)) is not None
        ]
        if drawn:
            better = "Lower" if quality.lower_is_better else "Higher"
            caption = (
                f"Large: mean over seeds, with its {LEVEL:.0%} confidence interval where there are "
                f"{_LEAST_FOR_AN_INTERVAL} or more. Small: each seed. {better} is better; so is less "
                "density, more speed and less memory."
            )
            title = f"{quality.label.capitalize()} against density, speed and memory"
            figures.append(Figure(f"tradeoffs_{quality.key}", title, caption, tuple(drawn)))
    return figures


def _scatter(setting: Setting, cost: Quantity, quality: Quantity, look: Look) -> alt.LayerChart | None:
    seeds: list[dict[str, Any]] = []
    means: list[dict[str, Any]] = []
    for one in setting.series:
        costs, results = one.values(cost), one.values(quality)
        shared = sorted(costs.keys() & results.keys())
        if not shared:
            continue
        seeds += [
            {
                "series": one.label,
                "seed": seed,
                "x": costs[seed] * cost.scale,
                "y": results[seed] * quality.scale,
            }
            for seed in shared
        ]
        row: dict[str, Any] = {"series": one.label, "n": len(shared)}
        for axis, quantity, values in (("x", cost, costs), ("y", quality, results)):
            mean = estimate([values[seed] for seed in shared])
            assert mean is not None
            row |= _ends(axis, mean, quantity)
        means.append(row)
    if not means:
        return None
    x_values = [row[key] for row in means for key in ("x", "x_low", "x_high") if key in row]
    x_values += [row["x"] for row in seeds]
    y_values = [row[key] for row in means for key in ("y", "y_low", "y_high") if key in row]
    y_values += [row["y"] for row in seeds]
    logarithmic = panels.needs_logarithm(x_values)
    x_ends, y_ends = panels.domain(x_values, logarithmic, 0.1), panels.domain(y_values, pad=0.08)
    _place_labels(means, x_ends, y_ends, logarithmic)
    x = alt.X("x:Q", scale=panels.scale(x_ends, logarithmic), axis=_axis(cost, logarithmic, x_ends))
    y = alt.Y("y:Q", scale=panels.scale(y_ends), axis=alt.Axis(title=quality.title))
    of_means = alt.Chart(panels.data(means))
    tooltip = [
        alt.Tooltip("series:N", title="pattern"),
        alt.Tooltip("x_text:N", title=cost.title),
        alt.Tooltip("y_text:N", title=quality.title),
        alt.Tooltip("n:Q", title="seeds"),
    ]
    layers: list[Any] = []
    intervals = (
        ("y", {"x": x, "y": "y_low:Q", "y2": "y_high:Q"}),
        ("x", {"y": y, "x": "x_low:Q", "x2": "x_high:Q"}),
    )
    for axis, places in intervals:
        rows = [row for row in means if f"{axis}_low" in row]
        if rows:
            layers.append(
                alt.Chart(panels.data(rows))
                .mark_rule(strokeWidth=1.5)
                .encode(**places, color=look.colour(), opacity=panels.opacity(0.7))
            )
    layers.append(
        alt.Chart(panels.data(seeds))
        .mark_point(filled=True, size=16)
        .encode(x=x, y=y, color=look.colour(), opacity=panels.opacity(0.45))
    )
    layers.append(
        of_means.mark_point(filled=True, size=95).encode(
            x=x, y=y, color=look.colour(), shape=look.shape(), tooltip=tooltip, opacity=panels.opacity(1.0)
        )
    )
    with_line = [row for row in means if "line_x" in row]
    if with_line:
        layers.append(
            alt.Chart(panels.data(with_line))
            .mark_rule(strokeWidth=1)
            .encode(x=x, y=y, x2="line_x:Q", y2="label_y:Q", color=look.colour(), opacity=panels.opacity(0.6))
        )
    layers.append(
        of_means.mark_text(align="left", baseline="middle").encode(
            x=alt.X("label_x:Q", scale=panels.scale(x_ends, logarithmic)),
            y=alt.Y("label_y:Q", scale=panels.scale(y_ends)),
            text="series:N",
            opacity=panels.opacity(1.0),
        )
    )
    return panels.layered(layers)


def _ends(axis: str, mean: Estimate, quantity: Quantity) -> dict[str, Any]:
    """Return the mean, its text and, for enough seeds, the ends of its interval, under keys of the axis."""
    row: dict[str, Any] = {axis: mean.mean * quantity.scale, f"{axis}_text": quantity.write_estimate(mean)}
    if mean.n >= _LEAST_FOR_AN_INTERVAL and mean.half:
        assert mean.low is not None
        assert mean.high is not None
        row |= {f"{axis}_low": mean.low * quantity.scale, f"{axis}_high": mean.high * quantity.scale}
    return row


def _axis(quantity: Quantity, logarithmic: bool, ends: tuple[float, float]) -> alt.Axis:
    if not logarithmic:
        return alt.Axis(title=quantity.title, tickCount=5)
    # Vega labels only powers of ten, and a short axis has at most one of them.
    steps = [1, 2, 5] if ends[1] / ends[0] < 1000 else [1]
    powers = range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    shown = [tick for tick in ticks if ends[0] <= tick <= ends[1]]
    return alt.Axis(title=f"{quantity.title}, logarithmic", values=shown, format="~r")


def _place_labels(
    means: list[dict[str, Any]], x_ends: tuple[float, float], y_ends: tuple[float, float], logarithmic: bool
) -> None:
    """Add the place of the label to each row, in the units of the axes, and the end of a line to it."""
    to_axis = math.log if logarithmic else float
    from_axis = math.exp if logarithmic else float
    left, right = to_axis(x_ends[0]), to_axis(x_ends[1])
    per_x, per_y = (right - left) / panels.WIDTH, (y_ends[1] - y_ends[0]) / panels.HEIGHT

    def across(value: float) -> float:
        return (to_axis(value) - left) / per_x

    def down(value: float) -> float:
        return (y_ends[1] - value) / per_y

    points = [(across(row["x"]), down(row["y"])) for row in means]
    intervals = [
        Box(x - 1, down(row["y_high"]), x + 1, down(row["y_low"]))
        for row, (x, _) in zip(means, points, strict=True)
        if "y_low" in row
    ] + [
        Box(across(row["x_low"]), y - 1, across(row["x_high"]), y + 1)
        for row, (_, y) in zip(means, points, strict=True)
        if "x_low" in row
    ]
    labels = [row["series"] for row in means]
    places = beside_points(points, labels, panels.WIDTH, panels.HEIGHT, intervals)
    for row, (x, y), (point_x, point_y) in zip(means, places, points, strict=True):
        row["label_x"] = from_axis(left + x * per_x)
        row["label_y"] = y_ends[1] - y * per_y
        # A line connects the point with the nearest end of a distant label.
        size = text_width(row["series"])
        end = min(max(point_x, x - 2), x + size + 2)
        if math.hypot(end - point_x, y - point_y) > _LINE_FROM:
            row["line_x"] = from_axis(left + end * per_x)


def differences(setting: Setting, look: Look, baseline: Series | None) -> Figure | None:
    """Draw the paired differences of each series to the baseline, in every quality."""
    if baseline is None or len(setting.series) < 2:
        return None
    drawn = [
        panel
        for quality in qualities(setting)
        if (panel := _forest(setting, quality, look, baseline)) is not None
    ]
    if not drawn:
        return None
    caption = (
        f"Mean over shared seeds of the difference to {baseline.label} at the same seed, with the "
        f"{LEVEL:.0%} confidence interval of the paired t test; no interval from one seed. Ticks: each seed. "
        "Intervals are not corrected for the number of patterns."
    )
    return Figure("differences", f"Paired differences to {baseline.label}", caption, tuple(drawn))


def _forest(setting: Setting, quality: Quantity, look: Look, baseline: Series) -> alt.LayerChart | None:
    rows: list[dict[str, Any]] = []
    ticks: list[dict[str, Any]] = []
    of_baseline = baseline.values(quality)
    for one in setting.series:
        mean = None if one is baseline else difference(quality, one, baseline)
        if mean is None:
            continue
        row: dict[str, Any] = {
            "series": one.label,
            "x": mean.mean * quality.scale,
            "n": mean.n,
            "text": quality.write_estimate(mean, sign=True) + ("*" if mean.excludes_zero else ""),
        }
        if mean.low is not None and mean.high is not None:
            row |= {"low": mean.low * quality.scale, "high": mean.high * quality.scale}
        rows.append(row)
        ticks += [
            {"series": one.label, "seed": seed, "x": (value - of_baseline[seed]) * quality.scale}
            for seed, value in one.values(quality).items()
            if seed in of_baseline
        ]
    if not rows:
        return None
    rows.sort(key=lambda row: row["x"], reverse=quality.lower_is_better is False)
    ends = panels.domain(
        [
            0.0,
            *(row[key] for row in rows for key in ("x", "low", "high") if key in row),
            *(t["x"] for t in ticks),
        ]
    )
    order = [row["series"] for row in rows]
    better = "left" if quality.lower_is_better else "right"
    title = f"{quality.label} less that of {baseline.label}" + (f" ({quality.unit})" if quality.unit else "")
    x = alt.X(
        "x:Q", scale=panels.scale(ends), axis=alt.Axis(title=f"{title}; {better} is better", tickCount=6)
    )
    y = alt.Y("series:N", sort=order, axis=alt.Axis(title=None, domain=False, ticks=False, labelLimit=240))
    base = alt.Chart(panels.data(rows)).encode(y=y)
    tooltip = [
        alt.Tooltip("series:N", title="pattern"),
        alt.Tooltip("text:N", title=title),
        alt.Tooltip("n:Q", title="shared seeds"),
    ]
    zero = alt.Chart(panels.data([{"x": 0}])).mark_rule(strokeDash=[4, 3]).encode(x=x)
    layers: list[Any] = [zero]
    with_interval = [row for row in rows if "low" in row]
    if with_interval:
        layers.append(
            alt.Chart(panels.data(with_interval))
            .mark_rule(strokeWidth=2)
            .encode(
                y=y,
                x=alt.X("low:Q", scale=panels.scale(ends)),
                x2="high:Q",
                color=look.colour(),
                opacity=panels.opacity(0.9),
            )
        )
    layers.append(
        alt.Chart(panels.data(ticks))
        .mark_tick(thickness=1.5, size=11)
        .encode(x=x, y=y, color=look.colour(), opacity=panels.opacity(0.6))
    )
    layers.append(
        base.mark_point(filled=True, size=95).encode(
            x=x, color=look.colour(), shape=look.shape(), tooltip=tooltip, opacity=panels.opacity(1.0)
        )
    )
    width = int(panels.WIDTH * 1.4)
    layers.append(
        base.mark_text(align="left", baseline="middle").encode(
            x=alt.value(width + 10), text="text:N", opacity=panels.opacity(1.0)
        )
    )
    return panels.layered(layers, width, max(60, 26 * len(rows)))
