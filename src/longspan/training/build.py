"""Builds the parts of a training run from its configuration; later code needs only the parts."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from longspan.analysis.start import warn_at_start
from longspan.config.instantiate import instantiate
from longspan.config.messages import explain
from longspan.config.patterns import distinct_patterns, read_patterns
from longspan.data import Objective, Tokenizer
from longspan.errors import ConfigError, nearest
from longspan.models import sparsify
from longspan.models.layers import self_attention_layers
from longspan.positions import learned_limit
from longspan.sparsity import SparsityConfig
from longspan.training.callbacks.architecture import KeepArchitecture
from longspan.training.callbacks.budget import Budget, FlopBudget
from longspan.training.callbacks.length_schedule import LengthSchedule
from longspan.training.callbacks.settings import KeepSettings
from longspan.training.callbacks.stages import warn_of_unreached
from longspan.training.callbacks.window_schedule import WindowSchedule
from longspan.training.data_module import DataModule
from longspan.training.module import LongspanModule
from longspan_kernels.backends import resolve_backend

# One pattern for all layers, or one per layer; None for a layer that keeps the attention of the model.
Patterns = SparsityConfig | list[SparsityConfig | None]
Schedule = WindowSchedule | LengthSchedule


@dataclass(frozen=True)
class Run:
    """The parts of a training run.

    Attributes:
        name: name of the run in tables: objective, architecture and patterns.
        settings: the resolved configuration, as plain types.
        overrides: the command's overrides of the defaults.
        output_dir: the folder of the run's files.
        data: the batches; the corpus is read.
        module: the model, sparse, with objective, optimizer and learning-rate schedule.
        patterns: patterns of the model at the start of training.
        schedules: schedules of windows and lengths, which change during training.
        budget: limit of tokens, seconds or FLOPs; None if only the trainer limits the run.
        loggers: the trainer's loggers, which are not open yet.
        trainer: the trainer, bounded by the budget.
        backend: name of the attention backend on the trainer's device.
        started: when the run started, by `time.perf_counter`.

    """

    name: str
    settings: dict[str, Any]
    overrides: tuple[str, ...]
    output_dir: Path
    data: DataModule
    module: LongspanModule
    patterns: Patterns
    schedules: list[Schedule]
    budget: Budget | None
    loggers: list[Logger]
    trainer: pl.Trainer
    backend: str
    started: float


def build(config: DictConfig, overrides: Sequence[str] = ()) -> Run:
    """Seed the random generators, read the corpus and make the parts of a run.

    Args:
        config: as composed from conf/train.yaml; see `longspan.config.schemas.RunConfig`.
        overrides: the command's overrides of the defaults, for the record.

    Raises:
        ConfigError: a part cannot be made of its arguments, or the parts do not go together.

    """
    started = time.perf_counter()
    settings = read_settings(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data, module, patterns = _data_and_module(config)
    schedules, patterns = _schedules(config, module, data, patterns)
    budget = _budget(config, schedules)
    callbacks = [
        # The budget comes first: later callbacks ask whether the training is over.
        *([] if budget is None else [budget]),
        KeepSettings(settings, data.corpus_info.to_dict()),
        KeepArchitecture(),
        # A schedule may cut the batches, so it comes before callbacks that look at them.
        *schedules,
        *instantiate(config.callbacks).values(),
    ]
    loggers = list(instantiate(config.logger).values())
    trainer: pl.Trainer = instantiate(config.trainer, callbacks=callbacks, loggers=loggers)
    if budget is not None:
        try:
            budget.plan(trainer, module, data.seq_len, data.batch_size)
        except ValueError as error:
            raise ConfigError(f"budget: {error}") from error
    try:
        backend = resolve_backend(config.attention_backend, trainer.strategy.root_device)
    except ValueError as error:
        raise ConfigError(f"attention_backend={config.attention_backend}: {error}") from error
    architecture = OmegaConf.select(config, "model.architecture") or type(module.model).__name__
    names = "+".join(dict.fromkeys(one.name for one in distinct_patterns(patterns))) or "dense"
    return Run(
        name=f"{module.objective.name} {architecture} {names}",
        settings=settings,
        overrides=tuple(overrides),
        output_dir=Path(config.output_dir),
        data=data,
        module=module,
        patterns=patterns,
        schedules=schedules,
        budget=budget,
        loggers=loggers,
        trainer=trainer,
        backend=backend,
        started=started,
    )


def read_settings(config: DictConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain types, after the checks that need no part of the run.

    Raises:
        ConfigError: the seed is out of range, a callback, logger or schedule has no `_target_`, or a value is
            missing or cannot be resolved.

    """
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed={config.seed} must lie in [0, 2**32)")
    for group in ("callbacks", "logger", "schedule"):
        children = config[group]
        for name in children:
            child = children[name]
            if not (isinstance(child, DictConfig) and "_target_" in child):
                known = [str(other) for other in children if other != name]
                raise ConfigError(
                    f"{group}.{name} has no _target_, so it is no part of its own; present: "
                    f"{', '.join(known) or 'none'}{nearest(str(name), known)}"
                )
    try:
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error


