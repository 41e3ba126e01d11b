"""The common parts of all figures: data types, encoding of a series, scales, and export to PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from PIL import Image

from longspan.analysis.comparison import palette

WIDTH, HEIGHT = 296, 260
# The version of Vega-Lite that altair writes; the page holds the scripts of this version.
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
# The ratio of largest to smallest value from which an axis is logarithmic.
_LOGARITHMIC = 5.0
# Factor of the opacity of a series that is not in focus.
_FAINT = 0.1


@dataclass(frozen=True)
class Figure:
    """A figure of one or more panels side by side.

    Attributes:
        key: short name, for file names.
        title: heading of the figure.
        caption: explanation of how to read it.
        panels: one chart per panel.
        named: whether the panels have labels of the series. The page has a legend above all figures; the PNG
            of a figure without labels gets one.

    """

    key: str
    title: str
    caption: str
    panels: tuple[alt.LayerChart, ...]
    named: bool = True


@dataclass(frozen=True)
class Look:
    """Colours and shapes of the series, the same in every figure of a comparison.

    Attributes:
        labels: labels of all series, in the order of the colours.
        baseline: the label with the colour of the text.

    """

    labels: tuple[str, ...]
    baseline: str | None

    def colour(self) -> alt.Color:
        """Encode the series as a colour, which the configuration of the theme gives."""
        scale = alt.Scale(domain=list(self.labels), range="category")  # type: ignore[arg-type]
        return alt.Color("series:N", scale=scale, legend=None)

    def shape(self) -> alt.Shape:
        """Encode the series as a shape."""
        scale = alt.Scale(domain=list(self.labels), range=palette.shapes(self.labels))
        return alt.Shape("series:N", scale=scale, legend=None)


def opacity(full: float) -> Any:
    """Encode opacity: `full` for the series in focus. The page sets `focus` to a series, or to "" for all."""
    return alt.condition("focus == '' || focus == datum.series", alt.value(full), alt.value(full * _FAINT))


def band_opacity() -> Any:
    """Encode the opacity of a confidence band: low if all are shown, higher for the series in focus."""
    return {
        "condition": [
            {"test": "focus == ''", "value": 0.07},
            {"test": "focus == datum.series", "value": 0.25},
        ],
        "value": 0.0,
    }


def data(rows: Sequence[dict[str, Any]]) -> alt.InlineData:
    """Return rows as the data of a layer."""
    return alt.InlineData(values=list(rows))


def domain(values: Sequence[float], logarithmic: bool = False, pad: float = 0.06) -> tuple[float, float]:
    """Return the ends of an axis: the range of the values, extended by the share `pad` on both sides."""
    low, high = min(values), max(values)
    if logarithmic:
        factor = max((high / low) ** pad, 1.05)
        return low / factor, high * factor
    room = (high - low) * pad or abs(high) * 0.05 or 1.0
    return low - room, high + room


def needs_logarithm(values: Sequence[float]) -> bool:
    """Return whether values need a logarithmic axis: all positive, and far apart."""
    return min(values) > 0 and max(values) / min(values) >= _LOGARITHMIC


def scale(ends: tuple[float, float], logarithmic: bool = False) -> alt.Scale:
    """Return a scale with fixed ends."""
    if logarithmic:
        return alt.Scale(domain=list(ends), type="log", nice=False)
    return alt.Scale(domain=list(ends), nice=False, zero=False)


def layered(layers: Sequence[Any], width: int = WIDTH, height: int = HEIGHT) -> alt.LayerChart:
    """Return a panel of layers, the first one at the back; width and height in pixels."""
    return alt.LayerChart(layer=list(layers), width=width, height=height)


def specification(chart: Any, look: Look, theme: str | None = None) -> dict[str, Any]:
    """Return the Vega-Lite specification of a chart with the parameter `focus`.

    With a theme it also has the configuration of a picture: colours, a white background and padding.
    """
    vega: dict[str, Any] = chart.to_dict()
    vega["params"] = [{"name": "focus", "value": ""}, *vega.get("params", [])]
    vega.pop("config", None)
    if theme is not None:
        vega["config"] = palette.config(look.labels, theme, look.baseline) | {"background": "#ffffff"}
        vega["padding"] = 16
    return vega


def write_png(figure: Figure, look: Look, title: str, path: Path) -> None:
    """Write a figure as a PNG with a white background, title and caption above."""
    columns = 2 if len(figure.panels) == 4 else 3
    chart = alt.concat(*figure.panels, columns=columns, spacing=36).properties(
        title=alt.TitleParams(f"{figure.title}: {title}", subtitle=_lines(figure.caption), offset=14)
    )
    vega = specification(chart, look, "light")
    if not figure.named:
        legend = {"title": None, "orient": "right", "symbolOpacity": 1, "symbolSize": 90}
        for panel in vega["concat"]:
            for layer in panel["layer"]:
                for channel in {"color", "shape"} & set(layer["encoding"]):
                    layer["encoding"][channel]["legend"] = legend
    image = Image.open(BytesIO(vl_convert.vegalite_to_png(vega, vl_version=VEGA_LITE, scale=2)))
    # The figures have few colours: with a palette, a file takes a fifth of the space.
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def scripts() -> str:
    """Return the JavaScript of Vega, Vega-Lite and vega-embed, for a script element of the page."""
    # "</script" would end the element, even within a string of the code.
    bundle = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]
    return bundle.replace("</script", "<\\/script")


def _lines(text: str, width: int = 150) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
