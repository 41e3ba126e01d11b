"""Tables of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plan import ROTARY, Scale, cells, name_of

START, END = "<!-- {}: begin -->", "<!-- {}: end -->"


def _of(records: list[dict[str, Any]], **wanted: Any) -> dict[str, Any] | None:
    for record in records:
        if all(record["cell"].get(key) == value for key, value in wanted.items()):
            return record
    return None


def _bits(record: dict[str, Any] | None, when: str, first: int = 0) -> str:
    """Bits per byte, of all positions or of those from a bucket on."""
    if record is None or when not in record:
        return ""
    by_position = record[when]["by_position"][first:]
    return f"{sum(by_position) / len(by_position):.3f}"


def tables(records: list[dict[str, Any]], scale: Scale) -> str:
    """Write the Markdown of a scale's results."""
    if not records:
        return "Nothing measured yet."
    # In the order of the plan, whatever process came first.
    order = [name_of(cell) for cell in cells(scale)]
    records = sorted(records, key=lambda record: order.index(name_of(record["cell"])))
    last = records[-1]
    short = _of(records, kind="short")
    lines = [
        f"{last['date']}, {last['device']}, torch {last['torch']}, longspan {last['longspan']}"
        + f", {last['threads']} threads.",
        "",
    ]
    if short is not None:
        lines += [
            f"The short model: {scale.architecture}, {scale.objective}, {scale.pretrain:,} steps of "
            f"{scale.tokens:,} bytes in sequences of {scale.trained}; {_bits(short, 'before')} bits per byte "
            "at its own length.",
            "",
        ]
    lines += [
        "Bits per byte at positions that the short model never saw, before and after "
        f"{scale.more} steps at the new length:",
        "",
        "| length | pattern | positions | before | after |",
        "| ---: | --- | --- | ---: | ---: |",
    ]
    for record in records:
        cell = record["cell"]
        if cell["kind"] not in ("extended", "scratch", "untrained"):
            continue
        length = f"{cell['factor'] * scale.trained:,}"
        method = "from scratch" if cell["kind"] == "scratch" else cell["method"]
        bits = " | ".join(_bits(record, when, 1) for when in ("before", "after"))
        lines.append(f"| {length} | {cell['pattern']} | {method} | {bits} |")
    rotary = [_of(records, kind="rotary", method=method) for method in ROTARY]
    short = _of(records, kind="rotary-short")
    if any(rotary):
        known = next(record for record in rotary if record)
        buckets = len(known["before"]["by_position"])
        shown = sorted({0, 1, 2 * buckets // 4, 3 * buckets // 4, buckets - 1})
        heads = " | ".join(f"{place * scale.trained:,} to {(place + 1) * scale.trained:,}" for place in shown)
        lines += [
            "",
            "A Llama, full attention, no training at the new length: bits per byte by position"
            + (f" ({_bits(short, 'before')} at its own length):" if short else ":"),
            "",
            f"| rotary positions | {heads} |",
            "| --- |" + " ---: |" * len(shown),
        ]
        for record in rotary:
            if record:
                values = [f"{record['before']['by_position'][place]:.3f}" for place in shown]
                lines.append(f"| {record['cell']['method']} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def write_tables(records: list[dict[str, Any]], scale: Scale, name: str, folder: Path) -> None:
    """Print the tables, and put them into the README where it has a place for them."""
    text = tables(records, scale)
    print(text)
    readme = folder / "README.md"
    if not readme.exists():
        return
    start, end = START.format(name), END.format(name)
    whole = readme.read_text()
    if start in whole:
        head, _, rest = whole.partition(start)
        tail = rest.partition(end)[2]
        readme.write_text(f"{head}{start}\n{text}\n{end}{tail}")