def _data_and_module(config: DictConfig) -> tuple[DataModule, LongspanModule, Patterns]:
    """Make the data, the module with its sparse model, and the patterns."""
    objective: Objective = instantiate(config.objective)
    tokenizer: Tokenizer = instantiate(config.tokenizer)
    data: DataModule = instantiate(config.data, tokenizer=tokenizer, objective=objective)
    model = instantiate(
        config.model,
        objective=objective,
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    patterns = read_patterns(config, lambda: len(self_attention_layers(model)))
    _warn_of_directions(objective, patterns)
    try:
        for pattern in distinct_patterns(patterns):
            pattern.layout(data.seq_len)
        extend = instantiate(config.position)
        if extend:
            extend(model=model, sparsity=patterns, backend=config.attention_backend)
        else:
            sparsify(model, patterns, backend=config.attention_backend)
        limit = learned_limit(model)
        if limit is not None and data.seq_len > limit:
            raise ConfigError(
                f"data.seq_len={data.seq_len} is more than the {limit} positions of {type(model).__name__}; "
                f"extend them with position=tile (or interpolate, truncate_and_normal, zero) "
                f"position.max_positions={data.seq_len}"
            )
        data.setup()
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(str(error)) from error
    optimizer, scheduler = instantiate(config.optimizer), instantiate(config.scheduler)
    try:
        module = LongspanModule(model, objective, optimizer, scheduler, config.compile, config.loss_chunk)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return data, module, patterns


def _warn_of_directions(objective: Objective, patterns: Patterns) -> None:
    """Warn of patterns whose direction differs from the objective's."""
    names = {
        direction: sorted({one.name for one in distinct_patterns(patterns) if one.attention == direction})
        for direction in ("unidirectional", "bidirectional")
    }
    if not objective.causal and names["unidirectional"]:
        warnings.warn(
            f"the pattern {', '.join(names['unidirectional'])} is unidirectional and the objective is "
            "masked: a hidden token is predicted from what stands before it alone; leave sparsity.attention "
            "to the objective unless this is what you want",
            stacklevel=2,
        )
    if objective.causal and names["bidirectional"]:
        warnings.warn(
            f"the pattern {', '.join(names['bidirectional'])} is bidirectional and the objective causal: "
            "every layer is causal to the token, so what the pattern keeps above the diagonal is never "
            "attended",
            stacklevel=2,
        )


def _schedules(
    config: DictConfig, module: LongspanModule, data: DataModule, patterns: Patterns
) -> tuple[list[Schedule], Patterns]:
    """Make the schedules; return them and the patterns of their first stage, which the model is given."""
    schedules: list[Schedule] = list(instantiate(config.schedule).values())
    if sum(isinstance(schedule, WindowSchedule) for schedule in schedules) > 1:
        raise ConfigError("schedule: at most one WindowSchedule; each would undo what the other changes")
    for schedule in schedules:
        if isinstance(schedule, WindowSchedule):
            schedule.begin(module.model, data.seq_len)
            first = schedule.at(schedule.stages[0])
            patterns = list(first) if isinstance(patterns, list) else first[0]
    return schedules, patterns


def _budget(config: DictConfig, schedules: Sequence[Schedule]) -> Budget | None:
    """Make the budget; refuse FLOPs with growing windows, since later steps need more FLOPs."""
    budget: Budget | None = instantiate(config.budget) or None
    if isinstance(budget, FlopBudget) and any(isinstance(one, WindowSchedule) for one in schedules):
        raise ConfigError(
            "budget=flops does not go together with a schedule of windows: what a step takes changes while "
            "the run trains. Give budget=tokens or budget=seconds, or schedule=none"
        )
    return budget


def warn_before_start(run: Run) -> None:
    """Warn of patterns that miss tokens or are slow, and of late stages, in the first process only."""
    if run.trainer.is_global_zero:
        device, precision = run.trainer.strategy.root_device, str(run.trainer.precision)
        warn_at_start(run.module.model, run.data.seq_len, device, precision)
        for schedule in run.schedules:
            warn_of_unreached(schedule.stages, run.trainer.max_steps)
