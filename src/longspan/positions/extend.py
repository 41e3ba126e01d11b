"""Make a pretrained model longer, in place: the face of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from longspan.models import sparsify
from longspan.positions.architectures import (
    TABLES,
    LearnedPositions,
    has_rotary_positions,
    learned_positions,
)
from longspan.positions.collisions import warn_of_collisions
from longspan.positions.learned import METHODS, extend_table
from longspan.positions.rotary import METHODS as _ROTARY
from longspan.positions.rotary import extend_rotary, rotary_positions
from longspan.positions.rotary_modules import restore_rotary, rotary_state
from longspan.sparsity import SparsityConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")

LEARNED_METHODS = tuple(METHODS)
ROTARY_METHODS = tuple(_ROTARY)

# The configuration's field that says how a model was last extended; plain transformers ignores it.
CONFIG_KEY = "longspan_positions"


def extend(
    model: Model,
    max_positions: int,
    method: str,
    *,
    sparsity: SparsityConfig | Sequence[SparsityConfig | None] | None = None,
    tokenizer: Any = None,
    backend: str = "auto",
    **options: Any,
) -> Model:
    """Let a pretrained model take longer sequences, and make it sparse if asked to.

    The model is changed in place: its table of positions (float ``[reserved + positions, width]``, dtype,
    device and ``requires_grad`` kept) or its rotary frequencies, the buffers beside them and its
    configuration, so that ``save_pretrained`` and a plain ``from_pretrained`` give the same model;
    ``config.longspan_positions`` notes what was done. A learned table becomes a new parameter: make the
    optimizer afterwards. Nothing is trained here.

    Learned positions (BERT, RoBERTa, XLM-R, GPT-2, OPT, DistilBERT, ELECTRA, ALBERT) know the methods

    - ``"tile"``: the trained positions repeated (Beltagy et al. 2020, arXiv:2004.05150). Warns where the
      attention lets a token meet another of its position; see `longspan.positions.collisions`.
    - ``"interpolate"``: spread over the new length; option ``mode``, ``"linear"`` (default) or ``"cubic"``.
    - ``"truncate-and-normal"``: new rows drawn with the trained rows' mean and spread; option ``seed`` (0).
    - ``"zero"``: new rows of zeros.

    All but ``"interpolate"`` leave what dense attention computes for sequences of the old length as it was.
    Rotary positions (ModernBERT, Llama and their like) know ``"linear"``, ``"ntk"``, ``"dynamic"``,
    ``"yarn"`` and ``"longrope"``; see `longspan.positions.rotary`.

    Args:
        model: a Hugging Face model, bare or with a head, in train or eval mode: it stays so.
        max_positions: the longest sequence in tokens; a table gets its reserved rows besides. The present
            number is allowed and changes no position.
        method: one of the above.
        sparsity: a pattern for all layers, or one a layer, as `longspan.sparsify` takes it; None leaves the
            attention as it is.
        tokenizer: a Hugging Face tokenizer whose ``model_max_length`` shall follow, or None.
        backend: what computes the sparse attention, see `longspan.block_sparse_attention`.
        options: the method's own.

    Returns:
        The same model.

    Raises:
        ValueError: an architecture whose positions are not known, a method for another kind of positions, an
            option that the method does not take, fewer positions than the model has, or a pattern that does
            not fit.

    """
    learned = learned_positions(model)
    _check(model, learned, max_positions, method)
    before = max_positions_of(model)
    state = None
    if learned is None:
        state = rotary_state(model)
        extend_rotary(model, max_positions, method, **options)
    else:
        trained = learned.positions
        table = extend_table(
            learned.table.weight.detach(), learned.reserved, max_positions, method, **options
        )
    if sparsity is not None:
        # Before the table changes, so that a pattern that does not fit leaves the model as it was.
        try:
            sparsify(model, sparsity, backend=backend)
        except ValueError:
            if state is not None:
                restore_rotary(model, state)
            raise
    if learned is not None:
        if max_positions > trained:
            learned.replace(torch.nn.Parameter(table, requires_grad=learned.table.weight.requires_grad))
        if method == "tile":
            warn_of_collisions(model, trained, max_positions)
    if max_positions != before:
        note = {"method": method, "from": before, "to": max_positions, **options}
        setattr(model.config, CONFIG_KEY, note)
    if tokenizer is not None:
        tokenizer.model_max_length = max_positions
    return model


extend.supplied_by_run = ("model", "sparsity", "tokenizer", "backend")  # type: ignore[attr-defined]


def learned_limit(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model's table of learned positions serves, None where it has none."""
    learned = learned_positions(model)
    return None if learned is None else learned.positions


def max_positions_of(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model's positions are made for, None where it is not known."""
    limit = learned_limit(model)
    # A dynamically scaled model's configuration goes on naming its original length.
    return rotary_positions(model) if limit is None and has_rotary_positions(model) else limit


def _check(model: PreTrainedModel, learned: LearnedPositions | None, max_positions: int, method: str) -> None:
    kind, allowed = ("learned", LEARNED_METHODS) if learned is not None else ("rotary", ROTARY_METHODS)
    if learned is None and not has_rotary_positions(model):
        raise ValueError(
            f"the positions of {type(model).__name__} (model_type {model.config.model_type!r}) are not "
            f"known; known are the learned ones of {', '.join(TABLES)}, and rotary ones"
        )
    if method not in allowed:
        raise ValueError(
            f"method {method!r} does not extend {type(model).__name__}, which has {kind} positions; for "
            f"those: {', '.join(allowed)}"
        )
    if isinstance(max_positions, bool) or not isinstance(max_positions, int) or max_positions < 1:
        raise ValueError(f"max_positions must be a positive whole number of tokens, got {max_positions!r}")
