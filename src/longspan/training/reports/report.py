"""The printed reports: before training, after training, and the comparison of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from longspan.console import UNKNOWN, format_duration
from longspan.training.reports.figures import END, START, lines_of
from longspan.training.reports.lines import decimals, whole


def start_report(record: Mapping[str, Any]) -> RenderableType:
    """Return the report before training, ready to print, from the result of `start_record`."""
    pictures = [Group(Text(title, style="bold"), Text(drawing)) for title, drawing in record["pictures"]]
    title = Text(f"Longspan: {record['name']}", style="bold")
    return Group(title, _two_columns(lines_of(record, START, "start")), Padding(Columns(pictures), (1, 2)))


def end_report(result: Mapping[str, Any]) -> RenderableType:
    """Return the report after training, ready to print, from the result of `collect_result`."""
    title = f"{result['name']}: {result['status']} after {result['steps']:,} steps"
    return Group(Text(title, style="bold"), _two_columns(lines_of(result, END, "end")))


def comparison_table(results: Sequence[Mapping[str, Any]], title: str = "Comparison") -> Table:
    """Return a table that compares runs, a row each, by validation loss; the best is marked with a star.

    A run is called by those of its overrides that not all runs share.

    Args:
        results: what `collect_result` returned, or `read_result` read, for each run.
        title: printed above.

    """
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name, justify in (
        ("run", "left"),
        ("pattern", "left"),
        ("density", "right"),
        ("val loss", "right"),
        ("bits per byte", "right"),
        ("tokens/s", "right"),
        ("time", "right"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    ordered = sorted(results, key=lambda result: _loss(result))
    shared = (
        set.intersection(*(set(result["overrides"]) for result in results)) if len(results) > 1 else set()
    )
    for place, result in enumerate(ordered):
        best = place == 0 and result["metrics"]["val_loss"] is not None
        patterns = result["patterns"]
        table.add_row(
            "*" if best else "",
            Text(" ".join(one for one in result["overrides"] if one not in shared) or result["name"]),
            ", ".join(pattern["name"] for pattern in patterns) or "none",
            ", ".join(f"{pattern['density']:.3f}" for pattern in patterns) or UNKNOWN,
            decimals(result["metrics"]["val_loss"]),
            decimals(result["metrics"]["bits_per_byte"]),
            whole(result["throughput"]["tokens_per_second"]),
            format_duration(result["seconds"]),
            style="bold green" if best else None,
        )
    return table


def _loss(result: Mapping[str, Any]) -> float:
    loss = result["metrics"]["val_loss"]
    return float("inf") if loss is None else loss


def _two_columns(lines: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in lines:
        table.add_row(label, text)
    return table
