"""The LightningModule: training step, loss, validation figures, optimizer and learning-rate schedule."""

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

# Inputs of the model besides input_ids, which a batch may have.
OPTIONAL_INPUTS = ("position_ids", "document_ids")


class LongspanModule(pl.LightningModule):
    """Trains `model` under `objective`. It knows neither the source of the data nor the configuration.

    A batch is a dictionary: `input_ids` int64 [batch, length], `labels` int64 [batch, length] (-100 where not
    scored), `position_ids` and `document_ids` [batch, length] where the data have them, and `num_bytes`, the
    number of bytes of text that the scored tokens of the batch stand for (a number or a tensor to be summed).

    Logged: `train/loss` (nats a token, of this process), `train/tokens` (input tokens seen so far, by all
    processes), `lr`; after validation `val/loss` (nats a token), `val/perplexity`, `val/accuracy` (the share
    of scored tokens to which the model gives the largest probability) and, where the batches have
    `num_bytes`, `val/bits_per_byte`. A validation figure is one sum over all scored tokens and all processes,
    divided once: batches with more scored tokens weigh more.

    Args:
        model: called with keyword arguments, returns an object with `logits` [batch, length, vocabulary].
        objective: computes the loss of logits and labels.
        optimizer: makes the optimizer; by default a run is configured with `longspan.training.optim.AdamW`.
        scheduler: makes the learning-rate schedule, stepped once an optimizer step; None keeps the rate.
        compile: run the model through torch.compile. The keys of the state dictionary do not change.
        loss_chunk: compute the logits of this many scored positions at a time, and of no other positions;
            the loss is the same. The loss is then the mean cross-entropy of `Objective.loss`, and
            `longspan.models.head.split_head` has to know the model's head. None: all logits at once.

    Raises:
        ValueError: `loss_chunk` is below 1, or the head of the model is not known.

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
        # A pretrained model is in evaluation mode, and Lightning does not change the mode.
        self.model = model.train()
        self._position_offset = position_offset(model)
        self.objective = objective
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        self.compile_model = compile
        if loss_chunk is not None and loss_chunk < 1:
            raise ValueError(f"loss_chunk must be at least 1, or None for no chunks, got {loss_chunk}")
        self.loss_chunk = loss_chunk
        # A tuple, since attributes would register the parts of the model as submodules again.
        self._backbone_and_head = None if loss_chunk is None else split_head(model)
        self._chunk_loss_sum: ChunkLossSum = chunk_loss_sum
        # Number of positions of the last batch that have logits; None for all.
        self.scored_positions: int | None = None
        # Input tokens of all processes, in the complete optimizer steps and in the current one.
        self.tokens_seen = 0
        self._tokens_of_step = 0
        # Loss in nats per token of the last step before the checkpoint that the run resumes from.
        self.loss_before: float | None = None
        self._validation_sums: Tensor | None = None
        self._validation_bytes_known = True

    def configure_model(self) -> None:
        """Compile the model in place if `compile`; called once, before training or validation."""
        if self.compile_model:
            if self._backbone_and_head is None:
                self.model.compile()
            else:
                self._backbone_and_head[0].compile()
                # Dynamic shapes, since the length of the last chunk differs between batches.
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
        # Before the forward: it waits for the GPU, which has little to do at this point.
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
            # RoBERTa's first position is not row 0; it adds the offset only to ids that it makes itself.
            inputs["position_ids"] = inputs["position_ids"] + self._position_offset
        return {"input_ids": batch["input_ids"], **inputs}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of a batch, in nats a token."""
        loss = self.loss(batch)
        size = batch["input_ids"].shape[0]
        self._tokens_of_step += batch["input_ids"].numel() * self.trainer.world_size
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        # Lightning stores logged numbers as float32: exact up to 2**24, then to seven digits. The counter in
        # a checkpoint is a whole number.
        self.log("train/tokens", float(self.tokens_seen + self._tokens_of_step), batch_size=size)
        optimizer = self.optimizers(use_pl_optimizer=False)
        self.log("lr", optimizer.param_groups[0]["lr"], batch_size=size)  # type: ignore[union-attr]
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Count the tokens of the step."""
        self.tokens_seen += self._tokens_of_step
        self._tokens_of_step = 0

    def on_validation_epoch_start(self) -> None:
        """Start the sums of the validation set: nats, scored tokens, correct tokens, bytes."""
        self._validation_sums = torch.zeros(4, dtype=torch.float64)
        self._validation_bytes_known = True

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Add a batch to the sums; return ``{"scores": TokenScores}``, which callbacks read."""
        if "num_bytes" in batch:
            num_bytes = float(torch.as_tensor(batch["num_bytes"]).sum())
        else:
            num_bytes, self._validation_bytes_known = 0.0, False
        scores = self.scores(batch)
        nats, correct = scores.nats.double().sum(), scores.correct.sum()
        assert self._validation_sums is not None
        self._validation_sums += torch.tensor(
            [float(nats), len(scores.nats), float(correct), num_bytes], dtype=torch.float64
        )
        return {"scores": scores}

    def on_validation_epoch_end(self) -> None:
        """Divide the sums, over all processes, and log."""
        assert self._validation_sums is not None
        sums = self._validation_sums
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum").cpu()
        nats, scored, correct, num_bytes = sums.tolist()
        known = num_bytes if self._validation_bytes_known else None
        metrics = {**validation_metrics(nats, scored, known), "accuracy": correct / scored}
        for name, value in metrics.items():
            # The value is the same in every process; with sync_dist Lightning averages it without a warning.
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

        A fused optimizer divides by the loss scale in its step (16-mixed). The gradients are still multiplied
        by the scale here, so the limit is multiplied by it too. bf16-mixed has no scale.
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
        """Write the number of tokens seen and the loss of the last step into a checkpoint."""
        checkpoint["tokens_seen"] = self.tokens_seen
        loss = self.trainer.callback_metrics.get("train/loss")
        checkpoint["train_loss"] = None if loss is None else float(loss)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the number of tokens seen and the loss of the last step."""
        self.tokens_seen = int(checkpoint["tokens_seen"])
        self.loss_before = checkpoint.get("train_loss")


def validation_metrics(nats: float, tokens: float, num_bytes: float | None) -> dict[str, float]:
    """Return loss (nats a token), perplexity and bits per byte of a validation set.

    Args:
        nats: the cross-entropy summed over the scored tokens.
        tokens: the number of scored tokens.
        num_bytes: bytes of text of the scored tokens; None leaves `bits_per_byte` out.

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
