"""Validation by position, by distance, and by the cells of a task: evaluation.json in the run's directory."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from longspan.data.objective import IGNORE
from longspan.data.repeats import last_occurrence
from longspan.records.jsonable import to_jsonable
from longspan.records.run_folder import EVALUATION_FILE
from longspan.training.chunked_loss import TokenScores


class Evaluation(pl.Callback):
    """Divides the figures of each validation; those of the last one are `<run_dir>/evaluation.json`.

    The file holds `step`, `ngram`, and lists of buckets: `by_position` (stretches of the sequence),
    `by_distance` (0, 1, 2 to 3, 4 to 7, … tokens) and, for a task that has cells, `by_cell`. A bucket has
    `from` and `to` (half open; in a cell its own keys instead), `loss` in nats a token, `accuracy` and
    `scored`, the number of scored tokens, from which the first two are sums divided once, over all batches
    and processes. Buckets without a scored token are left out; a loss that is not finite is null.

    Distance is how many tokens back a position has to look. Of a task it is that to the token that holds the
    answer. Of language modelling it is that to the last place where the text had the same `ngram` tokens, the
    predicted one last: there the answer was written, and a model that attends it can copy. Tokens without
    such a place are in no bucket.

    Args:
        run_dir: the run's directory.
        position_buckets: stretches of equal length; fewer where the sequence is shorter.
        ngram: tokens of the n-gram of language modelling.

    Raises:
        ValueError: a number under 1.

    """

    def __init__(self, run_dir: str, position_buckets: int = 16, ngram: int = 8) -> None:
        for name, value in (("position_buckets", position_buckets), ("ngram", ngram)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.path = Path(run_dir) / EVALUATION_FILE
        self.position_buckets = position_buckets
        self.ngram = ngram
        self.written = False
        # Sums for each position, each distance and each cell: [3, ...] of nats, right and scored tokens.
        self._sums: dict[str, Tensor] = {}

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the sums."""
        self._sums = {
            name: torch.zeros(3, 0, dtype=torch.float64) for name in ("position", "distance", "cell")
        }

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        scores = TokenScores(*(value.cpu() for value in outputs["scores"]))
        batch = {name: value.cpu() for name, value in batch.items() if isinstance(value, Tensor)}
        length = batch["labels"].shape[1]
        self._add("position", scores.positions % length, scores, length)
        objective: Any = pl_module.objective
        distances = distances_of(batch, objective.causal, self.ngram).flatten()[scores.positions]
        self._add("distance", distances, scores, length + 1)
        cells = getattr(trainer.datamodule, "cells", ())  # type: ignore[attr-defined]
        if cells:
            self._add("cell", batch["cells"][scores.positions // length], scores, len(cells))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file; every process gives its sums."""
        sums = {name: self._of_all(trainer, pl_module, value) for name, value in self._sums.items()}
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        length = sums["position"].shape[1]
        width = max(1, -(-length // self.position_buckets))
        found: dict[str, Any] = {
            "step": trainer.global_step,
            "ngram": self.ngram,
            "by_position": buckets(sums["position"], [*range(0, length, width), length]),
            "by_distance": buckets(sums["distance"], powers_of_two(sums["distance"].shape[1])),
        }
        cells = getattr(trainer.datamodule, "cells", ())  # type: ignore[attr-defined]
        if cells:
            each = zip(cells, sums["cell"].T.tolist(), strict=True)
            found["by_cell"] = [{**cell, **_figures(*own)} for cell, own in each if own[2]]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".tmp")
        # The loss of a run that diverged is no number that JSON has.
        text = json.dumps(to_jsonable(found), indent=1, allow_nan=False)
        unfinished.write_text(text + "\n", encoding="utf-8")
        os.replace(unfinished, self.path)
        self.written = True

    def _add(self, name: str, places: Tensor, scores: TokenScores, size: int) -> None:
        sums = self._sums[name]
        if sums.shape[1] < size:
            sums = torch.cat([sums, sums.new_zeros(3, size - sums.shape[1])], dim=1)
        known = places >= 0
        values = torch.stack(
            [scores.nats.double(), scores.correct.double(), torch.ones(len(places)).double()]
        )
        self._sums[name] = sums.index_add(1, places[known], values[:, known])

    @staticmethod
    def _of_all(trainer: pl.Trainer, pl_module: pl.LightningModule, sums: Tensor) -> Tensor:
        if trainer.world_size == 1:
            return sums
        # A process that saw shorter sequences only has fewer places.
        size = torch.tensor(float(sums.shape[1]), device=pl_module.device)
        size = int(trainer.strategy.reduce(size, reduce_op="max"))
        whole = torch.zeros(3, size, dtype=torch.float64, device=pl_module.device)
        whole[:, : sums.shape[1]] = sums.to(pl_module.device)
        return trainer.strategy.reduce(whole, reduce_op="sum").cpu()


def distances_of(batch: dict[str, Tensor], causal: bool, ngram: int) -> Tensor:
    """How many tokens back each position has to look for its label: int64 `[batch, length]`, -1: unknown.

    Args:
        batch: as `Objective.collate` makes it; `distances` are a task's own.
        causal: whether labels are the next tokens, or hidden ones in their own place.
        ngram: tokens of the n-gram that must have come before, the label its last.

    """
    if "distances" in batch:
        return batch["distances"]
    inputs, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    documents = batch["document_ids"].numpy() if "document_ids" in batch else [None] * len(inputs)
    rows = []
    for ids, label, document in zip(inputs, labels, documents, strict=True):
        if causal:
            # The text is one token longer; a last label that is not scored is of no consequence.
            text = np.append(ids, max(int(label[-1]), 0))
            if document is not None:
                document = np.append(document, document[-1])
            source = last_occurrence(text, ngram, document)[1:]
        else:
            source = last_occurrence(np.where(label == IGNORE, ids, label), ngram, document)
        rows.append(np.where(source < 0, -1, np.arange(len(ids)) - source))
    return torch.from_numpy(np.stack(rows))


def powers_of_two(size: int) -> list[int]:
    """The edges 0, 1, 2, 4, … up to the first that is at least `size`."""
    edges = [0, 1]
    while edges[-1] < size:
        edges.append(2 * edges[-1])
    return edges


def buckets(sums: Tensor, edges: list[int]) -> list[dict[str, Any]]:
    """Figures of each stretch between two edges, of sums `[3, places]`; those without a token left out."""
    found = []
    for first, end in pairwise(edges):
        nats, right, scored = sums[:, first:end].sum(1).tolist()
        if scored:
            found.append({"from": first, "to": end, **_figures(nats, right, scored)})
    return found


def _figures(nats: float, right: float, scored: float) -> dict[str, Any]:
    return {"loss": nats / scored, "accuracy": right / scored, "scored": int(scored)}
