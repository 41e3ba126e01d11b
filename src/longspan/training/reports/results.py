"""What a run reached, as a machine reads it: result.json in the run's directory."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from longspan.records.jsonable import to_jsonable
from longspan.records.run_folder import RESULT_FILE
from longspan.training.callbacks.budget import find_budget
from longspan.training.callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from longspan.training.callbacks.evaluation import Evaluation
from longspan.training.callbacks.throughput import Throughput, peak_memory
from longspan.training.loggers import CsvLogger, WandbRun
from longspan.training.module import LongspanModule
from longspan.training.performance.step_clock import PHASES
from longspan.training.reports.facts import RunFacts
from longspan.version import __version__

PACKAGES = ("torch", "lightning", "transformers")


def collect_result(
    facts: RunFacts,
    trainer: pl.Trainer,
    module: LongspanModule,
    seconds: float,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what a run reached, with everything that is needed to know what it was. Plain types throughout.

    The keys: `name`, `overrides`, `date` (UTC), `status` ("finished" or "interrupted"), `seconds` (of wall
    time), `output_dir`; `metrics`: `train_loss` (of the last step) and `val_loss` in nats a token,
    `best_val_loss`, `perplexity`, `accuracy` (share of scored tokens), `bits_per_byte`, `nats_per_byte`,
    `byte_entropy` (of all the held-out text, nats a byte) and `below_byte_entropy` (its difference to
    `nats_per_byte`, which is that of the validated sequences); a figure that is not known is None. `steps`,
    `tokens`; `throughput`: `tokens_per_second`, `step_seconds`, `peak_memory_bytes`; `cost`, from the run's
    first start on: `flops` and `dense_flops` (had every block been kept), `flops_per_step` and
    `dense_flops_per_step` (of the last optimizer step), `mfu` and `dense_mfu` (utilisation; None on a device
    whose peak is not known), `seconds` (of training without validation), `split`: seconds of `data`,
    `forward`, `backward` and `optimizer` in an optimizer step, all as
    `longspan.training.callbacks.throughput.Throughput` counts them; `budget`: None, or its `unit` ("tokens",
    "flops" or "seconds"), `limit` and what was `used` of it; `model`, `positions` (how they were extended, or
    None), `objective`, `patterns`, `corpus`, `device`, `precision`, `backend`, `versions`, `checkpoints`,
    `files`, `config`, `schedules` (their stages in words).
    """
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    bits = logged.get("val/bits_per_byte")
    nats = None if bits is None else bits * math.log(2)
    entropy = facts.byte_entropy
    best = last = best_loss = None
    throughput: dict[str, Any] = {"tokens_per_second": None, "step_seconds": None}
    costs: dict[str, Any] = {**dict.fromkeys(Throughput().costs()), "split": dict.fromkeys(PHASES)}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BestCheckpoint):
            best = callback.best_model_path or None
            best_loss = None if callback.best_model_score is None else float(callback.best_model_score)
        elif isinstance(callback, LastCheckpoint):
            last = callback.path if callback.written else None
        elif isinstance(callback, Throughput):
            throughput["tokens_per_second"] = callback.tokens_per_second
            throughput["step_seconds"] = callback.step_seconds
            costs = callback.costs()
    throughput["peak_memory_bytes"] = peak_memory(module.device)
    budget = find_budget(trainer)
    return {
        "name": facts.name,
        "overrides": list(facts.overrides),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "finished" if trainer.state.finished else "interrupted",
        "seconds": seconds,
        "output_dir": facts.output_dir,
        "metrics": {
            "train_loss": logged.get("train/loss", module.loss_before),
            "val_loss": logged.get("val/loss"),
            "best_val_loss": best_loss,
            "perplexity": logged.get("val/perplexity"),
            "accuracy": logged.get("val/accuracy"),
            "bits_per_byte": bits,
            "nats_per_byte": nats,
            "byte_entropy": entropy,
            "below_byte_entropy": None if nats is None or entropy is None else entropy - nats,
        },
        "steps": trainer.global_step,
        "tokens": module.tokens_seen,
        "throughput": throughput,
        "cost": costs,
        "budget": None if budget is None else budget.to_dict(trainer, module),
        "model": {
            "name": facts.model,
            "parameters": facts.parameters,
            "trainable_parameters": facts.trainable_parameters,
        },
        "positions": facts.extension,
        "objective": facts.objective,
        "patterns": [_without(asdict(pattern), "drawing") for pattern in facts.patterns],
        "schedules": [schedule.stages for schedule in facts.schedules],
        "seq_len": facts.seq_len,
        "tokens_per_step": facts.tokens_per_step,
        "corpus": facts.corpus,
        "device": facts.device,
        "precision": facts.precision,
        "backend": facts.backend,
        "versions": versions(),
        "checkpoints": {"best": best, "last": last},
        "files": _files(facts, trainer),
        "config": dict(config or {}),
    }


def write_result(result: Mapping[str, Any], run_dir: str | Path) -> Path:
    """Write a result to `result.json` in `run_dir` and return the path; a reader never sees half a file."""
    path = Path(run_dir) / RESULT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(to_jsonable(result), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    # Longspan's own is in its source: it may run from there, not installed.
    found = {"python": platform.python_version(), "longspan": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _files(facts: RunFacts, trainer: pl.Trainer) -> dict[str, str]:
    files = {"result": str(Path(facts.output_dir) / RESULT_FILE)}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Evaluation) and callback.written:
            files["evaluation"] = str(callback.path)
    for logger in trainer.loggers:
        if isinstance(logger, CsvLogger):
            files["metrics"] = logger.metrics_file
        elif isinstance(logger, WandbRun):
            files["wandb"] = str(logger.folder)
    return files


def _without(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}
