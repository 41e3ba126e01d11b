"""Loss against tokens, seconds of training and floating-point operations: means over seeds."""

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

# Points of a curve to draw.
_POINTS = 200
# The first part of a run falls so far that no other difference would be visible; it is cut off above.
_SHOWN_FROM = 0.35
# Curves of fewer points are shown whole.
_LEAST_TO_CUT = 4
_TITLES = {"tokens": "training tokens", "seconds": "time of training"}


def loss_curves(setting: Setting, look: Look) -> tuple[Figure | None, list[str]]:
    """Draw the curves of a setting; returns them, and sentences on what could not be drawn."""
    sound = [run for run in setting.runs if not _diverged(run, "val")] or setting.runs
    side = "val" if all(len(run.curves.get("val") or []) >= 2 for run in sound) else "train"
    if not any(run.curves.get(side) for run in setting.runs):
        return None, ["No loss curves: the runs have no metrics.csv (logger=csv writes it)."]
    drawn, missing = [], []
    name = "validation loss" if side == "val" else "training loss"
    diverged = [run.name for run in setting.runs if _diverged(run, side)]
    if diverged:
        missing.append(f"No finite {name}, so left out of the mean curves: {', '.join(diverged)}.")
    apart = [one.label for one in setting.series if _are_apart(_points(one, side))]
    if apart:
        missing.append(
            f"Runs of {', '.join(apart)} were not logged at the same steps: their curves are interpolated "
            "along each axis, up to the end of the shortest."
        )
    for axis in ("tokens", "seconds", "flops"):
        means = {one.label: mean_curve(one, side, axis) for one in setting.series}
        # The remarks already name runs that diverged altogether.
        without = [one.label for one in setting.series if not means[one.label] and _points(one, side)]
        means = {label: curve for label, curve in means.items() if curve}
        if without:
            who = "any run" if not means else ", ".join(without)
            missing.append(f"Loss against {axis}: not recorded by {who}.")
        if means:
            drawn.append(_panel(means, axis, side, look, labelled=not drawn))
    seeds = max(len(_points(one, side)) for one in setting.series)
    band = f" Bands: {LEVEL:.0%} confidence interval of the mean." if seeds > 2 else ""
    cut = any(len(run.curves.get(side) or []) >= _LEAST_TO_CUT for run in setting.runs)
    steep = " The steep beginning is cut off above." if cut else ""
    caption = f"Mean {name} over seeds at each logged step.{band}{steep} Lower and further left is better."
    if not drawn:
        return None, missing
    return Figure("loss", f"{name.capitalize()} along training", caption, tuple(drawn)), missing


def mean_curve(one: Series, side: str, axis: str) -> list[dict[str, float]]:
    """Mean loss and mean place on an axis at each step that all runs of a series logged.

    Runs that diverged are left out, as they are of the means. Where the runs share no two steps, as those of
    a budget of seconds may, the mean is that of their curves interpolated along the axis.

    Each point has `x`, `y`, `n`, `step` and, of more than two runs, `low` and `high`; the list is empty where
    a run did not record the axis.
    """
    by_run = _points(one, side)
    if not by_run:
        return []
    if _are_apart(by_run):
        return _interpolated(by_run, axis)
    curve = []
    for step in sorted(set.intersection(*(set(points) for points in by_run))):
        places = [points[step].get(axis) for points in by_run]
        if not any(place is None for place in places):
            curve.append(_mean_point(places, [points[step]["loss"] for points in by_run], step))
    return curve


def _points(one: Series, side: str) -> list[dict[int, dict[str, Any]]]:
    """The logged points by step, of each run whose loss is finite."""
    runs = [run for run in one.runs.values() if not _diverged(run, side)]
    return [{point["step"]: point for point in run.curves.get(side) or []} for run in runs]


def _diverged(run: Run, side: str) -> bool:
    """Whether the last loss of a run was no number, which its result has as None."""
    return run.result["metrics"].get(f"{side}_loss", 0.0) is None


def _are_apart(by_run: Sequence[dict[int, Any]]) -> bool:
    """Whether runs have curves, and no two steps at which all of them were logged."""
    if len(by_run) < 2 or any(len(points) < 2 for points in by_run):
        return False
    return len(set.intersection(*(set(points) for points in by_run))) < 2


def _interpolated(by_run: Sequence[dict[int, dict[str, Any]]], axis: str) -> list[dict[str, float]]:
    """Mean of curves on a grid of an axis, from where all of them have begun to where the first one ends."""
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
    found = estimate(losses)
    assert found is not None
    point = {"x": sum(places) / len(places), "y": found.mean, "n": found.n, "step": step}
    if found.n > 2 and found.low is not None and found.high is not None:
        point |= {"low": found.low, "high": found.high}
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
    # What of each curve lies behind its own first part, since curves end at different places.
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
    # Wide and unseen, so that a pointer near the line finds the point.
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
    """Names at the ends of the curves, moved apart, each with a line to its curve."""
    low, high = y_ends
    per_pixel = (high - low) / panels.HEIGHT
    ends = [curve[-1]["y"] for curve in means.values()]
    places = spread(ends, 13 * per_pixel, low, high)
    rows = [
        {"series": label, "x": curve[-1]["x"] * unit, "end": end, "place": place}
        for (label, curve), end, place in zip(means.items(), ends, places, strict=True)
    ]
    base = alt.Chart(panels.data(rows))
    past = panels.WIDTH + 22
    lines = base.mark_rule(strokeWidth=1).encode(
        x=alt.value(panels.WIDTH),
        x2=alt.value(past - 4),
        y=alt.Y("end:Q", scale=y_scale),
        y2="place:Q",
        color=look.colour(),
        opacity=panels.opacity(0.8),
    )
    names = base.mark_text(align="left", baseline="middle").encode(
        x=alt.value(past),
        y=alt.Y("place:Q", scale=y_scale),
        text="series:N",
        opacity=panels.opacity(1.0),
    )
    return [lines, names]


def _unit(axis: str, largest: float) -> tuple[float, str]:
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
    """At most so many points of a curve, its first and its last among them."""
    if len(curve) <= _POINTS:
        return list(curve)
    step = (len(curve) - 1) / (_POINTS - 1)
    return [curve[round(number * step)] for number in range(_POINTS)]
