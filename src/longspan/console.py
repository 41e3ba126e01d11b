"""What is printed for people: tables and durations."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console, RenderableType

# Wide enough that no path is broken in a log file, where a line has no end.
PLAIN_WIDTH = 240
# How a number that is not known is written.
UNKNOWN = "–"


def print_report(report: RenderableType, file: TextIO | None = None) -> None:
    """Print a report, with colours in a terminal, as plain text elsewhere; to standard output by default."""
    stream = file or sys.stdout
    if stream.isatty():
        Console(file=stream, highlight=False).print(report)
        return
    plain = Console(file=stream, width=PLAIN_WIDTH, highlight=False)
    with plain.capture() as captured:
        plain.print(report)
    # Rich fills every line up to the width.
    stream.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())
    stream.flush()


def format_duration(seconds: float) -> str:
    """Return seconds as `m:ss`, or `h:mm:ss` from an hour on."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
