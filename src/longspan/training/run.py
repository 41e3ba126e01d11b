"""One training run: each part made from its configuration, put together, trained and reported."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from longspan.analysis.start import warn_at_start
from longspan.config.instantiate import instantiate
from longspan.config.patterns import distinct_patterns, read_patterns
from longspan.console import print_report
from longspan.data import Objective, Tokenizer
from longspan.errors import ConfigError, nearest
from longspan.models import sparsify
from longspan.models.layers import self_attention_layers
from longspan.positions import learned_limit
from longspan.records.settings import EXCEPT_ON_RESUME, MAY_CHANGE_ON_RESUME
from longspan.sparsity import SparsityConfig
from longspan.training.callbacks.architecture import KeepArchitecture
from longspan.training.callbacks.budget import Budget, FlopBudget
from longspan.training.callbacks.length_schedule import LengthSchedule
from longspan.training.callbacks.settings import (
    CORPUS_KEY,
    KEY,
    KeepSettings,
    changed_corpus,
    changed_settings,
)
from longspan.training.callbacks.stages import warn_of_unreached
from longspan.training.callbacks.window_schedule import WindowSchedule
from longspan.training.checkpoints import FOLDER, resolve_checkpoint
from longspan.training.data_module import DataModule
from longspan.training.loggers import CsvLogger, close_loggers
from longspan.training.module import LongspanModule
from longspan.training.reports.facts import run_facts, schedule_facts
from longspan.training.reports.logged import describe_end, describe_start
from longspan.training.reports.report import end_report, start_report, warn_unidirectional_pattern
from longspan.training.reports.results import collect_result, write_result
from longspan.training.trainer import validate_if_missing


def train(
    config: DictConfig,
    overrides: Sequence[str] = (),
    runs_dir: str | Path | None = None,
    resume: bool = False,
    sweep: str | None = None,
) -> dict[str, Any]:
    """Train as `config` says, print what it will do and what it reached, and write result.json.

    Args:
        config: as composed from conf/train.yaml; see RunConfig.
        overrides: what was asked for besides the defaults; recorded.
        runs_dir: where `ckpt_path=last` looks for the newest run; None: in this run's own folder alone.
        resume: go on from the last checkpoint in this run's own folder, where there is one, whatever
            `ckpt_path` says; also from one at the end of training, whose run died before its result was
            written.
        sweep: the name of the sweep that this run is a job of; loggers group runs by it. None outside of one.

    Returns:
        The result, as `longspan.training.reports.results.collect_result` describes it.

    Raises:
        ConfigError: where the parts cannot be made or do not go together.

    """
    started = time.perf_counter()
    output_dir = Path(config.output_dir)
    check(config)
    settings = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    own = resume and (output_dir / FOLDER / "last.ckpt").is_file()
    if own:
        config = OmegaConf.merge(config, {"ckpt_path": "last"})  # type: ignore[assignment]
    checkpoint = find_checkpoint(config, settings, output_dir, runs_dir, may_be_over=own)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data, module, pattern = build(config)
    account = data.corpus_info.to_dict()
    check_corpus(checkpoint, account)
    schedules, pattern = begin_schedules(config, module, data, pattern)
    budget: Budget | None = instantiate(config.budget) or None
    check_budget(budget, schedules)
    # In front: what comes later asks whether the training is over.
    callbacks = [] if budget is None else [budget]
    callbacks += [KeepSettings(settings, account), KeepArchitecture()]
    # A schedule before whatever looks at the batches, which it may cut.
    callbacks += [*schedules, *instantiate(config.callbacks).values()]
    loggers = list(instantiate(config.logger).values())
    trainer: pl.Trainer = instantiate(config.trainer, callbacks=callbacks, loggers=loggers)
    if budget is not None:
        plan_budget(budget, trainer, module, data, None if own else checkpoint)
    try:
        facts = run_facts(
            name=run_name(config, module, pattern),
            output_dir=str(output_dir),
            model=module.model,
            objective=module.objective.name,
            sparsity=pattern,
            seq_len=data.seq_len,
            batch_size=data.batch_size,
            corpus=account,
            byte_entropy=data.byte_entropy,
            trainer=trainer,
            backend=config.attention_backend,
            overrides=overrides,
            budget=None if budget is None else str(budget),
            schedules=[schedule_facts(schedule, pattern, data.seq_len) for schedule in schedules],
        )
    except ValueError as error:
        raise ConfigError(f"attention_backend={config.attention_backend}: {error}") from error
    print_report(start_report(facts))
    if trainer.is_global_zero:
        warn_at_start(module.model, data.seq_len, trainer.strategy.root_device, facts.precision)
        for schedule in schedules:
            warn_of_unreached(schedule.stages, trainer.max_steps)
    if checkpoint is not None:
        print(f"Going on from {checkpoint}")
    keep_metrics_until(checkpoint, output_dir, loggers)
    describe_start(loggers, facts, settings, module.model, sweep)
    interrupted = fit(trainer, module, data, checkpoint)
    if own and interrupted is None:
        validate_if_missing(trainer, module, data)
    result = collect_result(facts, trainer, module, time.perf_counter() - started, settings)
    write_result(result, output_dir)
    describe_end(loggers, result)
    print_report(end_report(result))
    close_loggers(loggers)
    if interrupted is not None:
        # A sweep ends with it.
        sys.exit(interrupted)
    return result


def check(config: DictConfig) -> None:
    """Refuse what can be told before anything is made; raises ConfigError."""
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


def build(
    config: DictConfig,
) -> tuple[DataModule, LongspanModule, SparsityConfig | list[SparsityConfig | None]]:
    """The data, the module with its sparse model, and its pattern or one a layer; the corpus is read.

    Raises ConfigError where a part cannot be made of its arguments.
    """
    objective: Objective = instantiate(config.objective)
    tokenizer: Tokenizer = instantiate(config.tokenizer)
    data: DataModule = instantiate(config.data, tokenizer=tokenizer, objective=objective)
    model = instantiate(
        config.model,
        objective=objective.name,
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    pattern = read_patterns(config, lambda: len(self_attention_layers(model)))
    warn_unidirectional_pattern(objective.name, pattern)
    both_ways = {one.name for one in distinct_patterns(pattern) if one.attention == "bidirectional"}
    if objective.name == "clm" and both_ways:
        warnings.warn(
            f"the pattern {', '.join(sorted(both_ways))} is bidirectional and the objective causal: every "
            "layer is causal to the token, so what the pattern keeps above the diagonal is never attended",
            stacklevel=2,
        )
    try:
        for one in distinct_patterns(pattern):
            one.layout(data.seq_len)
        extend = instantiate(config.position)
        if extend:
            extend(model=model, sparsity=pattern, backend=config.attention_backend)
        else:
            sparsify(model, pattern, backend=config.attention_backend)
        check_length(model, data.seq_len)
        data.setup()
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(str(error)) from error
    optimizer, scheduler = instantiate(config.optimizer), instantiate(config.scheduler)
    try:
        module = LongspanModule(model, objective, optimizer, scheduler, config.compile, config.loss_chunk)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return data, module, pattern


def begin_schedules(
    config: DictConfig,
    module: LongspanModule,
    data: DataModule,
    pattern: SparsityConfig | list[SparsityConfig | None],
) -> tuple[list[WindowSchedule | LengthSchedule], SparsityConfig | list[SparsityConfig | None]]:
    """The schedules, and the pattern with which training begins under them; the model is given it.

    Raises ConfigError where a schedule cannot be made, or does not go together with the model.
    """
    schedules = list(instantiate(config.schedule).values())
    if sum(isinstance(schedule, WindowSchedule) for schedule in schedules) > 1:
        raise ConfigError("schedule: at most one WindowSchedule; each would undo what the other changes")
    for schedule in schedules:
        if isinstance(schedule, WindowSchedule):
            schedule.begin(module.model, data.seq_len)
            first = schedule.at(schedule.stages[0])
            pattern = list(first) if isinstance(pattern, list) else first[0]
    return schedules, pattern


def check_length(model: Any, seq_len: int) -> None:
    """Refuse sequences longer than a table of learned positions; raises ConfigError."""
    limit = learned_limit(model)
    if limit is not None and seq_len > limit:
        raise ConfigError(
            f"data.seq_len={seq_len} is more than the {limit} positions of {type(model).__name__}; extend "
            f"them with position=tile (or interpolate, truncate_and_normal, zero) "
            f"position.max_positions={seq_len}"
        )


def find_checkpoint(
    config: DictConfig,
    settings: dict[str, Any],
    output_dir: Path,
    runs_dir: str | Path | None,
    may_be_over: bool = False,
) -> Path | None:
    """The checkpoint to go on from; with `may_be_over` also one that leaves nothing to train.

    Raises ConfigError where there is none, where it is of a run with other settings, or where nothing is left
    to train.
    """
    try:
        checkpoint = resolve_checkpoint(config.ckpt_path, output_dir, runs_dir or output_dir)
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error
    if checkpoint is None:
        return None
    # Mapped, so that no tensor is read.
    state = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
    if KEY not in state:
        warnings.warn(f"{checkpoint} holds no settings to compare this run's with", stacklevel=2)
    elif changes := changed_settings(state[KEY], settings):
        raise ConfigError(
            f"{checkpoint} is of a run with other settings: {'; '.join(changes)}. Go on with the same ones "
            f"({', '.join(MAY_CHANGE_ON_RESUME)} may differ, but for {' and '.join(EXCEPT_ON_RESUME)}), or "
            "begin anew without ckpt_path"
        )
    step = state["global_step"]
    limit = OmegaConf.select(config, "trainer.max_steps")
    if limit is not None and 0 <= limit <= step and not may_be_over:
        raise ConfigError(
            f"{checkpoint} has {step} steps behind it and trainer.max_steps={limit}: nothing is left to "
            "train; give a larger trainer.max_steps"
        )
    return checkpoint


def check_corpus(checkpoint: Path | None, account: dict[str, Any]) -> None:
    """Refuse to go on over other documents than those of the checkpoint's run; raises ConfigError.

    The settings may be the same all the same: they name files, not what is in them. A checkpoint that holds
    no account of its corpus is gone on with.
    """
    if checkpoint is None:
        return
    before = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True).get(CORPUS_KEY)
    if before is not None and (changes := changed_corpus(before, account)):
        raise ConfigError(
            f"{checkpoint} is of a run over another corpus {account['name']}: {'; '.join(changes)}. Go on "
            "with the same documents, or begin anew without ckpt_path"
        )


def check_budget(budget: Budget | None, schedules: Sequence[WindowSchedule | LengthSchedule]) -> None:
    """Refuse FLOPs with windows that grow; raises ConfigError.

    The steps are counted before training, by the first and cheapest stage: the run would overrun its budget.
    """
    if isinstance(budget, FlopBudget) and any(isinstance(one, WindowSchedule) for one in schedules):
        raise ConfigError(
            "budget=flops does not go together with a schedule of windows: what a step takes changes while "
            "the run trains. Give budget=tokens or budget=seconds, or schedule=none"
        )


def plan_budget(
    budget: Budget, trainer: pl.Trainer, module: LongspanModule, data: DataModule, checkpoint: Path | None
) -> None:
    """Bound the trainer by a budget.

    Raises ConfigError where it is too small, or where `checkpoint` leaves nothing of it.
    """
    try:
        budget.plan(trainer, module, data.seq_len, data.batch_size)
    except ValueError as error:
        raise ConfigError(f"budget: {error}") from error
    if checkpoint is None:
        return
    state = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
    if budget.spent_by(state, trainer):
        raise ConfigError(
            f"{checkpoint} has {state['global_step']} steps behind it, and a budget of {budget} leaves "
            f"nothing to train; give a larger budget.{budget.unit}"
        )


def keep_metrics_until(checkpoint: Path | None, output_dir: Path, loggers: Sequence[Logger]) -> None:
    """Take out of this run's file of metrics what was logged after the checkpoint it goes on from.

    Those steps are trained, and logged, again.
    """
    if checkpoint is None or checkpoint.resolve().parent != (output_dir / FOLDER).resolve():
        return
    steps = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)["global_step"]
    for logger in loggers:
        if isinstance(logger, CsvLogger):
            logger.keep_until(steps)


def fit(trainer: pl.Trainer, module: LongspanModule, data: DataModule, checkpoint: Path | None) -> int | None:
    """Train; gives None, or the status to exit with where it was interrupted.

    Raises ConfigError where the checkpoint is of another model.
    """
    # Deprecations inside torchdata and Lightning, which say nothing to whoever trains.
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    try:
        trainer.fit(module, datamodule=data, ckpt_path=None if checkpoint is None else str(checkpoint))
    except SystemExit as stop:
        # Lightning's end of Ctrl-C or SIGTERM, after its callbacks have saved what there is: 130 or 143, as a
        # shell says of such a command. Submitit ends a job that it has queued again, and knows it by a status
        # of its own.
        if stop.code not in (None, 0, 1):
            return int(stop.code)
        return 143 if isinstance(stop, SIGTERMException) else 130
    except RuntimeError as error:
        if checkpoint is None or "loading state_dict" not in str(error):
            raise
        raise ConfigError(f"{checkpoint} is of another model than this configuration's: {error}") from error
    return None


def run_name(
    config: DictConfig, module: LongspanModule, pattern: SparsityConfig | Sequence[SparsityConfig | None]
) -> str:
    """What to call a run in a table: objective, architecture and pattern, or its distinct patterns."""
    architecture = OmegaConf.select(config, "model.architecture") or type(module.model).__name__
    names = "+".join(dict.fromkeys(one.name for one in distinct_patterns(pattern))) or "dense"
    return f"{module.objective.name} {architecture} {names}"
