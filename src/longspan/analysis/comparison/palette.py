"""Colours of the figures, for light and dark backgrounds, which differ for readers with any colour vision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Petroff's ten colours (2021, arXiv:2107.02270), the greys last; DARK has lighter versions of them.
LIGHT = (
    "#3f90da", "#e76300", "#832db6", "#ffa90e", "#bd1f01", "#92dadd", "#a96b59", "#b9ac70", "#717581",
    "#94a4a2",
)  # fmt: skip
DARK = (
    "#5aa5ea", "#f0772b", "#b07be0", "#ffbd45", "#ff6b8b", "#92dadd", "#c79483", "#c9be8b", "#8d92a0",
    "#b3c0be",
)  # fmt: skip
# The baseline has the colour of the text.
BASELINE = {"light": "#1f2328", "dark": "#f0f3f6"}
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")


def colours(labels: Sequence[str], theme: str, baseline: str | None = None) -> list[str]:
    """Return a colour per label: that of the text for the baseline, else the palette's, repeated."""
    palette = {"light": LIGHT, "dark": DARK}[theme]
    others = [label for label in labels if label != baseline]
    return [
        BASELINE[theme] if label == baseline else palette[others.index(label) % len(palette)]
        for label in labels
    ]


def shapes(labels: Sequence[str]) -> list[str]:
    """Return a shape of points per label, so that labels differ by more than colour."""
    return [SHAPES[number % len(SHAPES)] for number in range(len(labels))]


def config(labels: Sequence[str], theme: str, baseline: str | None = None) -> dict[str, Any]:
    """Return the Vega-Lite configuration of a theme; its range "category" holds the colours of the labels."""
    ink = BASELINE[theme]
    faint, muted = ("#d8dee4", "#57606a") if theme == "light" else ("#3d444d", "#9198a1")
    font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
    return {
        "background": None,
        "font": font,
        "range": {"category": colours(labels, theme, baseline)},
        "view": {"stroke": None},
        "text": {"color": ink, "fontSize": 11},
        "rule": {"color": muted},
        "title": {
            "color": ink, "subtitleColor": muted, "anchor": "start", "fontSize": 14, "subtitleFontSize": 11,
        },
        "axis": {
            "labelColor": muted, "titleColor": ink, "gridColor": faint, "domainColor": muted,
            "tickColor": muted, "titleFontWeight": "normal", "titleFontSize": 12, "labelFontSize": 11,
            "gridOpacity": 0.7, "titlePadding": 8, "tickCount": 6,
        },
        "legend": {"labelColor": ink, "titleColor": ink},
    }  # fmt: skip
