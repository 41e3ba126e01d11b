"""Training and evaluation of one model, on packed Python source as bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longspan.data import ByteTokenizer, PythonSource
from longspan.data.objective import OBJECTIVES
from longspan.data.packing import PackedDocuments, encode_document
from longspan.training.optim import AdamW, Cosine


class Text:
    """The corpus, tokenized once, as batches of any length."""

    def __init__(self, packages: tuple[str, ...], objective: str) -> None:
        self.tokenizer = ByteTokenizer()
        self.objective = OBJECTIVES[objective]()
        splits = PythonSource(packages=packages).load()
        self.info = splits.info.to_dict()
        self._sides = {
            side: [encode_document(document.text, self.tokenizer) for document in documents]
            for side, documents in (("train", splits.train), ("validation", splits.validation))
        }

    def batches(
        self, side: str, length: int, batch: int, device: torch.device, seed: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """Yield batches for ever, in an order that side, length and seed fix."""
        packed = PackedDocuments(self._sides[side], length, self.objective.lookahead, seed)
        epoch = 0
        while True:
            for first in range(0, len(packed) - batch + 1, batch):
                samples = [packed[epoch, index] for index in range(first, first + batch)]
                made = self.objective.collate(samples, self.tokenizer, seed=seed)
                yield {name: x.to(device, non_blocking=True) for name, x in made.items()}
            epoch += 1


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU, float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def train(
    model: nn.Module, text: Text, *, length: int, tokens: int, steps: int, lr: float, device: torch.device
) -> dict[str, Any]:
    """Train for steps of so many tokens; returns the last losses (nats a scored token) and the seconds."""
    optimizer = AdamW(lr=lr)(model)
    scheduler = Cosine()(optimizer, steps)
    batches = text.batches("train", length, max(1, tokens // length), device)
    model.train()
    losses: list[Tensor] = []
    started = time.perf_counter()
    for _ in range(steps):
        batch = next(batches)
        with autocast(device):
            logits = model(input_ids=batch["input_ids"]).logits
            loss = text.objective.loss(logits, batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
    last = torch.stack(losses[-max(1, steps // 20) :]).mean().item()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {"train_loss": last, "seconds": time.perf_counter() - started, "steps": steps}


@torch.no_grad()
def evaluate(
    model: nn.Module, text: Text, *, length: int, sequences: int, bucket: int, device: torch.device
) -> dict[str, Any]:
    """Bits per byte of held-out text: over all positions, and in each bucket of so many positions."""
    model.eval()
    buckets = -(-length // bucket)
    nats, scored = torch.zeros(2, buckets, dtype=torch.float64)
    batches = text.batches("validation", length, 1, device)
    for _ in range(sequences):
        batch = next(batches)
        labels = batch["labels"][0]
        with autocast(device):
            logits = model(input_ids=batch["input_ids"]).logits[0]
        # Tokens are bytes; the mark at the end of a file stands for none.
        counted = (labels >= 0) & (labels < 256)
        losses = F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="none") * counted
        where = torch.arange(length) // bucket
        nats.index_add_(0, where, losses.double().cpu())
        scored.index_add_(0, where, counted.double().cpu())
    bits = nats / scored.clamp(min=1) / math.log(2)
    return {
        "bits_per_byte": (nats.sum() / scored.sum() / math.log(2)).item(),
        "by_position": [round(x, 4) for x in bits.tolist()],
        "bucket": bucket,
        "bytes": int(scored.sum()),
    }
