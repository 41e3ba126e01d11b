"""Sequences that grow while a model trains."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from longspan.data.tasks import Task
from longspan.errors import ConfigError
from longspan.training.callbacks.stages import in_words, spread, stage_at, whole_number


class LengthSchedule(pl.Callback):
    """Cuts the sequences of training into shorter ones; in stages they reach their whole length.

    A model first trains on `start` tokens a sequence; each stage has `factor` times the length of the one
    before. From optimizer step `steps` on (counted from 0) the length is `seq_len`, that of the data. Short
    sequences at the beginning make training cheaper and more stable (Press, Smith and Lewis 2021,
    arXiv:2012.15832; Li, Zhang and He 2022, arXiv:2108.06084).

    The number of tokens of a step stays the same: a batch ``[batch, seq_len]`` becomes
    ``[batch * seq_len / length, length]``, each sequence cut into equal parts that do not attend to each
    other. No token is lost or read twice, the order of the data and the scored tokens are those without the
    schedule, and counts of tokens, budgets of tokens and learning rates keep their meaning. A step costs
    less, by what attention saves; a budget of operations counts each step as one of the whole length.

    Positions restart in each part. Validation has sequences of `seq_len` in every stage. A pattern that is
    not defined for so short a sequence attends it densely, with a warning.

    The stage is a function of the trainer's optimizer step alone, so a run resumes exactly.

    Logged: ``train/seq_len``, the present length.

    Args:
        start: tokens of a sequence at first.
        seq_len: tokens of a sequence at last: `data.seq_len`.
        steps: the optimizer step from which on it is `seq_len`, at least 1.
        factor: from stage to stage, at least 2.

    Raises:
        ValueError: a number is out of its range, or `seq_len` is not `start` times a power of `factor`. When
            training starts, ConfigError: the data have another length, or are a task, in which an answer
            depends on tokens before the cut.

    """

    def __init__(self, start: int, seq_len: int, steps: int, factor: int = 2) -> None:
        lengths = [whole_number("start", start, 1)]
        steps, factor = whole_number("steps", steps, 1), whole_number("factor", factor, 2)
        while lengths[-1] < whole_number("seq_len", seq_len, 1):
            lengths.append(lengths[-1] * factor)
        if lengths[-1] != seq_len:
            raise ValueError(
                f"seq_len must be start times a power of factor, got seq_len={seq_len}, start={start} and "
                f"factor={factor}"
            )
        self.seq_len = seq_len
        self.stages = spread(lengths, steps)

    def length(self, step: int) -> int:
        """Return the tokens of a sequence in an optimizer step."""
        return stage_at(self.stages, step).value

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse data that cannot be cut."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data.seq_len != self.seq_len:
            raise ConfigError(f"schedule: seq_len={self.seq_len} must be data.seq_len, {data.seq_len}")
        if isinstance(getattr(data, "corpus", None), Task):
            raise ConfigError(
                f"schedule: the sequences of the task {data.corpus.name} cannot be cut: an answer may depend "
                "on any token before it"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Cut the batch, in place, and log the length."""
        length = self.length(trainer.global_step)
        cut(batch, length)
        pl_module.log("train/seq_len", float(length), batch_size=1)

    def in_words(self, seq_len: int) -> str:
        """Name the stages; `seq_len` is the length of the data."""
        return f"sequences of {in_words(self.stages, lambda stage: f'{stage.value:,} tokens')}"


def cut(batch: dict[str, Any], length: int) -> None:
    """Cut the sequences of a batch into parts of `length` tokens, in place.

    A tensor ``[batch, tokens]`` becomes ``[batch * tokens / length, length]``; others are left as they are.
    Positions count from the start of the part, or of the document if that is later.

    Args:
        batch: as `longspan.data.Objective.collate` makes it.
        length: divides the tokens of a sequence.

    """
    shape = batch["input_ids"].shape
    if length == shape[1]:
        return
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and value.shape == shape:
            batch[name] = value.reshape(-1, length)
    if "position_ids" in batch:
        counted = torch.arange(length, device=batch["position_ids"].device)
        # In a document that began before the part, positions count from the start of the part.
        batch["position_ids"] = torch.minimum(batch["position_ids"], counted)
