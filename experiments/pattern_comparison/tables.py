"""Tables and figures of what was trained: the tables go into the README, between its marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longspan.analysis.compare import print_tables
from longspan.analysis.comparison.page import write_page
from longspan.analysis.comparison.remarks import remarks
from longspan.analysis.comparison.runs import Run, read_runs
from longspan.analysis.comparison.series import Setting, sort_runs
from longspan.analysis.comparison.tables import TextTable, baseline_table, results_table

START, END = "<!-- {}: begin -->", "<!-- {}: end -->"
# Figures that the README shows; all of them are on the page.
SHOWN = ("loss", "differences", "tradeoffs_val_loss", "evaluation")


def write_report(results: Path, scale: str, out: Path) -> None:
    """Print the tables, write page and pictures into ``<out>/<scale>``, and the tables into the README."""
    runs, unfinished = read_runs([results])
    settings = sort_runs(runs)
    print_tables(settings, unfinished)
    pictures = write_page(settings, unfinished, out / scale)[1:]
    print(f"The page is {out / scale / 'comparison.html'}")
    readme = out / "README.md"
    start, end = START.format(scale), END.format(scale)
    if readme.exists() and start in (whole := readme.read_text()):
        head, _, rest = whole.partition(start)
        tail = rest.partition(end)[2]
        text = markdown(settings, runs, [f"{scale}/{path.name}" for path in pictures])
        readme.write_text(f"{head}{start}\n{text}\n{end}{tail}")


def markdown(settings: Sequence[Setting], runs: Sequence[Run], pictures: Sequence[str]) -> str:
    """The tables, with the figures' addresses, as Markdown."""
    last = max(runs, key=lambda run: run.result["date"]).result
    model = last["config"]["model"]
    lines = [
        f"{last['date'][:10]}, {last['device']}, torch {last['versions']['torch']}, longspan "
        f"{last['versions']['longspan']}. {len(runs)} runs of {last['steps']:,} steps of "
        f"{last['tokens_per_step']:,} bytes; {model['num_layers']} layers of {model['hidden_size']}, "
        f"{model['num_heads']} heads; blocks of {last['patterns'][0]['block']} tokens.",
        "",
    ]
    for setting in settings:
        lines += [f"### {setting.title}", "", *_table(results_table(setting)), ""]
        baseline = setting.baseline()
        if baseline is not None and len(setting.series) > 1:
            lines += [
                "Paired differences over seeds; a star where the 95 % interval excludes zero:",
                "",
                *_table(baseline_table(setting, baseline)),
                "",
            ]
        for remark in remarks(setting):
            lines += [("**Warning.** " if remark.warning else "") + remark.text, ""]
        for key in SHOWN:
            lines += [
                f"![{setting.title}: {key}]({address})\n"
                for address in pictures
                if address.endswith(f"{setting.key}_{key}.png")
            ]
    return "\n".join(lines).rstrip()


def _table(table: TextTable) -> list[str]:
    """Rows of Markdown; the best of a column is bold."""
    first_number = len(table.headings) - table.numbers
    rule = ["---:" if number >= first_number else ":---" for number in range(len(table.headings))]
    marks = table.marked or (frozenset[int](),) * len(table.rows)
    rows = [
        [f"**{text}**" if number in marked else text.replace("*", r"\*") for number, text in enumerate(row)]
        for row, marked in zip(table.rows, marks, strict=True)
    ]
    return [f"| {' | '.join(row)} |" for row in (list(table.headings), rule, *rows)]
