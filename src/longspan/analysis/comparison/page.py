"""The page of a comparison: one HTML file that holds figures, pictures and scripts, and a PNG per figure."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2

from longspan.analysis.comparison import palette, panels
from longspan.analysis.comparison.curves import loss_curves
from longspan.analysis.comparison.evaluations import evaluation_figure
from longspan.analysis.comparison.outcomes import differences, tradeoffs
from longspan.analysis.comparison.panels import Figure, Look
from longspan.analysis.comparison.quantities import qualities
from longspan.analysis.comparison.remarks import Remark, remarks
from longspan.analysis.comparison.runs import Unfinished
from longspan.analysis.comparison.series import DENSE, Series, Setting
from longspan.analysis.comparison.tables import (
    TextTable,
    baseline_table,
    configuration_table,
    differences_table,
    results_table,
    runs_table,
    settings_table,
)
from longspan.sparsity import from_dict

PAGE = "comparison.html"


@dataclass(frozen=True)
class Section:
    """The content of the page for one setting."""

    key: str
    title: str
    remarks: list[Remark]
    results: TextTable
    baseline: TextTable | None
    pairs: list[TextTable]
    figures: list[Figure]
    pictures: list[tuple[str, str]]
    configurations: TextTable


def write_page(
    settings: Sequence[Setting],
    unfinished: Sequence[Unfinished],
    folder: Path,
    baseline: str | None = None,
) -> list[Path]:
    """Write the page and a PNG of each figure into a folder.

    Args:
        settings: the compared settings.
        unfinished: runs that the page lists as not compared.
        folder: folder of the files; it is created if it is missing.
        baseline: label of the series of reference; None for "dense", if there is one.

    Returns:
        The written files, the page first.

    """
    folder.mkdir(parents=True, exist_ok=True)
    labels = dict.fromkeys(one.label for setting in settings for one in setting.series)
    ordered = tuple(sorted(labels, key=lambda label: (label != DENSE, label)))
    look = Look(ordered, baseline or (DENSE if DENSE in labels else None))
    sections, written = [], []
    for setting in settings:
        section = _section(setting, look, setting.baseline(baseline))
        sections.append(section)
        for figure in section.figures:
            path = folder / f"{setting.key}_{figure.key}.png"
            panels.write_png(figure, look, setting.title, path)
            written.append(path)
    page = folder / PAGE
    page.write_text(render(sections, settings, unfinished, look), encoding="utf-8")
    return [page, *written]


def render(
    sections: Sequence[Section], settings: Sequence[Setting], unfinished: Sequence[Unfinished], look: Look
) -> str:
    """Return the page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = {
        f"{section.key}-{figure.key}-{number}": panels.specification(panel, look)
        for section in sections
        for figure in section.figures
        for number, panel in enumerate(figure.panels)
    }
    themes = {theme: palette.config(look.labels, theme, look.baseline) for theme in ("light", "dark")}
    return environment.get_template("page.html").render(
        sections=sections,
        labels=look.labels,
        colours={theme: palette.colours(look.labels, theme, look.baseline) for theme in themes},
        runs=sum(len(setting.runs) for setting in settings),
        between=settings_table(settings),
        run_list=runs_table(settings),
        unfinished=unfinished,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        charts=_for_script(charts),
        themes=_for_script(themes),
        scripts=panels.scripts(),
    )


def _section(setting: Setting, look: Look, baseline: Series | None) -> Section:
    curves, missing = loss_curves(setting, look)
    figures = [
        curves,
        differences(setting, look, baseline),
        *tradeoffs(setting, look),
        evaluation_figure(setting, look),
    ]
    several = len(setting.series) > 1
    pictures, not_drawn = _pictures(setting)
    return Section(
        key=setting.key,
        title=setting.title,
        remarks=[*remarks(setting), *(Remark(text, warning=False) for text in (*missing, *not_drawn))],
        results=results_table(setting),
        baseline=baseline_table(setting, baseline) if several and baseline is not None else None,
        pairs=[differences_table(setting, quality) for quality in qualities(setting)] if several else [],
        figures=[figure for figure in figures if figure is not None],
        pictures=pictures,
        configurations=configuration_table(setting),
    )


def _pictures(setting: Setting) -> tuple[list[tuple[str, str]], list[str]]:
    """Return title and data URL of the picture of each pattern, and a sentence per pattern without one."""
    # Imported late, since only pictures of patterns need matplotlib.
    from longspan.analysis.picture import draw_pattern

    pictures: list[tuple[str, str]] = []
    missing: dict[str, None] = {}
    for one in setting.series:
        run = next(iter(one.runs.values()))
        patterns = run.result.get("patterns") or []
        for pattern in patterns:
            layers = pattern.get("layers")
            title = one.label if len(patterns) == 1 else f"{one.label}: {pattern['name']} ({layers} layers)"
            try:
                layout = from_dict(pattern["config"]).layout(setting.runs[0].result["seq_len"])
            except (KeyError, ValueError) as error:
                missing[f"No picture of {title}: {error}."] = None
                continue
            buffer = BytesIO()
            draw_pattern(layout).savefig(buffer, format="png", dpi=110)
            # Two patterns of a mixture may have the same name and the same number of layers.
            if any(title == other for other, _ in pictures):
                title += f", {sum(other.startswith(title) for other, _ in pictures) + 1}"
            pictures.append((title, "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()))
    return pictures, list(missing)


def _for_script(value: Any) -> str:
    """Return JSON for a script element: with "<" escaped, since "</script" would end the element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
