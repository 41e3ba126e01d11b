"""The settings and the corpus of a run inside its checkpoints, so that a run on others can be refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl

from longspan.records.settings import EXCEPT_ON_RESUME, MAY_CHANGE_ON_RESUME

# Where the settings and the account of the corpus lie in a checkpoint.
SETTINGS_KEY = "settings"
CORPUS_KEY = "corpus"

_ABSENT = "nothing"


class KeepSettings(pl.Callback):
    """Writes the settings of a run into each of its checkpoints, and its corpus's account, as plain types.

    Args:
        settings: the resolved configuration.
        corpus: the account of the corpus, as `CorpusInfo.to_dict` gives it: the files that the settings name
            may be other ones by the time that the run goes on.

    """

    def __init__(self, settings: Mapping[str, Any], corpus: Mapping[str, Any]) -> None:
        self.settings = plain(settings)
        self.corpus = plain(corpus)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the settings and the account."""
        checkpoint[SETTINGS_KEY] = self.settings
        checkpoint[CORPUS_KEY] = self.corpus


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


def changed_corpus(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which sides of a corpus hold other documents, as `train: sha256 1a… before, 2b… now`.

    What has no digest, as a stream or the texts of a task, is not compared: it is what the settings say.

    Args:
        before: the account of the corpus that a checkpoint holds.
        now: that of the run that is to go on from it.

    """
    digests = {side: (before[side]["sha256"], now[side]["sha256"]) for side in ("train", "validation")}
    return [
        f"{side}: sha256 {old} before, {new} now"
        for side, (old, new) in digests.items()
        if None not in (old, new) and old != new
    ]


def _changes(before: Any, now: Any, where: str) -> Iterator[str]:
    if where in MAY_CHANGE_ON_RESUME:
        for name, default in EXCEPT_ON_RESUME.items():
            part, _, key = name.partition(".")
            if part == where:
                old, new = _value(before, key, default), _value(now, key, default)
                if old != new:
                    yield f"{name}: {old!r} before, {new!r} now"
        return
    if before == now:
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


def _value(settings: Any, key: str, default: Any) -> Any:
    return settings.get(key, default) if isinstance(settings, Mapping) else default
