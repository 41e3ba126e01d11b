"""The floating-point operations of each batch of a run, for the present patterns of its layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from longspan.analysis.flops import Flops, Trace, attention_layers, layout_of, pattern_of, trace


class StepFlops:
    """Counts batches, and remembers the counts.

    Patterns and lengths may change while a model trains: each call reads the present ones.

    Args:
        model: as `longspan.analysis.flops.training_flops` takes it.

    Raises:
        ValueError: its attention does not follow transformers' attention interface.

    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers = attention_layers(model)
        self._traces: dict[tuple[int, int], tuple[Trace, int]] = {}
        self._counts: dict[tuple[Any, ...], tuple[Flops, int]] = {}

    def __call__(self, batch_size: int, seq_len: int, scored: int | None = None) -> Flops:
        """Count the forward and backward of a batch.

        Args:
            batch_size: sequences.
            seq_len: tokens of a sequence.
            scored: the number of positions that went through the head; None: all.

        Raises:
            ValueError: the model cannot be counted, as `longspan.analysis.flops.training_flops` says.

        """
        key = (batch_size, seq_len, scored is None, *map(pattern_of, self._layers))
        if key not in self._counts:
            traced, of_position = self._trace(batch_size, seq_len, scored is not None)
            layouts = [layout_of(layer, seq_len) for layer in self._layers]
            self._counts[key] = traced.flops(layouts), of_position
        flops, of_position = self._counts[key]
        if scored is None:
            return flops
        unscored = of_position * (batch_size * seq_len - scored)
        return Flops(flops.total - unscored, flops.dense - unscored)

    def _trace(self, batch_size: int, seq_len: int, some: bool) -> tuple[Trace, int]:
        """Return the trace of a whole batch and, if `some`, the operations of the head for one position."""
        whole = trace(self._model, seq_len, batch_size)
        positions = batch_size * seq_len
        if not some or positions == 1:
            return whole, 0
        # The head's products are in proportion to its positions.
        one = trace(self._model, seq_len, batch_size, 1 / positions)
        return whole, (whole.others - one.others) // (positions - 1)
