"""Reads the checkpoint that a run resumes from, and refuses one that does not fit the run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longspan.errors import ConfigError
from longspan.records.jsonable import to_jsonable
from longspan.records.run_folder import CHECKPOINTS_FOLDER
from longspan.records.settings import EXCEPT_ON_RESUME, MAY_CHANGE_ON_RESUME
from longspan.training.build import Run
from longspan.training.callbacks.settings import CORPUS_KEY, SETTINGS_KEY
from longspan.training.callbacks.throughput import Throughput
from longspan.training.checkpoints import resolve_checkpoint
from longspan.training.loggers import CsvLogger

# The value of a missing setting in messages.
_ABSENT = "nothing"


@dataclass(frozen=True)
class Checkpoint:
    """Facts about a checkpoint that are read before its tensors.

    Attributes:
        path: its file.
        step: the optimizer steps before it.
        settings: settings of the run that wrote it; None if it holds none.
        corpus: account of that run's corpus, from `CorpusInfo.to_dict`; None if it holds none.
        seconds: of training, validation not counted, that the run had taken; 0: it did not count them.
        of_this_run: whether the run itself wrote it before it was cut off. Such a checkpoint may be that of
            the end of training: the run's result is still to be written.

    """

    path: Path
    step: int
    settings: Mapping[str, Any] | None = None
    corpus: Mapping[str, Any] | None = None
    seconds: float = 0.0
    of_this_run: bool = False


def read(
    ckpt_path: str | None, output_dir: Path, runs_dir: str | Path | None = None, resume: bool = False
) -> Checkpoint | None:
    """Find the checkpoint that a run resumes from, and read it; None to start from scratch.

    Args:
        ckpt_path: None, "last", "best", or a path; see `longspan.training.checkpoints.resolve_checkpoint`.
        output_dir: the folder of the run.
        runs_dir: the folder with the runs among which "last" and "best" are looked for; None: `output_dir`.
        resume: resume from the last checkpoint in `output_dir` where there is one, whatever `ckpt_path` is.

    Raises:
        ConfigError: there is no such file, or it is no checkpoint of a run.

    """
    of_this_run = resume and (output_dir / CHECKPOINTS_FOLDER / "last.ckpt").is_file()
    try:
        path = resolve_checkpoint("last" if of_this_run else ckpt_path, output_dir, runs_dir or output_dir)
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error
    if path is None:
        return None
    try:
        # Plain types and tensors alone, so that no file runs code; mapped, so that no tensor is read.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        step = state["global_step"]
    except Exception as error:
        raise ConfigError(f"{path} cannot be read as the checkpoint of a run: {error}") from error
    clock = state.get("callbacks", {}).get(Throughput().state_key, {})
    return Checkpoint(
        path=path,
        step=step,
        settings=state.get(SETTINGS_KEY),
        corpus=state.get(CORPUS_KEY),
        seconds=clock.get("seconds", 0.0),
        of_this_run=of_this_run,
    )


def check_settings(checkpoint: Checkpoint | None, settings: Mapping[str, Any]) -> None:
    """Refuse a checkpoint with other settings than the resuming run, before any part is made.

    Raises:
        ConfigError: it is of a run with other settings, or nothing is left of `trainer.max_steps`.

    """
    if checkpoint is None:
        return
    if checkpoint.settings is None:
        warnings.warn(f"{checkpoint.path} holds no settings to compare this run's with", stacklevel=2)
    elif changes := changed_settings(checkpoint.settings, settings):
        raise ConfigError(
            f"{checkpoint.path} is of a run with other settings: {'; '.join(changes)}. Resume with the same "
            f"ones ({', '.join(MAY_CHANGE_ON_RESUME)} may differ, but for {' and '.join(EXCEPT_ON_RESUME)}), "
            "or begin anew without ckpt_path"
        )
    max_steps = settings.get("trainer", {}).get("max_steps")
    if max_steps is not None and 0 <= max_steps <= checkpoint.step and not checkpoint.of_this_run:
        raise ConfigError(
            f"{checkpoint.path} has {checkpoint.step} steps behind it and trainer.max_steps={max_steps}: "
            "nothing is left to train; give a larger trainer.max_steps"
        )


def check_corpus(checkpoint: Checkpoint, corpus: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of a run on other documents: settings name files, not their contents.

    Args:
        checkpoint: one that holds no account of its corpus is not refused.
        corpus: the account of this run's corpus, as `CorpusInfo.to_dict` gives it.

    Raises:
        ConfigError: a digest differs.

    """
    if checkpoint.corpus is not None and (changes := changed_corpus(checkpoint.corpus, corpus)):
        raise ConfigError(
            f"{checkpoint.path} is of a run over another corpus {corpus['name']}: {'; '.join(changes)}. "
            "Resume with the same documents, or begin anew without ckpt_path"
        )


def check_parts(checkpoint: Checkpoint | None, run: Run) -> None:
    """Refuse a checkpoint that does not fit the corpus or the budget of the resuming run.

    Raises:
        ConfigError: it is of a run over other documents, or leaves nothing of the budget.

    """
    if checkpoint is None:
        return
    check_corpus(checkpoint, run.data.corpus_info.to_dict())
    budget = run.budget
    if budget is None or checkpoint.of_this_run:
        return
    if budget.is_spent(checkpoint.step, checkpoint.seconds, run.trainer.max_steps):
        raise ConfigError(
            f"{checkpoint.path} has {checkpoint.step} steps behind it, and a budget of {budget} leaves "
            f"nothing to train; give a larger budget.{budget.unit}"
        )


def drop_later_metrics(checkpoint: Checkpoint | None, run: Run) -> None:
    """Remove the rows after the checkpoint from the run's metrics.csv, since those steps are repeated.

    A run that resumes from the checkpoint of another folder has no such rows.
    """
    if checkpoint is None:
        return
    if checkpoint.path.resolve().parent != (run.output_dir / CHECKPOINTS_FOLDER).resolve():
        return
    for logger in run.loggers:
        if isinstance(logger, CsvLogger):
            logger.keep_until(checkpoint.step)


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ and may not, as `optimizer.lr: 0.003 before, 0.001 now`.

    Of a part with another `_target_` the targets are returned and none of the arguments.

    Args:
        before: the settings in a checkpoint.
        now: the settings of the run that is to resume from it.

    """
    return list(_differences(to_jsonable(before), to_jsonable(now), ""))


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


def _differences(before: Any, now: Any, where: str) -> Iterator[str]:
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
        # The earlier run lacks this key, and it is empty now.
        return
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        yield f"{where}: {before!r} before, {now!r} now"
    elif before.get("_target_") != now.get("_target_"):
        yield f"{where}: {before.get('_target_', _ABSENT)} before, {now.get('_target_', _ABSENT)} now"
    else:
        for key in dict.fromkeys([*before, *now]):
            name = f"{where}.{key}" if where else key
            yield from _differences(before.get(key, _ABSENT), now.get(key, _ABSENT), name)


def _value(settings: Any, key: str, default: Any) -> Any:
    return settings.get(key, default) if isinstance(settings, Mapping) else default
