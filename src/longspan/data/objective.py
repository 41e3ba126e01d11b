"""Objectives: what a batch is made of, and the loss that reads it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from longspan.data.packing import Sample
from longspan.data.tokenizer import Tokenizer

# The label of a position that is not scored: the one that torch's cross_entropy leaves out by default.
IGNORE = -100


class Objective(ABC):
    """What a model is trained for: the collator makes batches of it, and the loss reads them.

    The parts of a run ask an objective for these attributes, and never which objective it is: a further
    objective is a subclass and its file in `conf/objective/` or in a folder of the user's
    (docs/your-own-parts.md).

    Attributes:
        name: a short name, for tables.
        causal: True: the model predicts the next token from those before it; False: hidden tokens in their
            own places, from both sides. Model factories choose the model's class and its head by it.
        attention: the direction of the patterns, "bidirectional" or "unidirectional"; files of patterns read
            it as `${objective.attention}`.
        lookahead: tokens that a sample must hold beyond the sequence length: 1 where labels are the next
            tokens.

    """

    name: ClassVar[str]
    causal: ClassVar[bool]
    lookahead: ClassVar[int]

    def __init__(self, attention: str) -> None:
        self.attention = attention

    @property
    def scored_share(self) -> float:
        """The share of the positions that are scored, on average."""
        return 1.0

    def check(self, tokenizer: Tokenizer) -> None:
        """Raise ValueError if the objective cannot work with the tokenizer."""
        _ = tokenizer

    @abstractmethod
    def inputs_and_labels(
        self, sample: Sample, tokenizer: Tokenizer, document_mask: bool, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the input ids, labels and bytes of a packed sequence; a pure function of its arguments.

        Args:
            sample: `seq_len + lookahead` tokens.
            tokenizer: whose ids these are.
            document_mask: whether attention stays inside documents.
            seed: of random choices, which depend on it and on `sample.epoch` and `sample.index` alone.

        Returns:
            int64 `[seq_len]` each: input ids; labels, `IGNORE` where a position is not scored; the number of
            bytes of text that each position's label stands for.

        """

    def collate(
        self, samples: Sequence[Sample], tokenizer: Tokenizer, *, document_mask: bool = False, seed: int = 0
    ) -> dict[str, Tensor]:
        """Make a batch; a pure function of its arguments.

        Args:
            samples: packed sequences of `seq_len + lookahead` tokens.
            tokenizer: whose ids these are.
            document_mask: put `document_ids` and `position_ids` into the batch, and score no label that
                lies in another document than the position that predicts it.
            seed: of the masks, which depend on it and on the epoch and index of each sample alone.

        Returns:
            int64 tensors: `input_ids` `[batch, seq_len]`; `labels` `[batch, seq_len]`, the target of each
            position, -100 where it is not scored; `num_bytes` `[batch]`, the bytes of text that the scored
            labels stand for; with `document_mask` also `document_ids` `[batch, seq_len]`, equal inside one
            document, and `position_ids` `[batch, seq_len]`, counted from the start of the document or of the
            sequence, whichever is later. Samples of a task score their answers alone and have no bytes: in
            place of `num_bytes` come `distances` `[batch, seq_len]`, how many tokens lie between a position
            and the token that it has to read its label from, -1 where there is none, and `cells` `[batch]`.

        """
        rows = [self.inputs_and_labels(sample, tokenizer, document_mask, seed) for sample in samples]
        batch = {
            "input_ids": torch.from_numpy(np.stack([row[0] for row in rows])),
            "labels": torch.from_numpy(np.stack([row[1] for row in rows])),
        }
        if samples[0].answers is None:
            batch["num_bytes"] = torch.tensor([int(row[2][row[1] != IGNORE].sum()) for row in rows])
        else:
            batch["distances"] = torch.from_numpy(np.stack([self._distances(sample) for sample in samples]))
            batch["cells"] = torch.tensor([sample.cell for sample in samples])
        if document_mask:
            length = batch["input_ids"].shape[1]
            documents = np.stack([sample.document_ids[:length] for sample in samples])
            batch["document_ids"] = torch.from_numpy(documents)
            batch["position_ids"] = torch.from_numpy(positions_in_documents(documents))
        return batch

    def _distances(self, sample: Sample) -> np.ndarray:
        """Tokens between each position and the source of its label, -1 where it has none."""
        assert sample.sources is not None
        sources = sample.sources[self.lookahead :]
        return np.where(sources < 0, -1, np.abs(np.arange(len(sources)) - sources))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the scored labels, in nats a token, in float32.

        Args:
            logits: `[batch, seq_len, vocabulary]`, any floating-point type.
            labels: int64 `[batch, seq_len]`, -100 where not scored.

        Returns:
            float32 scalar; zero, with zero gradients, where no label is scored.

        """
        total = F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        return total / (labels != IGNORE).sum().clamp(min=1)


class MaskedLanguageModeling(Objective):
    """Predict the tokens that were hidden (Devlin et al. 2019, "BERT", section 3.1).

    Each ordinary token is chosen with `mask_probability`. Of the chosen ones, `mask_token_probability` become
    the mask token, `random_token_probability` an ordinary token drawn uniformly, and the rest stay as they
    are; all chosen ones are scored. Special tokens are never chosen. Of a task's sample the answers are
    chosen, and all of them become the mask token.

    Args:
        mask_probability: in (0, 1].
        mask_token_probability, random_token_probability: in [0, 1], at most 1 together.
        attention: "bidirectional", or "unidirectional" for a masked model that only looks back.

    Raises:
        ValueError: for any other value.

    """

    name = "mlm"
    causal = False
    lookahead = 0

    def __init__(
        self,
        mask_probability: float = 0.15,
        mask_token_probability: float = 0.8,
        random_token_probability: float = 0.1,
        attention: str = "bidirectional",
    ) -> None:
        super().__init__(attention)
        if not 0.0 < mask_probability <= 1.0:
            raise ValueError(f"mask_probability={mask_probability!r} must lie in (0, 1]")
        if not (
            mask_token_probability >= 0.0
            and random_token_probability >= 0.0
            and mask_token_probability + random_token_probability <= 1.0
        ):
            raise ValueError(
                f"mask_token_probability={mask_token_probability!r} and "
                f"random_token_probability={random_token_probability!r} must each lie in [0, 1] "
                "and be at most 1 together"
            )
        if attention not in ("bidirectional", "unidirectional"):
            raise ValueError(f"attention={attention!r} must be 'bidirectional' or 'unidirectional'")
        self.mask_probability = mask_probability
        self.mask_token_probability = mask_token_probability
        self.random_token_probability = random_token_probability

    @property
    def scored_share(self) -> float:
        """The share of the positions that are scored, on average: `mask_probability`."""
        return self.mask_probability

    def check(self, tokenizer: Tokenizer) -> None:
        """Raise ValueError if the tokenizer has no mask token."""
        if tokenizer.mask_token_id is None:
            raise ValueError(
                "objective 'mlm' needs a tokenizer with a mask token, and this one has none; "
                "choose the objective 'clm' or another tokenizer"
            )

    def inputs_and_labels(
        self, sample: Sample, tokenizer: Tokenizer, document_mask: bool, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hide the chosen tokens; see `Objective.inputs_and_labels`."""
        ids = sample.input_ids
        special = tokenizer.is_special
        mask_token = np.int64(tokenizer.mask_token_id or 0)  # `check` has seen that there is one
        if sample.answers is not None:
            inputs = np.where(sample.answers, mask_token, ids)
            return inputs, np.where(sample.answers, ids, IGNORE), sample.byte_lengths
        draws = np.random.default_rng([seed, sample.epoch, sample.index])
        chosen = (draws.random(len(ids)) < self.mask_probability) & ~special[ids]
        lot = draws.random(len(ids))
        ordinary = np.flatnonzero(~special)
        replacement = ordinary[draws.integers(len(ordinary), size=len(ids))]
        masked = chosen & (lot < self.mask_token_probability)
        swapped = chosen & ~masked & (lot < self.mask_token_probability + self.random_token_probability)
        inputs = np.where(masked, mask_token, np.where(swapped, replacement, ids))
        return inputs, np.where(chosen, ids, IGNORE), sample.byte_lengths


