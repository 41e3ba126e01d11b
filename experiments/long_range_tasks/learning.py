"""Texts of a task made once, and the training and evaluation of one model on them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from plan import Lesson, Scale
from prediction import predict
from torch import Tensor, nn

import longspan
from longspan.data import CausalLanguageModeling
from longspan.data.tasks import TaskSequences
from longspan.models import build_model
from longspan.training.callbacks.evaluation import buckets, powers_of_two
from longspan.training.chunked_loss import scored_positions, token_scores
from longspan.training.optim import AdamW, Cosine

OBJECTIVE = CausalLanguageModeling()
# A loss so small, over so many steps, is a task solved: training ends there.
SOLVED, WINDOW = 0.003, 50
_PIECE = 2048


def make_texts(lesson: Lesson, split: str, seed: int, first: int, last: int) -> dict[str, Tensor]:
    """Batch of the samples with the numbers from `first` to before `last`, in small integers."""
    sequences = TaskSequences(lesson.task, split, lesson.seq_len, OBJECTIVE.lookahead, seed)  # type: ignore[arg-type]
    samples = [sequences[divmod(number, len(sequences))] for number in range(first, last)]
    batch = OBJECTIVE.collate(samples, lesson.task.tokenizer)
    if split == "train":
        batch = {name: batch[name] for name in ("input_ids", "labels")}
    return {name: value.to(torch.int16) for name, value in batch.items()}


def prepare(lesson: Lesson, seed: int, sequences: int, path: Path, pool: Executor) -> None:
    """Make the texts of a training and its validation, in parallel, and keep them in a file."""
    if path.exists():
        return
    found: dict[str, list[dict[str, Tensor]]] = {}
    wanted = [("train", stage, stage.steps * stage.batch, seed) for stage in lesson.stages]
    for split, stage, count, own in (*wanted, ("validation", lesson, sequences, 0)):
        pieces = range(0, count, _PIECE)
        jobs = [
            pool.submit(make_texts, stage, split, own, first, min(first + _PIECE, count)) for first in pieces
        ]
        made = [job.result() for job in jobs]
        found.setdefault(split, []).append(
            {name: torch.cat([piece[name] for piece in made]) for name in made[0]}
        )
    partial = path.with_suffix(".part")
    torch.save(found, partial)
    partial.rename(path)


def train(
    model: Any, texts: list[dict[str, Tensor]], lesson: Lesson, lr: float, device: torch.device
) -> dict[str, Any]:
    """Train until the texts are read or the task is solved; returns the steps and the losses of windows.

    `texts` are those of each of the lesson's stages.
    """
    optimizer = AdamW(lr=lr)(model)
    scheduler = Cosine()(optimizer, sum(stage.steps for stage in lesson.stages))
    model.train()
    losses: list[Tensor] = []
    for stage, own in zip(lesson.stages, texts, strict=True):
        for loss in _train_stage(model, own, stage, optimizer, scheduler, device):
            losses.append(loss)
            solved = len(losses) % WINDOW == 0 and torch.stack(losses[-WINDOW:]).mean() < SOLVED
            if solved and stage.seq_len == lesson.seq_len:
                break
    means = [part.mean().item() for part in torch.stack(losses).split(WINDOW)]
    return {"steps": len(losses), "train_losses": [round(mean, 4) for mean in means]}


def _train_stage(
    model: Any, texts: dict[str, Tensor], lesson: Lesson, optimizer: Any, scheduler: Any, device: torch.device
) -> Iterator[Tensor]:
    """Train on texts of one length, step by step; gives each step's loss."""
    places = scored_positions(texts["labels"])
    # The scored positions of each batch, found beforehand: to find them on a GPU would be to wait for it.
    size = lesson.batch * lesson.seq_len
    counts = torch.bincount(places // size, minlength=lesson.steps).tolist()
    of_steps = places.to(device).split(counts)
    ids, labels = (
        texts[name].to(device).view(lesson.steps, lesson.batch, -1) for name in ("input_ids", "labels")
    )
    for step in range(lesson.steps):
        where = of_steps[step] - step * size
        with autocast(device):
            hidden = model.base_model(input_ids=ids[step].long()).last_hidden_state
            logits = model.lm_head(hidden.flatten(0, 1)[where])
        loss = F.cross_entropy(logits.float(), labels[step].flatten()[where].long())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        yield loss.detach()


@torch.no_grad()
def evaluate(model: Any, texts: dict[str, Tensor], lesson: Lesson, device: torch.device) -> dict[str, Any]:
    """Loss (nats an answer) and accuracy on the validation texts: overall, by distance and by cell."""
    model.eval()
    by_distance = torch.zeros(3, lesson.seq_len + 1, dtype=torch.float64)
    cells = lesson.task.cells()
    by_cell = torch.zeros(3, len(cells), dtype=torch.float64)
    total = torch.zeros(3, dtype=torch.float64)
    for first in range(0, len(texts["labels"]), lesson.batch):
        part = {name: value[first : first + lesson.batch].long() for name, value in texts.items()}
        positions = scored_positions(part["labels"])
        with autocast(device):
            logits = model(input_ids=part["input_ids"].to(device)).logits
        scores = token_scores(nn.Identity(), logits, part["labels"].to(device), positions.to(device))
        values = torch.stack([scores.nats.cpu().double(), scores.correct.cpu().double()])
        values = torch.cat([values, torch.ones(1, len(positions)).double()])
        total += values.sum(1)
        distances = part["distances"].flatten()[positions]
        by_distance.index_add_(1, distances[distances >= 0], values[:, distances >= 0])
        by_cell.index_add_(1, part["cells"][positions // lesson.seq_len], values)
    nats, right, scored = total.tolist()
    each = [
        {**cell, "accuracy": own[1] / own[2], "scored": int(own[2])}
        for cell, own in zip(cells, by_cell.T.tolist(), strict=True)
        if own[2]
    ]
    return {
        "loss": nats / scored,
        "accuracy": right / scored,
        "scored": int(scored),
        "by_distance": buckets(by_distance, powers_of_two(lesson.seq_len)),
        "by_cell": each,
    }


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU, float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def measure(cell: dict[str, Any], scale: Scale, path: Path, device: torch.device) -> dict[str, Any]:
    """Train and evaluate one model, and say what reachability predicts of it."""
    started = time.perf_counter()
    lesson = scale.lessons[cell["task"]]
    texts = torch.load(path, weights_only=True)
    (validation,) = texts["validation"]
    predicted = predict(cell["pattern"], scale, lesson, validation)
    torch.manual_seed(cell["seed"])
    tokenizer = lesson.task.tokenizer
    model: Any = build_model(
        "llama", "clm", tokenizer.vocab_size, lesson.seq_len, scale.hidden, scale.layers, scale.heads,
        pad_token_id=tokenizer.pad_token_id,
        # The usual 0.02 makes attention of so small a width almost uniform, and recall is then not learned.
        config_overrides={"initializer_range": scale.hidden**-0.5},
    )  # fmt: skip
    model.to(device)
    longspan.sparsify(model, scale.pattern(cell["pattern"]))
    trained = train(model, texts["train"], lesson, scale.lr, device)
    found = evaluate(model, validation, lesson, device)
    return {**trained, **found, "predicted": predicted, "seconds": time.perf_counter() - started}
