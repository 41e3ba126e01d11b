"""Compare runs by the files in their folders: ``python -m longspan.analysis.compare PATH… [--out DIR]``.

A PATH is the folder of a run, of a sweep, or of many of them, searched to any depth; or a file that
``--collect`` wrote. The command prints a table of means over seeds with confidence intervals, and writes
``comparison.html``, one page that needs no network, and its figures as PNGs. It needs no account and no
server.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from longspan.analysis.comparison.remarks import remarks
from longspan.analysis.comparison.runs import NoRuns, Run, Unfinished, read_runs, write_runs
from longspan.analysis.comparison.series import Setting, sort_runs
from longspan.analysis.comparison.tables import TextTable, baseline_table, results_table
from longspan.console import print_report

INTERVALS = (
    "± is half of the 95 % confidence interval over seeds (Student's t); bold is the best mean. A star marks "
    "a paired difference whose interval excludes zero; intervals are not corrected for the number of "
    "comparisons."
)


def compare(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    baseline: str | None = None,
    file: TextIO | None = None,
    pages: bool = True,
) -> list[Path]:
    """Print the comparison of the runs below the paths, and write its page and pictures.

    Args:
        paths: paths for `longspan.analysis.comparison.runs.read_runs`.
        out: folder of the page and the pictures; default: `comparison` in the first path that is a folder,
            otherwise in the working directory.
        baseline: label of the series of reference; None for "dense", if there is one.
        file: stream to print to; standard output by default.
        pages: whether to write the page and the pictures.

    Returns:
        The written files, the page first.

    Raises:
        NoRuns: a path has no run, or no run has finished.
        ValueError: no series has that label.

    """
    runs, unfinished = read_runs(paths)
    settings = sort_finished_runs(runs, unfinished)
    labels = list(dict.fromkeys(one.label for setting in settings for one in setting.series))
    if baseline is not None and baseline not in labels:
        raise ValueError(f"baseline must be one of {', '.join(labels)}, got {baseline!r}")
    print_tables(settings, unfinished, baseline, file)
    if not pages:
        return []
    # Imported late, since the tables need no plotting libraries.
    from longspan.analysis.comparison.page import write_page

    folder = Path(out) if out is not None else _beside(paths)
    return write_page(settings, unfinished, folder, baseline)


def sort_finished_runs(runs: Sequence[Run], unfinished: Sequence[Unfinished]) -> list[Setting]:
    """Sort the runs; raise NoRuns if none has finished, with the reason for each."""
    if not runs:
        reasons = "".join(f"\n  {one.name}: {one.reason}" for one in unfinished)
        raise NoRuns(f"no run has finished, so there is nothing to compare:{reasons}")
    return sort_runs(runs)


def print_tables(
    settings: Sequence[Setting],
    unfinished: Sequence[Unfinished] = (),
    baseline: str | None = None,
    file: TextIO | None = None,
) -> None:
    """Print the tables of a comparison, with colours in a terminal, as plain text elsewhere."""
    parts: list[RenderableType] = []
    for setting in settings:
        parts.append(_table(results_table(setting), setting.title))
        reference = setting.baseline(baseline)
        if reference is not None and len(setting.series) > 1:
            title = f"Paired differences to {reference.label}"
            parts.append(_table(baseline_table(setting, reference), title))
        for remark in remarks(setting):
            # Text has no markup: a path may contain brackets.
            label, style = ("warning: ", "yellow") if remark.warning else ("", "dim")
            parts.append(Text(label + remark.text, style))
        parts.append(Text())
    parts += [Text(f"not compared: {run.name}: {run.reason}", style="yellow") for run in unfinished]
    parts.append(Text(INTERVALS, style="dim"))
    print_report(Group(*parts), file)


def _table(table: TextTable, title: str) -> Table:
    drawn = Table(title=Text(title, style="bold"), title_justify="left")
    first_number = len(table.headings) - table.numbers
    for number, heading in enumerate(table.headings):
        drawn.add_column(
            Text(heading), justify="right" if number >= first_number else "left", overflow="fold"
        )
    marks = table.marked or (frozenset[int](),) * len(table.rows)
    for row, marked in zip(table.rows, marks, strict=True):
        drawn.add_row(
            *(Text(text, "bold green" if number in marked else "") for number, text in enumerate(row))
        )
    return drawn


def _beside(paths: Sequence[str | Path]) -> Path:
    folder = next((Path(path) for path in paths if Path(path).is_dir()), Path())
    return folder / "comparison"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit with status 1 and a message if there is nothing to compare."""
    parser = argparse.ArgumentParser(prog="python -m longspan.analysis.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="folder of runs or of a sweep, or a file of runs"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the page and its pictures")
    parser.add_argument(
        "--baseline", metavar="PATTERN", help="label of the series of reference; default: dense"
    )
    parser.add_argument("--collect", type=Path, metavar="FILE",
                        help="write the runs into one small file too, which this command reads")  # fmt: skip
    parser.add_argument("--table", action="store_true", help="print the tables and write no page")
    options = parser.parse_args(arguments)
    try:
        if options.collect:
            write_runs(read_runs(options.paths)[0], options.collect)
        written = compare(options.paths, options.out, options.baseline, pages=not options.table)
    except (OSError, ValueError) as error:
        print(f"longspan: {error}", file=sys.stderr)
        sys.exit(1)
    if written:
        print(f"The page is {written[0]}; beside it are {len(written) - 1} pictures")


if __name__ == "__main__":
    main()
