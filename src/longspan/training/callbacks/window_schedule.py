"""Patterns that grow while a model trains: an argument changes from one number to another in stages."""

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

    The first value is `start`; the values of the stages lie at equal distances, rounded, and the last one,
    `stop`, holds from optimizer step `steps` on (counted from 0). All patterns that have the argument take
    part, also those inside others (of heads, of set operations); the configuration of the pattern has no
    effect on it. Longformer's staged training lets windows grow (Beltagy et al. 2020, arXiv:2004.05150).

    The stage is a function of the trainer's optimizer step alone, so a run that resumes from a checkpoint has
    the patterns of the run that wrote it. A validation uses the patterns of the last training step. After
    training the model has those of the last step, in its configuration too: an export has them.

    Logged: ``train/<argument>``, the present value.

    torch.compile compiles a model again in the first step of a stage.

    Args:
        argument: name of a whole-number argument, such as ``num_sliding_window_blocks``.
        start: its first value.
        stop: its last value, which may be the smaller one.
        steps: the first optimizer step with the value `stop`, at least 1.
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
        """Record the patterns of a model, try every stage, and set the first.

        Args:
            model: a Hugging Face model that was made sparse; a second call with it has no effect.
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
        """Call `begin` if it was not called; a model that was trained before starts again."""
        self.begin(pl_module.model, trainer.datamodule.seq_len)  # type: ignore[attr-defined]
        self._apply(pl_module, trainer.global_step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the patterns of the step that begins, and log the value."""
        self._apply(pl_module, trainer.global_step)
        assert self._stage is not None
        pl_module.log(f"train/{self.argument}", float(self._stage.value), batch_size=1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the patterns of the last step: a resumed run may validate before it trains."""
        if self._model() is not None:
            self._apply(pl_module, max(0, trainer.global_step - 1))

    def in_words(self, seq_len: int) -> str:
        """Return the stages in words, with the density of the layers at `seq_len` tokens."""

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
    """Return whether a pattern, or one inside it, has a whole-number argument of that name."""
    arguments = _arguments(pattern)
    if type(arguments.get(argument)) is int:
        return True
    return any(takes(inner, argument) for value in arguments.values() for inner in patterns_in(value))


def with_value(pattern: SparsityConfig, argument: str, value: int) -> SparsityConfig:
    """Return a pattern with another value of an argument, in the patterns inside it too.

    Raises:
        ValueError: the value is out of its range.

    """
    if not takes(pattern, argument):
        return pattern
    changed: dict[str, Any] = {}
    for name, before in _arguments(pattern).items():
        if name == argument and type(before) is int:
            changed[name] = value
        elif isinstance(before, SparsityConfig):
            changed[name] = with_value(before, argument, value)
        elif isinstance(before, tuple) and patterns_in(before):
            changed[name] = tuple(with_value(inner, argument, value) for inner in before)
    return replace(pattern, **changed)


def _arguments(pattern: SparsityConfig) -> dict[str, Any]:
    return {field.name: getattr(pattern, field.name) for field in fields(pattern) if field.init}
