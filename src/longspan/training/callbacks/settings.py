"""The settings of a run inside its checkpoints, so that a run that goes on with others can be refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl

# Where the settings lie in a checkpoint.
KEY = "settings"

# How long, where and with what arithmetic a run goes on, and what is noted of it, is for the new run to say.
# Everything else is either restored from the checkpoint, whatever the new settings say, or would make it
# another run halfway.
FREE = (
    "trainer",
    "budget",
    "callbacks",
    "logger",
    "output_dir",
    "sweep",
    "ckpt_path",
    "compile",
    "attention_backend",
    "loss_chunk",
    "data.pin_memory",
)

_ABSENT = "nothing"


class KeepSettings(pl.Callback):
    """Writes the settings of a run into each of its checkpoints, as plain types.

    Args:
        settings: the resolved configuration.

    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = plain(settings)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the settings."""
        checkpoint[KEY] = self.settings


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in types that JSON has, which torch.load reads with weights_only=True."""
    return json.loads(json.dumps(settings, default=str))


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which settings differ that may not, as `optimizer.lr: 0.003 before, 0.001 now`.

    Where a part is made of another `_target_`, that is said, and nothing of its arguments.

    Args:
        before: the settings that a checkpoint holds.
        now: those of the run that is to go on from it.

    """
    return list(_changes(plain(before), plain(now), ""))


def _changes(before: Any, now: Any, where: str) -> Iterator[str]:
    if where in FREE or before == now:
        return
    if before == _ABSENT and now in (None, {}):
        # A key that was not known yet, and which says nothing.
        return
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        yield f"{where}: {before!r} before, {now!r} now"
    elif before.get("_target_") != now.get("_target_"):
        yield f"{where}: {before.get('_target_', _ABSENT)} before, {now.get('_target_', _ABSENT)} now"
    else:
        for key in dict.fromkeys([*before, *now]):
            name = f"{where}.{key}" if where else key
            yield from _changes(before.get(key, _ABSENT), now.get(key, _ABSENT), name)
