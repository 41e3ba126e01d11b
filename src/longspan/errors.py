"""Mistakes of a user: one line on the screen, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
    """A mistake in the configuration: its message is for the user and needs no traceback."""


def nearest(wrong: str, options: Iterable[str]) -> str:
    """Return ` (did you mean …?)`, or nothing where no option is near."""
    found = difflib.get_close_matches(wrong, list(options), n=1)
    return f" (did you mean {found[0]}?)" if found else ""
