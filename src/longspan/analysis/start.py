"""Warnings at the start of a run: patterns that miss pairs of tokens, or are slower than dense attention."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from longspan.analysis import break_even
from longspan.analysis.picture import ranges
from longspan.analysis.reach import Reach, reach
from longspan.analysis.rows import row_counts, row_statistics
from longspan.models.layers import attention_of, self_attention_layers
from longspan.sparsity import SparsityConfig
from longspan_kernels.architecture import Architecture, architecture_of
from longspan_kernels.layout import BlockLayout

# Sources that are followed: enough for a warning, in little time.
_SOURCES = 1024
# Larger layouts (about sixteen million kept blocks) are not checked, which would take minutes and memory.
_MOST_BYTES = 1 << 26


def warn_at_start(model: nn.Module, seq_len: int, device: torch.device, precision: str) -> None:
    """Issue the warnings of `start_warnings` for a sparse model.

    Args:
        model: a Hugging Face model that `sparsify` has changed.
        seq_len: tokens in a sequence.
        device: device of the run.
        precision: precision of the arithmetic, in Lightning's names.

    """
    layers: list[Any] = self_attention_layers(model)
    config = layers[0].config
    patterns: list[SparsityConfig | None] = [attention_of(layer).sparsity_config for layer in layers]
    if config.model_type == "albert":
        patterns = expand_albert_patterns(patterns, config)
    causal = all(layer.is_causal and getattr(config, "is_causal", True) for layer in layers)
    measured = device.type == "cuda" and "16" in precision
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for sentence in start_warnings(
        patterns,
        seq_len,
        causal=True if causal else None,
        head_dim=head_dim,
        architecture=architecture_of(device) if measured else None,
    ):
        warnings.warn(sentence, stacklevel=2)


def expand_albert_patterns(patterns: Sequence[Any], config: Any) -> list[Any]:
    """Return the pattern of each layer that ALBERT runs, given one per set of weights."""
    inner = config.inner_group_num
    per_group = config.num_hidden_layers / config.num_hidden_groups
    groups = [int(number / per_group) for number in range(config.num_hidden_layers)]
    return [pattern for group in groups for pattern in patterns[group * inner : (group + 1) * inner]]


def start_warnings(
    patterns: Sequence[SparsityConfig | None],
    seq_len: int,
    *,
    causal: bool | None = None,
    head_dim: int | None = None,
    architecture: Architecture | None = None,
    known_reach: Reach | None = None,
) -> list[str]:
    """Return one sentence per problem of the patterns of the layers of a model.

    The problems are rows of blocks that attend nothing, pairs of tokens without a path between them after all
    layers, and patterns so dense that dense attention is faster. The last one uses only measured times: there
    is no warning for devices, blocks or head dimensions that were not measured, nor for the pattern
    ``dense``. Layouts of more than about sixteen million kept blocks are not checked.

    Args:
        patterns: one per layer, the lowest first; None for a dense layer.
        seq_len: tokens in a sequence. A layer whose pattern is not defined for it attends densely.
        causal: whether the layers are causal to the token; None if each layer follows its pattern.
        head_dim: dimension of a head.
        architecture: architecture of the GPU, from `architecture_of`, for arithmetic in 16 bits; None for
            anything else.
        known_reach: the reach of these layers, if it is known already.

    Raises:
        ValueError: there is no layer, or a length is invalid.

    """
    patterns = [one if one is not None and one.defined_for(seq_len) else None for one in patterns]
    layouts = [None if one is None else one.layout(seq_len) for one in patterns]
    if any(layout is not None and layout.nbytes > _MOST_BYTES for layout in layouts):
        return []
    sentences = []
    for pattern in dict.fromkeys(one for one in patterns if one is not None):
        layout = pattern.layout(seq_len)
        layers = ranges([number for number, one in enumerate(patterns) if one == pattern])
        where = f"{pattern.name} (layers {layers})" if len(set(patterns)) > 1 else pattern.name
        sentences += [
            *_empty_rows(where, layout, causal),
            *_dense_is_faster(pattern, where, layout, seq_len, causal, head_dim, architecture),
        ]
    if any(layout is not None for layout in layouts):
        if known_reach is None:
            known_reach = reach(layouts, seq_len, causal, max_sources=_SOURCES, sample=_SOURCES)
        sentences += _unreachable(patterns, known_reach)
    return sentences


def _empty_rows(where: str, layout: BlockLayout, causal: bool | None) -> list[str]:
    causal = layout.causal if causal is None else causal
    empty = {number: row_counts(layout, number, causal) == 0 for number in range(layout.layouts)}
    empty_rows = [empty[int(number)] for number in layout.head_layouts]
    total = sum(int(rows.sum()) for rows in empty_rows)
    if not total:
        return []
    head = next(number for number, rows in enumerate(empty_rows) if rows.any())
    row = int(np.flatnonzero(empty_rows[head])[0])
    return [
        f"{where}: {total:,} of {layout.heads * layout.q_blocks:,} rows of blocks attend nothing, the first "
        f"of them in head {head} from token {row * layout.block:,} on: the head gives zero there"
    ]


def _unreachable(patterns: Sequence[SparsityConfig | None], reached: Reach) -> list[str]:
    missing = reached.unreachable_pairs
    if not missing:
        return []
    names = ", ".join(dict.fromkeys("dense" if one is None else one.name for one in patterns))
    joined = reached.by_distance()
    gap = int(np.flatnonzero(joined < 1)[0])
    followed = "followed " if reached.sampled else ""
    near = f"all {followed}pairs up to {gap - 1:,} tokens apart have one"
    if gap == 1:
        near = "not even all neighbours have one"
    examples = reached.unreachable_examples(1)
    example = "".join(f", so that nothing of token {a:,} can reach token {b:,}" for a, b in examples)
    which = "a token and an earlier one" if reached.causal else "tokens"
    about = "about " if reached.sampled else ""
    layers = f"{reached.layers} {'layer' if reached.layers == 1 else 'layers'}"
    return [
        f"{names}: {about}{missing / reached.all_pairs:.1%} of the pairs of {which} have no path between "
        f"them in {layers} ({missing:,} of {reached.all_pairs:,} at {reached.seq_len:,} tokens){example}; "
        f"{near}. More layers or more kept blocks make paths"
    ]


def _dense_is_faster(
    pattern: SparsityConfig,
    where: str,
    layout: BlockLayout,
    seq_len: int,
    causal: bool | None,
    head_dim: int | None,
    architecture: Architecture | None,
) -> list[str]:
    if architecture is None or head_dim is None or pattern.name == "dense":
        return []
    row = break_even.look_up(architecture, layout.block, head_dim)
    if row is None:
        return []
    density = row_statistics(layout, seq_len, causal).pair_density
    if density <= row.density:
        return []
    how = f"measured at {', '.join(f'{length:,}' for length in row.lengths)} tokens"
    if seq_len < min(row.lengths):
        how += f", not below {min(row.lengths):,}"
    if row.density > row.measured_to:
        how += f", extrapolated from patterns that keep up to {row.measured_to:.0%}"
    return [
        f"{where} keeps {density:.1%} of the pairs of tokens at {seq_len:,} tokens, and above "
        f"{row.density:.0%} torch's dense attention is faster than these kernels on this device (blocks of "
        f"{layout.block}, heads of {head_dim}; {how})"
    ]