class CausalLanguageModeling(Objective):
    """Predict each token from those before it; labels are shifted: `labels[i]` follows `input_ids[i]`.

    Of a task's sample the answers alone are scored.

    Args:
        attention: "unidirectional"; a causal model cannot look ahead.

    Raises:
        ValueError: for any other value.

    """

    name = "clm"
    causal = True
    lookahead = 1

    def __init__(self, attention: str = "unidirectional") -> None:
        super().__init__(attention)
        if attention != "unidirectional":
            raise ValueError(
                f"attention={attention!r} must be 'unidirectional' under the objective 'clm': "
                "a position that sees the token after it has nothing to predict"
            )

    def inputs_and_labels(
        self, sample: Sample, tokenizer: Tokenizer, document_mask: bool, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shift the labels by one; see `Objective.inputs_and_labels`."""
        labels = sample.input_ids[1:]
        if sample.answers is not None:
            labels = np.where(sample.answers[1:], labels, IGNORE)
        if document_mask:
            same = sample.document_ids[1:] == sample.document_ids[:-1]
            labels = np.where(same, labels, IGNORE)
        return sample.input_ids[:-1], labels, sample.byte_lengths[1:]


# The shipped objectives, for functions that take one by its name.
OBJECTIVES: dict[str, type[MaskedLanguageModeling] | type[CausalLanguageModeling]] = {
    objective.name: objective for objective in (MaskedLanguageModeling, CausalLanguageModeling)
}


def is_causal(objective: str | Objective) -> bool:
    """Return whether an objective is causal, given itself or the name of a shipped one.

    Raises:
        ValueError: no shipped objective has that name.

    """
    if not isinstance(objective, str):
        return objective.causal
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {objective!r}")
    return OBJECTIVES[objective].causal


def positions_in_documents(document_ids: np.ndarray) -> np.ndarray:
    """Positions counted from the start of each run of equal document numbers, int64 `[batch, length]`."""
    positions = np.broadcast_to(np.arange(document_ids.shape[1]), document_ids.shape)
    starts = np.zeros(document_ids.shape, dtype=bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return positions - np.maximum.accumulate(np.where(starts, positions, 0), axis=1)
