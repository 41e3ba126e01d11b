"""The LightningModule: a model, an objective, an optimizer and a schedule, and what is measured of them."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer

from longspan.data import Objective
from longspan.models import position_offset
from longspan.models.head import split_head
from longspan.training.callbacks.budget import SecondsBudget, find_budget
from longspan.training.chunked_loss import (
    ChunkLossSum,
    TokenScores,
    chunk_loss_sum,
    chunked_loss,
    scored_positions,
    token_scores,
)
from longspan.training.horizon import total_steps
from longspan.training.optim import OptimizerFactory, SchedulerFactory

# What the model is given besides input_ids, where the batch has it.
OPTIONAL_INPUTS = ("position_ids", "document_ids")


class LongspanModule(pl.LightningModule):
    """Trains `model` under `objective`. It knows neither where the data come from nor how it was configured.

    A batch is a dictionary: `input_ids` int64 [batch, length], `labels` int64 [batch, length] (-100 where not
    scored), `position_ids` and `document_ids` [batch, length] where the data have them, and `num_bytes`, the
    number of bytes of text that the scored tokens of the batch stand for (a number or a tensor to be summed).

    Logged: `train/loss` (nats a token, of this process), `train/tokens` (input tokens seen so far, by all
    processes), `lr`; after validation `val/loss` (nats a token), `val/perplexity`, `val/accuracy` (the share
    of tokens that are the likeliest of all) and, where the batches have `num_bytes`, `val/bits_per_byte`. The
    validation figures are sums over all scored tokens of the validation set and over all processes, divided
    once: batches with more scored tokens weigh more.

    Args:
        model: called with keyword arguments, returns an object with `logits` [batch, length, vocabulary].
        objective: what `loss(logits, labels)` is.
        optimizer: makes the optimizer; by default a run is configured with `longspan.training.optim.AdamW`.
        scheduler: makes the learning-rate schedule, stepped once an optimizer step; None keeps the rate.
        compile: run the model through torch.compile. The keys of the state dictionary do not change.
        loss_chunk: make the logits of so many scored positions at a time, and those of others never: the same
            loss. The loss is then the mean cross-entropy of `Objective.loss`, and the model one whose head
            `longspan.models.head.split_head` knows. None: all logits of a batch at once.

    Raises:
        ValueError: a `loss_chunk` below 1, or one for a model whose head is not known.

    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        compile: bool = False,
        loss_chunk: int | None = None,
    ) -> None:
        super().__init__()
        # A model loaded from a checkpoint comes in evaluation mode, and Lightning leaves the mode as it is.
        self.model = model.train()
        self._position_offset = position_offset(model)
        self.objective = objective
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        self.compile_model = compile
        if loss_chunk is not None and loss_chunk < 1:
            raise ValueError(f"loss_chunk must be at least 1, or None for no chunks, got {loss_chunk}")
        self.loss_chunk = loss_chunk
        # In a tuple, so that the model's own parts do not count as submodules a second time.
        self._backbone_and_head = None if loss_chunk is None else split_head(model)
        self._chunk_loss_sum: ChunkLossSum = chunk_loss_sum
        # How many positions of the last batch had logits; None for all.
        self.scored_positions: int | None = None
        # Input tokens of all complete optimizer steps, of all processes; and those of the step under way.
        self.tokens_seen = 0
        self._tokens_under_way = 0
        # In nats a token, of the last step before the checkpoint that a run goes on from.
        self.loss_before: float | None = None
        self._validation_sums: Tensor | None = None
        self._validation_bytes_known = True

    def configure_model(self) -> None:
        """Compile the model in place, where that is asked for; called once, before training or validation."""
        if self.compile_model:
            if self._backbone_and_head is None:
                self.model.compile()
            else:
                self._backbone_and_head[0].compile()
                # The last chunk is shorter, and by another number in each batch.
                self._chunk_loss_sum = torch.compile(chunk_loss_sum, dynamic=True)
            self.compile_model = False

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return the logits [batch, length, vocabulary] of a batch."""
        return self.model(**self._inputs(batch)).logits

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the mean cross-entropy of a batch over its scored labels, in nats a token."""
        if self._backbone_and_head is None or self.loss_chunk is None:
            return self.objective.loss(self(batch), batch["labels"])
        backbone, head = self._backbone_and_head
        # First: it waits for the GPU, which then has little left to do.
        positions = scored_positions(batch["labels"])
        self.scored_positions = len(positions)
        hidden = backbone(**self._inputs(batch)).last_hidden_state
        return chunked_loss(head, hidden, batch["labels"], positions, self.loss_chunk, self._chunk_loss_sum)

    def scores(self, batch: dict[str, Any]) -> TokenScores:
        """Return the cross-entropy and the correctness of each scored position of a batch."""
        positions = scored_positions(batch["labels"])
        if self._backbone_and_head is None or self.loss_chunk is None:
            return token_scores(nn.Identity(), self(batch), batch["labels"], positions)
        backbone, head = self._backbone_and_head
        hidden = backbone(**self._inputs(batch)).last_hidden_state
        return token_scores(head, hidden, batch["labels"], positions, self.loss_chunk)

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        inputs = {name: batch[name] for name in OPTIONAL_INPUTS if batch.get(name) is not None}
        if "position_ids" in inputs:
            # RoBERTa counts from another row than 0, and adds that itself only where it makes the ids.
            inputs["position_ids"] = inputs["position_ids"] + self._position_offset
        return {"input_ids": batch["input_ids"], **inputs}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch, in nats a token."""
        loss = self.loss(batch)
        size = batch["input_ids"].shape[0]
        self._tokens_under_way += batch["input_ids"].numel() * self.trainer.world_size
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        # Lightning stores what is logged as float32: exact up to 2**24, then to seven digits. The counter in
        # the checkpoint is a whole number.
        self.log("train/tokens", float(self.tokens_seen + self._tokens_under_way), batch_size=size)
        optimizer = self.optimizers(use_pl_optimizer=False)
        self.log("lr", optimizer.param_groups[0]["lr"], batch_size=size)  # type: ignore[union-attr]
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Count the tokens of the step."""
        self.tokens_seen += self._tokens_under_way
        self._tokens_under_way = 0

    def on_validation_epoch_start(self) -> None:
        """Start the sums of the validation set: nats, scored tokens, right ones, bytes."""
        self._validation_sums = torch.zeros(4, dtype=torch.float64)
        self._validation_bytes_known = True

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Add a batch to the sums; returns its scores, for callbacks that divide them further."""
        if "num_bytes" in batch:
            num_bytes = float(torch.as_tensor(batch["num_bytes"]).sum())
        else:
            num_bytes, self._validation_bytes_known = 0.0, False
        scores = self.scores(batch)
        nats, right = scores.nats.double().sum(), scores.correct.sum()
        assert self._validation_sums is not None
        self._validation_sums += torch.tensor(
            [float(nats), len(scores.nats), float(right), num_bytes], dtype=torch.float64
        )
        return {"scores": scores}

    def on_validation_epoch_end(self) -> None:
        """Divide the sums, over all processes, and log."""
        assert self._validation_sums is not None
        sums = self._validation_sums
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum").cpu()
        nats, scored, right, num_bytes = sums.tolist()
        known = num_bytes if self._validation_bytes_known else None
        metrics = {**validation_metrics(nats, scored, known), "accuracy": right / scored}
        for name, value in metrics.items():
            # The value is the same in every process; sync_dist only tells Lightning that it may average.
            self.log(f"val/{name}", value, prog_bar=name == "loss", sync_dist=self.trainer.world_size > 1)

    def configure_optimizers(self) -> dict[str, Any]:
        """Make the optimizer, and the schedule over the trainer's number of optimizer steps, or its time."""
        optimizer = self.optimizer_factory(self.model)
        configured: dict[str, Any] = {"optimizer": optimizer}
        if self.scheduler_factory is not None:
            steps, budget = total_steps(self.trainer), find_budget(self.trainer)
            if isinstance(budget, SecondsBudget):
                schedule = budget.schedule(self.scheduler_factory, optimizer, steps)
            else:
                schedule = self.scheduler_factory(optimizer, steps)
            configured["lr_scheduler"] = {"scheduler": schedule, "interval": "step"}
        return configured

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients, also under mixed precision with a fused optimizer, which Lightning refuses.

        A fused optimizer divides by the loss scale in its own step (16-mixed), so here the gradients are
        still multiplied by it, and the limit is as well. bf16-mixed has no scale.
        """
        plugin = self.trainer.precision_plugin
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if gradient_clip_val and fused and isinstance(plugin, MixedPrecision):
            scale = plugin.scaler.get_scale() if plugin.scaler is not None else 1.0
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val * scale, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the number of tokens seen, and the loss of the last step, which a finished run ends with."""
        checkpoint["tokens_seen"] = self.tokens_seen
        loss = self.trainer.callback_metrics.get("train/loss")
        checkpoint["train_loss"] = None if loss is None else float(loss)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the number of tokens seen, and the loss of the last step."""
        self.tokens_seen = int(checkpoint["tokens_seen"])
        self.loss_before = checkpoint.get("train_loss")


def validation_metrics(nats: float, tokens: float, num_bytes: float | None) -> dict[str, float]:
    """Return loss (nats a token), perplexity and bits per byte of a validation set.

    Args:
        nats: the cross-entropy summed over the scored tokens.
        tokens: the number of scored tokens.
        num_bytes: the bytes of text they stand for; None leaves `bits_per_byte` out.

    Raises:
        ValueError: when no token was scored.

    """
    if tokens == 0:
        raise ValueError(
            "no token of the validation set is scored; is it empty, or limit_val_batches too small?"
        )
    loss = nats / tokens
    metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    if num_bytes is not None:
        metrics["bits_per_byte"] = nats / math.log(2) / num_bytes if num_bytes else math.inf
    return metrics
