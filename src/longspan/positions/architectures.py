"""Where each known architecture keeps its learned positions, and what follows when their number changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# By the configuration's model_type: the module of the table, as a path from the base model.
TABLES = {
    "albert": "embeddings.position_embeddings",
    "bert": "embeddings.position_embeddings",
    "distilbert": "embeddings.position_embeddings",
    "electra": "embeddings.position_embeddings",
    "gpt2": "wpe",
    "opt": "decoder.embed_positions",
    "roberta": "embeddings.position_embeddings",
    "xlm-roberta": "embeddings.position_embeddings",
}
# These count the reserved rows in config.max_position_embeddings too; OPT does not.
_COUNTED = ("roberta", "xlm-roberta")
# Buffers `[1, positions]` beside the table, where a module has them.
_BUFFERS = ("position_ids", "token_type_ids")


@dataclass(frozen=True)
class LearnedPositions:
    """The learned positions of a model.

    Attributes:
        model: the model.
        table: the embedding that holds the rows ``[reserved + positions, width]``.
        owner: the module that has the table, and the buffers whose length follows it.
        reserved: rows before the one of position 0.
        counted: whether ``config.max_position_embeddings`` counts the reserved rows.

    """

    model: PreTrainedModel
    table: nn.Embedding
    owner: nn.Module
    reserved: int
    counted: bool

    @property
    def positions(self) -> int:
        """Tokens that a sequence can have."""
        return self.table.num_embeddings - self.reserved

    def replace(self, weight: nn.Parameter) -> None:
        """Put another table ``[reserved + positions, width]`` in its place, and let all else follow.

        The embedding module stays the same object, with its padding index and its hooks.
        """
        self.table.weight = weight
        self.table.num_embeddings = rows = weight.shape[0]
        config: Any = self.model.config
        config.max_position_embeddings = rows if self.counted else rows - self.reserved
        # Fields of old checkpoints and of OPT's decoder, which say the same once more.
        if hasattr(config, "n_ctx"):
            config.n_ctx = config.max_position_embeddings
        owner: Any = self.owner
        if hasattr(owner, "max_target_positions"):
            owner.max_target_positions = config.max_position_embeddings
        for name in _BUFFERS:
            buffer = getattr(owner, name, None)
            if buffer is not None:
                # In place of `register_buffer`, which would forget that the buffer is not saved.
                owner._buffers[name] = _longer(name, buffer, rows)


def _longer(name: str, buffer: Any, rows: int) -> Any:
    """The buffer ``[1, rows]``: positions count on, token types are those of the first segment."""
    if name == "token_type_ids":
        return buffer.new_zeros(1, rows)
    return buffer.new_ones(rows).cumsum(0).sub(1).to(buffer.dtype)[None]


def learned_positions(model: PreTrainedModel) -> LearnedPositions | None:
    """Find the learned positions of a model; None for one that has none or is not known.

    RoBERTa and XLM-R keep the rows up to ``padding_idx`` for padding and count from the next one (Liu et al.
    2019, arXiv:1907.11692); OPT skips two rows (Zhang et al. 2022, arXiv:2205.01068).
    """
    path = TABLES.get(model.config.model_type)
    if path is None:
        return None
    owner_path, _, name = path.rpartition(".")
    owner = model.base_model.get_submodule(owner_path)
    table: Any = getattr(owner, name)
    counted = model.config.model_type in _COUNTED
    reserved = table.padding_idx + 1 if counted else getattr(table, "offset", 0)
    return LearnedPositions(model, table, owner, reserved, counted)


def has_rotary_positions(model: PreTrainedModel) -> bool:
    """Say whether queries and keys are turned by their positions (Su et al. 2021, arXiv:2104.09864)."""
    return getattr(model.config, "rope_parameters", None) is not None
