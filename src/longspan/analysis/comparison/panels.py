"""What the figures share: their form, the encoding of a series, scales, and the way to a PNG."""

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
# Of the Vega-Lite that altair writes; the page brings along the scripts of this version.
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
# From this on, figures use a logarithmic axis.
_LOGARITHMIC = 5.0
# A series that is not in focus is drawn this faintly.
_FAINT = 0.1


@dataclass(frozen=True)
class Figure:
    """A figure of one or several panels side by side.

    Attributes:
        key: for file names.
        title: what it shows.
        caption: how to read it.
        panels: each of them a chart by itself.
        named: whether the panels say which series is which; the page says so above all figures, and a PNG of
            one that does not gets a legend.

    """

    key: str
    title: str
    caption: str
    panels: tuple[alt.LayerChart, ...]
    named: bool = True


@dataclass(frozen=True)
class Look:
    """How series look in every figure of a comparison.

    Attributes:
        labels: of all series, in the order of the colours.
        baseline: the label that is drawn in the colour of the text.

    """

    labels: tuple[str, ...]
    baseline: str | None

    def colour(self) -> alt.Color:
        """Encode the series as a colour; the theme's configuration says which."""
        scale = alt.Scale(domain=list(self.labels), range="category")  # type: ignore[arg-type]
        return alt.Color("series:N", scale=scale, legend=None)

    def shape(self) -> alt.Shape:
        """Encode the series as a shape."""
        scale = alt.Scale(domain=list(self.labels), range=palette.shapes(self.labels))
        return alt.Shape("series:N", scale=scale, legend=None)


def opacity(full: float) -> Any:
    """Encode what is in focus: the page sets the parameter to a series, or to "" for all of them."""
    return alt.condition("focus == '' || focus == datum.series", alt.value(full), alt.value(full * _FAINT))


def band_opacity() -> Any:
    """Encode the opacity of a confidence band: several over each other are faint, the one in focus is not."""
    return {
        "condition": [
            {"test": "focus == ''", "value": 0.07},
            {"test": "focus == datum.series", "value": 0.25},
        ],
        "value": 0.0,
    }


def data(rows: Sequence[dict[str, Any]]) -> alt.InlineData:
    """Rows as the data of a layer."""
    return alt.InlineData(values=list(rows))


def domain(values: Sequence[float], logarithmic: bool = False, pad: float = 0.06) -> tuple[float, float]:
    """Ends of an axis around some values, a little beyond them."""
    low, high = min(values), max(values)
    if logarithmic:
        factor = max((high / low) ** pad, 1.05)
        return low / factor, high * factor
    room = (high - low) * pad or abs(high) * 0.05 or 1.0
    return low - room, high + room


def is_wide(values: Sequence[float]) -> bool:
    """Whether values need a logarithmic axis: positive, and far apart."""
    return min(values) > 0 and max(values) / min(values) >= _LOGARITHMIC


def scale(ends: tuple[float, float], logarithmic: bool = False) -> alt.Scale:
    """A scale with fixed ends."""
    if logarithmic:
        return alt.Scale(domain=list(ends), type="log", nice=False)
    return alt.Scale(domain=list(ends), nice=False, zero=False)


def layered(layers: Sequence[Any], width: int = WIDTH, height: int = HEIGHT) -> alt.LayerChart:
    """A panel of layers, the first at the back."""
    return alt.LayerChart(layer=list(layers), width=width, height=height)


def specification(chart: Any, look: Look, theme: str | None = None) -> dict[str, Any]:
    """The Vega-Lite specification of a chart, with the parameter `focus`; with a theme, for a picture."""
    made: dict[str, Any] = chart.to_dict()
    made["params"] = [{"name": "focus", "value": ""}, *made.get("params", [])]
    made.pop("config", None)
    if theme is not None:
        made["config"] = palette.config(look.labels, theme, look.baseline) | {"background": "#ffffff"}
        made["padding"] = 16
    return made


def write_png(figure: Figure, look: Look, title: str, path: Path) -> None:
    """Write a figure as a PNG on white ground, with its title and caption above."""
    columns = 2 if len(figure.panels) == 4 else 3
    chart = alt.concat(*figure.panels, columns=columns, spacing=36).properties(
        title=alt.TitleParams(f"{figure.title}: {title}", subtitle=_lines(figure.caption), offset=14)
    )
    made = specification(chart, look, "light")
    if not figure.named:
        legend = {"title": None, "orient": "right", "symbolOpacity": 1, "symbolSize": 90}
        for panel in made["concat"]:
            for layer in panel["layer"]:
                for channel in {"color", "shape"} & set(layer["encoding"]):
                    layer["encoding"][channel]["legend"] = legend
    drawn = Image.open(BytesIO(vl_convert.vegalite_to_png(made, vl_version=VEGA_LITE, scale=2)))
    # Few colours: a palette of them takes a fifth of the space.
    drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def scripts() -> str:
    """The JavaScript that draws specifications: Vega, Vega-Lite and vega-embed, as a script of a page."""
    # A script of a page ends at the first of these, wherever it stands.
    bundle = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]
    return bundle.replace("</script", "<\\/script")


def _lines(text: str, width: int = 150) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
