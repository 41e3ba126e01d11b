"""The settings and the corpus of a run inside its checkpoints, to refuse a run with other ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl

from longspan.records.jsonable import to_jsonable
from longspan.records.settings import EXCEPT_ON_RESUME, MAY_CHANGE_ON_RESUME

# The keys of the settings and of the account of the corpus in a checkpoint.
SETTINGS_KEY = "settings"
CORPUS_KEY = "corpus"

_ABSENT = "nothing"


class KeepSettings(pl.Callback):
    """Writes the settings of a run and the account of its corpus into each of its checkpoints.

    Args:
        settings: the resolved configuration.
        corpus: the account of the corpus, as `CorpusInfo.to_dict` returns it. The settings name files, and
            the files may have changed when the run resumes.

    """

    def __init__(self, settings: Mapping[str, Any], corpus: Mapping[str, Any]) -> None:
        # Plain types, which torch.load reads with weights_only=True.
        self.settings = to_jsonable(settings)
        self.corpus = to_jsonable(corpus)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the settings and the account."""
        checkpoint[SETTINGS_KEY] = self.settings
        checkpoint[CORPUS_KEY] = self.corpus


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ and may not, as `optimizer.lr: 0.003 before, 0.001 now`.

    Of a part with another `_target_` the targets are returned and none of the arguments.

    Args:
        before: the settings in a checkpoint.
        now: the settings of the run that is to resume from it.

    """
    return list(_changes(to_jsonable(before), to_jsonable(now), ""))


def changed_corpus(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the sides of a corpus that hold other documents, as `train: sha256 1a… before, 2b… now`.

    A stream and the texts of a task have no digest: the settings alone identify them.

    Args:
        before: the account of the corpus in a checkpoint.
        now: the account of the run that is to resume from it.

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
