"""Patterns that grow while a model trains: an argument goes from one number to another in stages."""

from __future__ import annotations

import weakref
from dataclasses import fields, replace
from typing import Any

import lightning.pytorch as pl

from longspan.errors import ConfigError
from longspan.models.layers import CONFIG_KEY, attention_of, config_entry, self_attention_layers
from longspan.sparsity import SparsityConfig
from longspan.sparsity.mixture import patterns_in
from longspan.training.callbacks.stages import Stage, in_words, spread, stage_at, whole_number


class WindowSchedule(pl.Callback):
    """Moves a whole-number argument of the model's patterns in stages over the steps of training.

    At first the argument is `start`; the values of the stages lie at equal distances, rounded, and the last
    one, `stop`, holds from optimizer step `steps` on (counted from 0). All layers whose patterns have the
    argument take part, and so do patterns inside of others (of heads, of set operations); what the
    configuration of the pattern says for it is of no effect. Windows that grow over training are those of
    Longformer's staged training (Beltagy et al. 2020, arXiv:2004.05150).

    The stage is a function of the trainer's optimizer step alone, so a run that resumes from a checkpoint has
    the patterns of the run that wrote it. A validation sees the patterns that the last step was trained with.
    The model is left with those of the last step, in its configuration too: an export has them.

    Logged: ``train/<argument>``, the present value.

    A model compiled by torch.compile is compiled again in the first step of a stage.

    Args:
        argument: name of a whole-number argument, such as ``num_sliding_window_blocks``.
        start: its first value.
        stop: its last value, which may be the smaller one.
        steps: the optimizer step from which on it is `stop`, at least 1.
        stages: number of values, at least 2; `start` and `stop` are two of them.

    Raises:
        ValueError: a number is out of its range. When training starts, ConfigError: no pattern of the model
            has such an argument, or one cannot have a value of a stage.

    """

    def __init__(self, argument: str, start: int, stop: int, steps: int, stages: int = 4) -> None:
        if argument in ("num_heads", "block", "seed"):
            raise ValueError(f"argument={argument!r} must be one that says how many blocks are kept")
        self.argument = argument
        start, stop = whole_number("start", start, 0), whole_number("stop", stop, 0)
        steps, stages = whole_number("steps", steps, 1), whole_number("stages", stages, 2)
        values = [start + round((stop - start) * number / (stages - 1)) for number in range(stages)]
        self.stages = spread(values, steps)
        self._patterns: list[SparsityConfig] = []
        self._model: Any = lambda: None
        self._stage: Stage | None = None

    def begin(self, model: Any, seq_len: int) -> None:
        """Note the patterns that a model comes with, try every stage, and set the first.

        Args:
            model: a Hugging Face model that was made sparse; a second time nothing is done.
            seq_len: tokens of the longest sequence.

        Raises:
            ConfigError: as the class says.

        """
        if self._model() is model:
            return
        layers = self_attention_layers(model)
        patterns = [attention_of(layer).sparsity_config for layer in layers]
        if not any(takes(pattern, self.argument) for pattern in patterns):
            names = ", ".join(dict.fromkeys(pattern.name for pattern in patterns))
            raise ConfigError(
                f"schedule: argument={self.argument!r} must be a whole-number argument of one of the model's "
                f"patterns, which are {names}"
            )
        for stage in self.stages:
            for pattern in dict.fromkeys(patterns):
                try:
                    changed = with_value(pattern, self.argument, stage.value)
                    changed.check_num_blocks(-(-seq_len // changed.block))
                except ValueError as error:
                    raise ConfigError(
                        f"schedule: {self.argument} {stage.value} from step {stage.first_step}: {error}"
                    ) from error
        self._patterns, self._model = patterns, weakref.ref(model)
        self._set(model, self.stages[0])

    def at(self, stage: Stage) -> list[SparsityConfig]:
        """Return the pattern of each layer in a stage; `begin` comes first."""
        return [with_value(pattern, self.argument, stage.value) for pattern in self._patterns]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, where that was not done; a model that was trained before starts anew."""
        self.begin(pl_module.model, trainer.datamodule.seq_len)  # type: ignore[attr-defined]
        self._apply(pl_module, trainer.global_step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Give the model the patterns of the step that begins, and log the value."""
        self._apply(pl_module, trainer.global_step)
        assert self._stage is not None
        pl_module.log(f"train/{self.argument}", float(self._stage.value), batch_size=1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the model the patterns of its last step: a resumed run may validate before it trains."""
        if self._model() is not None:
            self._apply(pl_module, max(0, trainer.global_step - 1))

    def in_words(self, seq_len: int) -> str:
        """Name the stages, with the share of the blocks that the layers keep of `seq_len` tokens."""

        def describe(stage: Stage) -> str:
            densities = [pattern.layout(seq_len).density for pattern in self.at(stage)]
            return f"{stage.value:,} (density {sum(densities) / len(densities):.3f})"

        return f"{self.argument} {in_words(self.stages, describe)}"

    def _apply(self, pl_module: pl.LightningModule, step: int) -> None:
        stage = stage_at(self.stages, step)
        if stage != self._stage:
            self._set(pl_module.model, stage)

    def _set(self, model: Any, stage: Stage) -> None:
        layers: list[Any] = self_attention_layers(model)
        patterns = self.at(stage)
        for layer, pattern in zip(layers, patterns, strict=True):
            attention_of(layer).sparsity_config = pattern
        one = patterns[0] if len(set(patterns)) == 1 else patterns
        setattr(layers[0].config, CONFIG_KEY, config_entry(one, patterns))
        self._stage = stage


def takes(pattern: SparsityConfig, argument: str) -> bool:
    """Say whether a pattern, or one inside of it, has a whole-number argument of that name."""
    own = _arguments(pattern)
    if type(own.get(argument)) is int:
        return True
    return any(takes(inner, argument) for value in own.values() for inner in patterns_in(value))


def with_value(pattern: SparsityConfig, argument: str, value: int) -> SparsityConfig:
    """Return a pattern with another value of an argument, in the patterns inside of it too.

    Raises:
        ValueError: the value is out of its range.

    """
    if not takes(pattern, argument):
        return pattern
    changed: dict[str, Any] = {}
    for name, own in _arguments(pattern).items():
        if name == argument and type(own) is int:
            changed[name] = value
        elif isinstance(own, SparsityConfig):
            changed[name] = with_value(own, argument, value)
        elif isinstance(own, tuple) and patterns_in(own):
            changed[name] = tuple(with_value(inner, argument, value) for inner in own)
    return replace(pattern, **changed)


def _arguments(pattern: SparsityConfig) -> dict[str, Any]:
    return {field.name: getattr(pattern, field.name) for field in fields(pattern) if field.init}
