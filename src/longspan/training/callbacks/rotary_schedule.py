"""Rotary positions that are stretched in stages while a model trains."""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl

from longspan.errors import ConfigError
from longspan.positions.rotary import check_rotary_options, extend_rotary, rotary_factor
from longspan.positions.rotary_modules import RotaryState, restore_rotary, rotary_state


class RotarySchedule(pl.Callback):
    """Extends a model's rotary positions in stages over the steps of training.

    From optimizer step ``steps[i]`` on (counted from 0), the model trains with its positions extended to
    ``max_positions[i]``; before ``steps[0]`` as it was. Each stage counts its factor from the model's
    original length, as `longspan.positions.rotary.extend_rotary` does. YaRN's authors train factor 32 from
    the weights of factor 16 (Peng et al. 2023, arXiv:2309.00071), LongRoPE's a length of 256k from that of
    128k, each with its own factors (Ding et al. 2024, arXiv:2402.13753).

    The stage is a function of the trainer's optimizer step alone, so a run that resumes from a checkpoint
    has the positions of the run that wrote it, of which the file holds the weights alone. A validation uses
    the positions of the last training step. After training the model has those of the last step.

    Logged: ``train/rotary_factor``, the present length as a multiple of the original one.

    The schedule changes frequencies, not data: the sequences have ``data.seq_len`` tokens in every stage.
    torch.compile compiles a model again in the first step of a stage, since the frequencies and their scale
    are constants of the compiled code.

    Args:
        method: "linear", "ntk", "dynamic", "yarn" or "longrope".
        steps: the optimizer steps at which the stages begin, ascending, none negative.
        max_positions: the length of each stage in tokens, ascending; the first one may be the model's own.
        layer_types: as in `extend_rotary`.
        options: the method's options, as in `extend_rotary`, for all stages.
        stage_options: options of each stage, in a list; they win over `options`.

    Raises:
        ValueError: an unknown method or option, or lists that are empty, of different lengths or not
            ascending. When training starts, ConfigError: a stage that the model cannot be given.

    """

    def __init__(
        self,
        method: str,
        steps: Sequence[int],
        max_positions: Sequence[int],
        layer_types: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
        stage_options: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.method = method
        self.steps = _ascending("steps", steps, 0)
        self.max_positions = _ascending("max_positions", max_positions, 1)
        if len(self.steps) != len(self.max_positions):
            raise ValueError(
                f"steps and max_positions must have the same number of stages, got {len(self.steps)} and "
                f"{len(self.max_positions)}"
            )
        each = [{}] * len(self.steps) if stage_options is None else list(stage_options)
        if len(each) != len(self.steps):
            raise ValueError(
                f"stage_options must be one mapping for each of the {len(self.steps)} stages, got {len(each)}"
            )
        self.options = [check_rotary_options(method, {**(options or {}), **own}) for own in each]
        self.layer_types = None if layer_types is None else list(layer_types)
        self._start: RotaryState | None = None
        self._model: Any = lambda: None
        self._stage: int | None = None

    def stage(self, step: int) -> int | None:
        """Return the stage of an optimizer step, counted from 0; None before the first."""
        begun = [index for index, first in enumerate(self.steps) if first <= step]
        return begun[-1] if begun else None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the positions of the model, and try every stage before the first step."""
        model: Any = pl_module.model
        try:
            if self._model() is not model:
                self._start, self._model = rotary_state(model), weakref.ref(model)
            for stage in range(len(self.steps)):
                self._set(model, stage)
            self._set(model, None)
        except ValueError as error:
            raise ConfigError(f"RotarySchedule: {error}") from error

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the positions of the step that begins, and log their factor."""
        self._apply(pl_module, trainer.global_step)
        pl_module.log("train/rotary_factor", rotary_factor(self._model()), batch_size=1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the positions of the last step: a resumed run may validate before it trains."""
        if self._start is not None:
            self._apply(pl_module, max(0, trainer.global_step - 1))

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule, to warn a run that resumes with another one."""
        return {
            "method": self.method,
            "steps": self.steps,
            "max_positions": self.max_positions,
            "layer_types": self.layer_types,
            "options": self.options,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn if the checkpoint was trained with another schedule; this one is used."""
        own = self.state_dict()
        changes = [
            f"{key}: {state_dict[key]} before, {own[key]} now" for key in own if state_dict[key] != own[key]
        ]
        if changes:
            warnings.warn(f"the checkpoint had another RotarySchedule: {'; '.join(changes)}", stacklevel=2)

    def _apply(self, pl_module: pl.LightningModule, step: int) -> None:
        stage = self.stage(step)
        if stage != self._stage:
            self._set(pl_module.model, stage)

    def _set(self, model: Any, stage: int | None) -> None:
        """Set a stage, starting from the first positions of the model: it may be an earlier stage."""
        assert self._start is not None
        restore_rotary(model, self._start)
        if stage is not None:
            extend_rotary(
                model,
                self.max_positions[stage],
                self.method,
                layer_types=self.layer_types,
                **self.options[stage],
            )
        self._stage = stage


def _ascending(name: str, values: Sequence[int], least: int) -> list[int]:
    numbers = list(values)
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in numbers)
    ascending = all(low < high for low, high in itertools.pairwise(numbers))
    if not numbers or not whole or not ascending or numbers[0] < least:
        raise ValueError(f"{name} must be ascending whole numbers from {least} on, got {numbers}")
    return numbers
