"""What reachability says of a pattern and a task, before any training."""

from __future__ import annotations

from typing import Any

import torch
from plan import Lesson, Scale
from torch import Tensor

from longspan.analysis.reach import Reach, reach
from longspan.training.callbacks.evaluation import buckets, powers_of_two
from longspan.training.chunked_loss import scored_positions


def predict(pattern: str, scale: Scale, lesson: Lesson, texts: dict[str, Tensor]) -> dict[str, Any]:
    """Share of the answers whose token can reach the place that predicts them.

    Returns:
        `density` of the layout; `reach`, the share after all layers, and of ListOps the mean share of the
        list's tokens; `ceiling`, the accuracy of a model that answers where the token reaches and guesses
        where it does not (None for ListOps, whose answer no single token holds); `by_distance`: `reach` in
        buckets.

    """
    layout = scale.pattern(pattern).layout(lesson.seq_len)
    paths = reach([layout] * scale.layers, lesson.seq_len, causal=True)
    labels, distances = texts["labels"], texts["distances"].long().flatten()
    positions = scored_positions(labels)
    distances = distances[positions]
    places = (positions % lesson.seq_len).tolist()
    if (distances < 0).all():
        return {
            "density": layout.density,
            "reach": _of_lists(paths, texts, places),
            "ceiling": None,
            "by_distance": [],
        }
    sources = (positions % lesson.seq_len - distances).tolist()
    reached = torch.tensor([paths.reaches(s, p) for s, p in zip(sources, places, strict=True)]).double()
    sums = torch.zeros(3, lesson.seq_len + 1, dtype=torch.float64)
    sums.index_add_(1, distances, torch.stack([torch.zeros_like(reached), reached, torch.ones_like(reached)]))
    share = reached.mean().item()
    return {
        "density": layout.density,
        "reach": share,
        "ceiling": share + (1 - share) * lesson.chance,
        "by_distance": [
            {"from": one["from"], "to": one["to"], "reach": one["accuracy"], "scored": one["scored"]}
            for one in buckets(sums, powers_of_two(lesson.seq_len))
        ],
    }


def _of_lists(paths: Reach, texts: dict[str, Tensor], places: list[int]) -> float:
    """Mean share of a list's tokens that reach the place of its answer."""
    shares = []
    for ids, place in zip(texts["input_ids"], places, strict=True):
        tokens = (ids[:place] != 0).nonzero()[:, 0].tolist()  # without padding
        shares.append(sum(paths.reaches(token, place) for token in tokens) / len(tokens))
    return sum(shares) / len(shares)
