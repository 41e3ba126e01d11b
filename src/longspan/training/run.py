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
from omegaconf import DictConfig, OmegaConf

from longspan.analysis.start import warn_at_start
from longspan.data import Objective, Tokenizer
from longspan.models import sparsify
from longspan.positions import learned_limit
from longspan.sparsity import SparsityConfig
from longspan.training.callbacks.architecture import KeepArchitecture
from longspan.training.callbacks.settings import FREE, KEY, KeepSettings, changed_settings
from longspan.training.checkpoints import resolve_checkpoint
from longspan.training.config import ConfigError, instantiate
from longspan.training.data_module import DataModule
from longspan.training.errors import nearest
from longspan.training.facts import run_facts
from longspan.training.loggers import close_loggers, log_configuration
from longspan.training.module import LongspanModule
from longspan.training.report import end_report, print_report, start_report, warn_unidirectional_pattern
from longspan.training.results import collect_result, write_result


def train(
    config: DictConfig, overrides: Sequence[str] = (), runs_dir: str | Path | None = None
) -> dict[str, Any]:
    """Train as `config` says, print what it will do and what it reached, and write result.json.

    Args:
        config: as composed from conf/train.yaml; see RunConfig.
        overrides: what was asked for besides the defaults; recorded.
        runs_dir: where `ckpt_path=last` looks for the newest run; None: in this run's own folder alone.

    Returns:
        The result, as `longspan.training.results.collect_result` describes it.

    Raises:
        ConfigError: where the parts cannot be made or do not go together.

    """
    started = time.perf_counter()
    output_dir = Path(config.output_dir)
    check(config)
    settings = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    checkpoint = find_checkpoint(config, settings, output_dir, runs_dir)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data, module, pattern = build(config)
    callbacks = [KeepSettings(settings), KeepArchitecture(), *instantiate(config.callbacks).values()]
    loggers = list(instantiate(config.logger).values())
    trainer: pl.Trainer = instantiate(config.trainer, callbacks=callbacks, loggers=loggers)
    account = data.corpus_info.to_dict()
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
        )
    except ValueError as error:
        raise ConfigError(f"attention_backend={config.attention_backend}: {error}") from error
    print_report(start_report(facts))
    if trainer.is_global_zero:
        warn_at_start(module.model, data.seq_len, trainer.strategy.root_device, facts.precision)
    if checkpoint is not None:
        print(f"Going on from {checkpoint}")
    log_configuration(loggers, {**settings, "corpus": account, "parameters": facts.parameters})
    interrupted = not fit(trainer, module, data, checkpoint)
    result = collect_result(facts, trainer, module, time.perf_counter() - started, settings)
    write_result(result, output_dir)
    print_report(end_report(result))
    close_loggers(loggers)
    if interrupted:
        # As a shell says of a command that Ctrl-C ended; a sweep ends with it.
        sys.exit(130)
    return result


def check(config: DictConfig) -> None:
    """Refuse what can be told before anything is made; raises ConfigError."""
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed={config.seed} must lie in [0, 2**32)")
    for group in ("callbacks", "logger"):
        children = config[group]
        for name in children:
            child = children[name]
            if not (isinstance(child, DictConfig) and "_target_" in child):
                known = [str(other) for other in children if other != name]
                raise ConfigError(
                    f"{group}.{name} has no _target_, so it is no part of its own; present: "
                    f"{', '.join(known) or 'none'}{nearest(str(name), known)}"
                )


def build(config: DictConfig) -> tuple[DataModule, LongspanModule, SparsityConfig]:
    """The data, the module with its sparse model, and the pattern; the corpus is read.

    Raises ConfigError where a part cannot be made of its arguments.
    """
    objective: Objective = instantiate(config.objective)
    tokenizer: Tokenizer = instantiate(config.tokenizer)
    pattern: SparsityConfig = instantiate(config.sparsity)
    data: DataModule = instantiate(config.data, tokenizer=tokenizer, objective=objective)
    model = instantiate(
        config.model,
        objective=objective.name,
        vocab_size=tokenizer.vocab_size,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    warn_unidirectional_pattern(objective.name, pattern)
    if objective.name == "clm" and pattern.attention == "bidirectional":
        warnings.warn(
            f"the pattern {pattern.name} is bidirectional and the objective causal: every layer is causal "
            "to the token, so what the pattern keeps above the diagonal is never attended",
            stacklevel=2,
        )
    try:
        pattern.layout(data.seq_len)
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
    config: DictConfig, settings: dict[str, Any], output_dir: Path, runs_dir: str | Path | None
) -> Path | None:
    """The checkpoint to go on from.

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
            f"({', '.join(FREE)} may differ), or begin anew without ckpt_path"
        )
    step = state["global_step"]
    limit = OmegaConf.select(config, "trainer.max_steps")
    if limit is not None and 0 <= limit <= step:
        raise ConfigError(
            f"{checkpoint} has {step} steps behind it and trainer.max_steps={limit}: nothing is left to "
            "train; give a larger trainer.max_steps"
        )
    return checkpoint


def fit(trainer: pl.Trainer, module: LongspanModule, data: DataModule, checkpoint: Path | None) -> bool:
    """Train; gives False where the user interrupted it.

    Raises ConfigError where the checkpoint is of another model.
    """
    # Deprecations inside torchdata and Lightning, which say nothing to whoever trains.
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    try:
        trainer.fit(module, datamodule=data, ckpt_path=None if checkpoint is None else str(checkpoint))
    except SystemExit:
        # Lightning's end of Ctrl-C, after its callbacks have saved what there is.
        return False
    except RuntimeError as error:
        if checkpoint is None or "loading state_dict" not in str(error):
            raise
        raise ConfigError(f"{checkpoint} is of another model than this configuration's: {error}") from error
    return True


def run_name(config: DictConfig, module: LongspanModule, pattern: SparsityConfig) -> str:
    """What to call a run in a table: objective, architecture and pattern."""
    architecture = OmegaConf.select(config, "model.architecture") or type(module.model).__name__
    return f"{module.objective.name} {architecture} {pattern.name}"
