"""The record of a run before and after training, and result.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longspan.records.jsonable import to_jsonable
from longspan.records.run_folder import RESULT_FILE
from longspan.training.build import Run
from longspan.training.reports.figures import END, START, record_of


def start_record(run: Run) -> dict[str, Any]:
    """Return what is known of a run before it starts: `longspan.training.reports.figures.START`."""
    return record_of(run, START)


def collect_result(record: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Return the results of a run and all facts that describe it, in plain types.

    Args:
        record: what `start_record` returned before the run started; a schedule may since have changed the
            model.
        run: the run, which has ended.

    Returns:
        The figures of `longspan.training.reports.figures`, where each key is described, but those that are
        not `in_result`. A figure that is not known is None.

    """
    result = {**record, **record_of(run, END)}
    result["metrics"] = {**record["metrics"], **result["metrics"]}
    for figure in START:
        if not figure.in_result:
            result.pop(figure.key.partition(".")[0], None)
    return result


def write_result(result: Mapping[str, Any], run_dir: str | Path) -> Path:
    """Write a result to `result.json` in `run_dir` and return the path; a reader never sees half a file."""
    path = Path(run_dir) / RESULT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(to_jsonable(result), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path
