"""Folders of runs as training leaves them, with losses that a test chooses."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from longspan.sparsity import from_dict
from longspan.training.reports.results import write_result

STEPS_LOGGED = 20


def make_run(
    folder: Path,
    pattern: str = "bigbird",
    seed: int = 0,
    loss: float = 2.0,
    *,
    objective: str = "clm",
    seq_len: int = 1024,
    steps: int = 200,
    tokens_per_second: float = 1e5,
    peak_memory: float = 2**30,
    step_flops: float = 1e12,
    cost: bool = True,
    status: str = "finished",
    corpus: str = "python_source",
    sha256: str = "ab" * 32,
    evaluation: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write result.json, metrics.csv and .hydra of a run that ends at a loss; `changes` are dotted keys."""
    attention = "unidirectional" if objective == "clm" else "bidirectional"
    values = {"name": pattern, "num_heads": 2, "block": 64, "attention": attention, **(arguments or {})}
    config = from_dict(values)
    layout = config.layout(seq_len)
    tokens_per_step = 8 * seq_len
    settings: dict[str, Any] = {
        "data": {"seq_len": seq_len, "batch_size": 8, "seed": seed, "corpus": {"packages": ["numpy"]}},
        "model": {"architecture": "llama" if objective == "clm" else "bert", "num_layers": 2},
        "sparsity": {"_target_": f"longspan.sparsity.{type(config).__name__}", **config.to_dict()},
        "optimizer": {"lr": 1e-3},
        "trainer": {"max_steps": steps, "run_dir": str(folder)},
        "logger": {"csv": {"run_dir": str(folder)}},
        "seed": seed,
        "output_dir": str(folder),
    }
    for key, value in (changes or {}).items():
        *parents, name = key.split(".")
        node = settings
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    seconds_per_step = tokens_per_step / tokens_per_second
    result = {
        "name": f"{objective} {pattern}",
        "overrides": [f"sparsity={pattern}", f"seed={seed}"],
        "date": f"2026-01-01T00:00:{seed:02}+00:00",
        "status": status,
        "seconds": steps * seconds_per_step,
        "output_dir": str(folder),
        "metrics": {
            "train_loss": loss,
            "val_loss": loss,
            "bits_per_byte": loss / math.log(2),
            "accuracy": None,
        },
        "steps": steps,
        "tokens": steps * tokens_per_step,
        "throughput": {
            "tokens_per_second": tokens_per_second,
            "step_seconds": seconds_per_step,
            "peak_memory_bytes": peak_memory,
        },
        "model": {"name": "LlamaForCausalLM", "parameters": 12345},
        "objective": objective,
        "patterns": [
            {"name": pattern, "density": float(layout.density), "layers": None, "config": config.to_dict()}
        ],
        "seq_len": seq_len,
        "tokens_per_step": tokens_per_step,
        "corpus": {"name": corpus, "train": {"sha256": sha256}, "validation": {"sha256": sha256}},
        "device": "NVIDIA H100",
        "precision": "bf16-mixed",
        "backend": "triton",
        "versions": {"python": "3.12.0", "torch": "2.11.0"},
        "config": settings,
    }
    if cost:
        result["cost"] = {"flops": steps * step_flops, "seconds": steps * seconds_per_step}
    write_result(result, folder)
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text(f"- sparsity={pattern}\n- seed={seed}\n")
    _write_metrics(
        folder / "metrics.csv", seed, loss, steps, tokens_per_step, cost, seconds_per_step, step_flops
    )
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def _write_metrics(
    path: Path, seed: int, loss: float, steps: int, tokens: int, cost: bool, seconds: float, flops: float
) -> None:
    noise = random.Random(seed)
    every = max(1, steps // STEPS_LOGGED)
    columns = [
        "step",
        "train/loss",
        "train/tokens",
        "val/loss",
        *(["cost/seconds", "cost/flops"] if cost else []),
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for done in range(every, steps + 1, every):
            # As losses do: fast, then ever slower, to where it ends.
            now = loss + 3.5 * math.exp(-8 * done / steps) - 3.5 * math.exp(-8)
            row: dict[str, Any] = {"step": done - 1}
            if cost:
                row |= {"cost/seconds": done * seconds, "cost/flops": done * flops}
            train = {"train/loss": now + noise.gauss(0, 0.02), "train/tokens": done * tokens}
            writer.writerow({**row, **train})
            writer.writerow({**row, "val/loss": now})


def make_study(
    folder: Path, seeds: int = 3, objectives: tuple[str, ...] = ("clm",), seq_len: int = 1024
) -> Path:
    """Write six patterns by some seeds, in the folders of a sweep."""
    noise = random.Random(0)
    number = 0
    patterns = {
        "dense": (1.42, 5e5, 9.0, 5.2), "fixed": (1.44, 8e5, 6.1, 2.9), "variable": (1.495, 9e5, 5.6, 2.3),
        "bigbird": (1.46, 9.6e5, 5.2, 2.2), "bslongformer": (1.468, 9.9e5, 5.1, 2.1),
        "local_sliding_window": (1.52, 11e5, 4.9, 2.0),
    }  # fmt: skip
    for objective in objectives:
        for seed in range(seeds):
            shared = noise.gauss(0, 0.012)
            for name, (loss, speed, memory, flops) in patterns.items():
                buckets = [
                    {"from": start, "to": start + seq_len // 8, "scored": 10, "accuracy": None,
                     "loss": loss + shared + 0.6 / (1 + start / 200) + noise.gauss(0, 0.01)}
                    for start in range(0, seq_len, seq_len // 8)
                ]  # fmt: skip
                make_run(
                    folder / f"{number}_{name}", name, seed, loss + shared + noise.gauss(0, 0.004),
                    objective=objective, seq_len=seq_len,
                    tokens_per_second=speed * (1 + noise.gauss(0, 0.01)),
                    peak_memory=memory * 2**30, step_flops=flops * 1e12,
                    evaluation={"by_position": buckets, "by_distance": []},
                )  # fmt: skip
                number += 1
    return folder


@pytest.fixture(scope="session")
def write_run():
    return make_run


@pytest.fixture(scope="session")
def write_study():
    return make_study
