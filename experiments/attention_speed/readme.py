"""Write a generated table between its markers in a README."""

from __future__ import annotations

from pathlib import Path


def splice(path: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name: begin -->`` and ``<!-- name: end -->``.

    Raises:
        ValueError: the file lacks the markers.

    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    whole = path.read_text()
    if begin not in whole or end not in whole:
        raise ValueError(f"{path} must hold {begin} and {end}")
    before, after = whole.split(begin)[0], whole.split(end)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")
