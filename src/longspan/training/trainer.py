"""Makes Lightning's Trainer: its arguments that matter here, each with one type, and what every run has."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger

from longspan.training.callbacks.budget import Budget
from longspan.training.callbacks.ending import FinalValidation, GracefulInterrupt
from longspan.training.callbacks.resume import ExactResume


def make_trainer(
    run_dir: str,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
    accelerator: str = "auto",
    devices: int | str = "auto",
    num_nodes: int = 1,
    strategy: str = "auto",
    precision: str = "32-true",
    max_steps: int = 1000,
    max_epochs: int | None = None,
    max_time: str | None = None,
    val_check_interval: int = 100,
    limit_val_batches: int | float = 1.0,
    accumulate_grad_batches: int = 1,
    gradient_clip_val: float | None = 1.0,
    log_every_n_steps: int = 10,
    deterministic: bool | str = True,
    num_sanity_val_steps: int = 0,
) -> pl.Trainer:
    """Return a Trainer that ends with a validation, resumes exactly and takes Ctrl-C between two steps.

    Training ends at whichever of `max_steps`, `max_epochs`, `max_time` and a budget among the callbacks comes
    first. The schedule counts optimizer steps, so a run that `max_time` ends before `max_steps` has not come
    to the end of its schedule, and two such runs need not be equal: for equal runs, bound the steps. A budget
    of seconds has a schedule that follows the time.

    Lightning's own remarks about devices and about why it stopped are silenced; its warnings are not.

    Args:
        run_dir: the run's directory; nothing is written elsewhere.
        callbacks: besides `ExactResume`, `FinalValidation` and `GracefulInterrupt`, which every run has.
        loggers: none means that nothing is logged.
        accelerator: "auto" takes a GPU where there is one, "cpu", "gpu", "cuda", "mps".
        devices: how many, or "auto" for all.
        num_nodes: machines.
        strategy: "auto", "ddp", and whatever else Lightning knows.
        precision: "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true".
        max_steps: optimizer steps; -1 for no limit.
        max_epochs: passes over the data; None for no limit.
        max_time: "DD:HH:MM:SS" of training; None for no limit.
        val_check_interval: batches between two validations, counted over the whole run.
        limit_val_batches: batches of a validation: a number (int) or a share (float); 0 for no validation.
        accumulate_grad_batches: batches of an optimizer step.
        gradient_clip_val: largest norm of the gradient; None for no limit.
        log_every_n_steps: batches between two rows of the log.
        deterministic: refuse operations that give other bits in every run; "warn" to only warn of them.
        num_sanity_val_steps: validation batches before training starts.

    Raises:
        ValueError: when nothing ends the run, or an interval or limit is out of range.

    """
    if max_steps < -1 or max_steps == 0:
        raise ValueError(f"max_steps must be positive, or -1 for no limit, got {max_steps}")
    budgeted = any(isinstance(callback, Budget) for callback in callbacks)
    if max_steps == -1 and max_epochs is None and max_time is None and not budgeted:
        raise ValueError(
            "nothing ends this run: set trainer.max_steps, trainer.max_epochs, trainer.max_time or a budget"
        )
    for name, value in (
        ("val_check_interval", val_check_interval),
        ("accumulate_grad_batches", accumulate_grad_batches),
        ("log_every_n_steps", log_every_n_steps),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for source in ("utilities.rank_zero", "accelerators.cuda"):
        logging.getLogger(f"lightning.pytorch.{source}").setLevel(logging.WARNING)
    return pl.Trainer(
        default_root_dir=run_dir,
        callbacks=[ExactResume(), FinalValidation(), GracefulInterrupt(), *callbacks],
        logger=list(loggers) or False,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
        max_steps=max_steps,
        max_epochs=-1 if max_epochs is None else max_epochs,
        max_time=max_time,
        val_check_interval=val_check_interval,
        check_val_every_n_epoch=None,
        limit_val_batches=limit_val_batches,
        accumulate_grad_batches=accumulate_grad_batches,
        gradient_clip_val=gradient_clip_val,
        log_every_n_steps=log_every_n_steps,
        deterministic=deterministic,  # type: ignore[arg-type]
        num_sanity_val_steps=num_sanity_val_steps,
        # The data module gives each process its share.
        use_distributed_sampler=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
    )


make_trainer.supplied_by_run = ("callbacks", "loggers")  # type: ignore[attr-defined]
