"""Results as JSON: types that it has alone, and which part of a configuration says nothing of what was run.

Needs no Lightning, so that what only reads results can use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# A job with other ones of these is the same job: they say what is noted of a run and where it lies, and
# change nothing of what it computes. `settings.FREE` is longer: a run may go on with more steps, and is then
# another.
IGNORED = (
    "sweep",
    "output_dir",
    "logger",
    "data.pin_memory",
    "callbacks.best",
    "callbacks.last",
    "callbacks.throughput",
    "callbacks.progress",
)


def plain(value: Any) -> Any:
    """Return `value` in types that JSON has: no NaN, no infinity, no tuple, no path."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
