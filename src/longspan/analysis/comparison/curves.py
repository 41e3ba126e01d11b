"""Figures of the mean loss over seeds against tokens, seconds of training and floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from longspan.analysis.comparison import panels
from longspan.analysis.comparison.label_places import spread
from longspan.analysis.comparison.panels import Figure, Look
from longspan.analysis.comparison.quantities import in_fitting_unit
from longspan.analysis.comparison.runs import Run
from longspan.analysis.comparison.series import Series, Setting
from longspan.analysis.comparison.statistics import LEVEL, estimate

# The most points that are drawn of a curve.
_POINTS = 200
# The share of a curve before which the y axis need not show it: the steep start would hide differences.
_SHOWN_FROM = 0.35
# Curves of fewer points are shown as a whole.
_LEAST_TO_CUT = 4
_TITLES = {"tokens": "training tokens", "seconds": "time of training"}


def loss_curves(setting: Setting, look: Look) -> tuple[Figure | None, list[str]]:
    """Draw the curves of a setting: of the validation loss if all runs have it, else of the training loss.

    Returns:
        The figure, None without curves; and sentences on the curves that are left out or interpolated.

    """
    finite = [run for run in setting.runs if not _diverged(run, "val")] or setting.runs
    side = "val" if all(len(run.curves.get("val") or []) >= 2 for run in finite) else "train"
    if not any(run.curves.get(side) for run in setting.runs):
        return None, ["No loss curves: the runs have no metrics.csv (logger=csv writes it)."]
    drawn, sentences = [], []
    name = "validation loss" if side == "val" else "training loss"
    diverged = [run.name for run in setting.runs if _diverged(run, side)]
    if diverged:
        sentences.append(f"No finite {name}, so left out of the mean curves: {', '.join(diverged)}.")
    interpolated = [one.label for one in setting.series if _lack_shared_steps(_points(one, side))]
    if interpolated:
        sentences.append(
            f"Runs of {', '.join(interpolated)} were not logged at the same steps: their curves are "
            "interpolated along each axis, up to the end of the shortest."
        )
    for axis in ("tokens", "seconds", "flops"):
        means = {one.label: mean_curve(one, side, axis) for one in setting.series}
        # The remarks already name runs that diverged altogether.
        without = [one.label for one in setting.series if not means[one.label] and _points(one, side)]
        means = {label: curve for label, curve in means.items() if curve}
        if without:
            names = "any run" if not means else ", ".join(without)
            sentences.append(f"Loss against {axis}: not recorded by {names}.")
        if means:
            drawn.append(_panel(means, axis, side, look, labelled=not drawn))
    seeds = max(len(_points(one, side)) for one in setting.series)
    band = f" Bands: {LEVEL:.0%} confidence interval of the mean." if seeds > 2 else ""
    cut = any(len(run.curves.get(side) or []) >= _LEAST_TO_CUT for run in setting.runs)
    steep = " The steep beginning is cut off above." if cut else ""
    caption = f"Mean {name} over seeds at each logged step.{band}{steep} Lower and further left is better."
    if not drawn:
        return None, sentences
    return Figure("loss", f"{name.capitalize()} along training", caption, tuple(drawn)), sentences


def mean_curve(one: Series, side: str, axis: str) -> list[dict[str, float]]:
    """Return the mean curve of a series: mean loss and place on an axis at each step that all runs logged.

    Runs that diverged are left out, as in all means. If the runs share fewer than two steps, as is possible
    with a budget of seconds, their curves are interpolated along the axis before the mean is taken.

    Args:
        one: the series.
        side: "train" or "val".
        axis: "tokens", "seconds" or "flops".

    Returns:
        Points with `x` (in the unit of the axis), `y` (nats per token), `n` (runs), `step` and, for more than
        two runs, the ends `low` and `high` of the confidence interval. The list is empty if a run did not
        record the axis.

    """
    by_run = _points(one, side)
    if not by_run:
        return []
    if _lack_shared_steps(by_run):
        return _interpolated(by_run, axis)
    curve = []
    for step in sorted(set.intersection(*(set(points) for points in by_run))):
        places = [points[step].get(axis) for points in by_run]
        if not any(place is None for place in places):
            curve.append(_mean_point(places, [points[step]["loss"] for points in by_run], step))
    return curve


def _points(one: Series, side: str) -> list[dict[int, dict[str, Any]]]:
    """Return the logged points by step, for each run with a finite loss."""
    runs = [run for run in one.runs.values() if not _diverged(run, side)]
    return [{point["step"]: point for point in run.curves.get(side) or []} for run in runs]


def _diverged(run: Run, side: str) -> bool:
    """Return whether the last loss of a run is not finite, which its result holds as None."""
    return run.result["metrics"].get(f"{side}_loss", 0.0) is None


def _lack_shared_steps(by_run: Sequence[dict[int, Any]]) -> bool:
    """Return whether the runs have curves, but fewer than two steps that all of them logged."""
    if len(by_run) < 2 or any(len(points) < 2 for points in by_run):
        return False
    return len(set.intersection(*(set(points) for points in by_run))) < 2


def _interpolated(by_run: Sequence[dict[int, dict[str, Any]]], axis: str) -> list[dict[str, float]]:
    """Return the mean curve on a grid of an axis, from the last start to the first end of a curve."""
    curves = []
    for points in by_run:
        known = [point for point in points.values() if point.get(axis) is not None]
        if not known:
            return []
        curves.append([[point[key] for point in known] for key in (axis, "loss", "step")])
    first, last = max(places[0] for places, _, _ in curves), min(places[-1] for places, _, _ in curves)
    if first >= last:
        return []
    size = min(_POINTS, max(2, *(len(places) for places, _, _ in curves)))
    grid = np.linspace(first, last, size)
    losses = np.stack([np.interp(grid, places, values) for places, values, _ in curves])
    steps = np.mean([np.interp(grid, places, values) for places, _, values in curves], axis=0)
    return [
        _mean_point([float(place)], losses[:, number].tolist(), round(float(steps[number])))
        for number, place in enumerate(grid)
    ]


def _mean_point(places: Sequence[Any], losses: Sequence[float], step: int) -> dict[str, float]:
    mean = estimate(losses)
    assert mean is not None
    point = {"x": sum(places) / len(places), "y": mean.mean, "n": mean.n, "step": step}
    if mean.n > 2 and mean.low is not None and mean.high is not None:
        point |= {"low": mean.low, "high": mean.high}
    return point


def _panel(
    means: dict[str, list[dict[str, float]]], axis: str, side: str, look: Look, labelled: bool
) -> alt.LayerChart:
    last = max(curve[-1]["x"] for curve in means.values())
    unit, title = _unit(axis, last)
    rows: list[dict[str, Any]] = [
        {**point, "x": point["x"] * unit, "series": label}
        for label, curve in means.items()
        for point in _thinned(curve)
    ]
    # The y axis fits the points after the steep start of each curve; curves end at different places.
    late = [
        point
        for curve in means.values()
        for point in curve
        if point["x"] >= _SHOWN_FROM * curve[-1]["x"] or len(curve) < _LEAST_TO_CUT
    ]
    x_ends = (0.0, last * unit * 1.02)
    y_ends = panels.domain([point[key] for point in late for key in ("y", "low", "high") if key in point])
    name = "validation loss" if side == "val" else "training loss"
    x = alt.X(
        "x:Q", scale=panels.scale(x_ends), axis=alt.Axis(title=title, tickCount=4, labelOverlap="greedy")
    )
    y_scale = panels.scale(y_ends)
    y = alt.Y("y:Q", scale=y_scale, axis=alt.Axis(title=f"{name} (nats/token)"))
    base = alt.Chart(panels.data(rows)).encode(x=x, color=look.colour())
    tooltip = [
        alt.Tooltip("series:N", title="pattern"),
        alt.Tooltip("y:Q", title=name, format=".4f"),
        alt.Tooltip("low:Q", title="from", format=".4f"),
        alt.Tooltip("high:Q", title="to", format=".4f"),
        alt.Tooltip("x:Q", title=title, format=",.4~r"),
        alt.Tooltip("step:Q", title="step", format=","),
        alt.Tooltip("n:Q", title="seeds"),
    ]
    layers: list[Any] = []
    banded = [row for row in rows if "low" in row]
    if banded:
        layers.append(
            alt.Chart(panels.data(banded))
            .mark_area(clip=True, tooltip=None)
            .encode(
                x=x,
                color=look.colour(),
                y=alt.Y("low:Q", scale=y_scale, title=f"{name} (nats/token)"),
                y2="high:Q",
                opacity=panels.band_opacity(),
            )
        )
    layers.append(
        base.mark_line(clip=True, strokeWidth=2, strokeJoin="round").encode(y=y, opacity=panels.opacity(1.0))
    )
    # Large invisible circles show the tooltip when the pointer is near the line.
    layers.append(base.mark_circle(clip=True, size=140, opacity=0).encode(y=y, tooltip=tooltip))
    if labelled:
        layers += _end_labels(means, unit, x, y_scale, y_ends, look)
    return panels.layered(layers)


def _end_labels(
    means: dict[str, list[dict[str, float]]],
    unit: float,
    x: alt.X,
    y_scale: alt.Scale,
    y_ends: tuple[float, float],
    look: Look,
) -> list[Any]:
    """Return labels at the ends of the curves, without overlaps, each with a line to its curve."""
    low, high = y_ends
    per_pixel = (high - low) / panels.HEIGHT
    ends = [curve[-1]["y"] for curve in means.values()]
    places = spread(ends, 13 * per_pixel, low, high)
    rows = [
        {"series": label, "x": curve[-1]["x"] * unit, "end": end, "place": place}
        for (label, curve), end, place in zip(means.items(), ends, places, strict=True)
    ]
    base = alt.Chart(panels.data(rows))
    label_x = panels.WIDTH + 22
    lines = base.mark_rule(strokeWidth=1).encode(
        x=alt.value(panels.WIDTH),
        x2=alt.value(label_x - 4),
        y=alt.Y("end:Q", scale=y_scale),
        y2="place:Q",
        color=look.colour(),
        opacity=panels.opacity(0.8),
    )
    names = base.mark_text(align="left", baseline="middle").encode(
        x=alt.value(label_x),
        y=alt.Y("place:Q", scale=y_scale),
        text="series:N",
        opacity=panels.opacity(1.0),
    )
    return [lines, names]


def _unit(axis: str, largest: float) -> tuple[float, str]:
    """Return the factor to a unit that suits the largest value, and the title of the axis."""
    if axis == "flops":
        size, unit = in_fitting_unit(largest)
        return size, f"floating-point operations ({unit})"
    if axis == "tokens":
        for size, unit in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
            if largest >= size:
                return 1 / size, f"{_TITLES[axis]} ({unit})"
        return 1.0, _TITLES[axis]
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if largest >= 3 * size:
            return 1 / size, f"{_TITLES[axis]} ({unit})"
    return 1.0, f"{_TITLES[axis]} (s)"


def _thinned(curve: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Return at most `_POINTS` points of a curve, with its first and its last one."""
    if len(curve) <= _POINTS:
        return list(curve)
    step = (len(curve) - 1) / (_POINTS - 1)
    return [curve[round(number * step)] for number in range(_POINTS)]
