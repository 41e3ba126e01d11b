"""The tables of README.md, from the lines of speed.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
TITLES = {"bert": "BERT-base, masked", "gpt2": "GPT-2 small, causal"}


def write_tables(lines: Path, readme: Path) -> str:
    """Write the tables between the marks of the README, and return them."""
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    text = tables(rows)
    old = readme.read_text()
    before, after = old.split(BEGIN)[0], old.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    return text


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table a model and mode, a row an attention, a column a length; later lines win."""
    latest = {row["key"]: row for row in rows}.values()
    devices = sorted({f"{row['device']}, torch {row['torch']}, longspan {row['longspan']}" for row in latest})
    dates = sorted({row["date"] for row in latest})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    parts = [
        f"{span}, {'; '.join(devices)}. Each cell: step time, tokens per second, peak memory; "
        "in brackets how many times faster than dense."
    ]
    notes: list[str] = []
    for model in dict.fromkeys(row["model"] for row in latest):
        for mode in dict.fromkeys(row["mode"] for row in latest if row["model"] == model):
            chosen = [row for row in latest if (row["model"], row["mode"]) == (model, mode)]
            parts.append(_table(f"{TITLES[model]}, {mode}", chosen, notes))
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def _table(title: str, rows: list[dict[str, Any]], notes: list[str]) -> str:
    lengths = sorted({row["length"] for row in rows})
    at = {(row["attention"], row["length"]): row for row in rows}
    lines = [
        f"| {title} | " + " | ".join(f"{length:,}" for length in lengths) + " |",
        "| :--- |" + " ---: |" * len(lengths),
    ]
    for attention in dict.fromkeys(row["attention"] for row in rows):
        cells = [_cell(at.get((attention, n)), at.get(("dense", n)), notes) for n in lengths]
        lines.append(f"| {attention.replace(':', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None, dense: dict[str, Any] | None, notes: list[str]) -> str:
    if row is None:
        return ""
    if "error" in row:
        # One note for each way to fail, however often.
        said = "; ".join(f"{name}: {' '.join(text.split())[:160]}" for name, text in row["error"].items())
        note = next((n for n in notes if n.endswith(f" {said}")), None)
        if note is None:
            note = f"{len(notes) + 1}. {said}"
            notes.append(note)
        return f"failed ({note.partition('.')[0]})"
    faster = ""
    if dense is not None and "ms" in dense and row is not dense:
        faster = f" ({dense['ms'] / row['ms']:.1f}x)"
    memory = "" if row["peak_gib"] is None else f", {row['peak_gib']:.1f} GiB"
    return f"{row['ms']:.1f} ms{faster}, {row['tokens_per_second']:,.0f}/s{memory}"
