"""The files that a run and a sweep leave in their folders: their names, and reading a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Of a run.
RESULT_FILE = "result.json"
METRICS_FILE = "metrics.csv"
EVALUATION_FILE = "evaluation.json"
CHECKPOINTS_FOLDER = "checkpoints"
# Of a job of a sweep that ended without a result.
FAILURE_FILE = "failure.json"
# Of a sweep: its closing table, and the folders of the jobs that the last command asked for.
TABLE_FILE = "comparison.txt"
JOBS_FILE = "jobs.json"


def read_result(path: str | Path) -> dict[str, Any]:
    """Read the `result.json` of a run, given the file or the run's folder."""
    path = Path(path)
    return json.loads((path / RESULT_FILE if path.is_dir() else path).read_text(encoding="utf-8"))
