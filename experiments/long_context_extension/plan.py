"""What is trained and measured, at the size of a GPU and at that of two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from longspan.sparsity import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    SparsityConfig,
)

METHODS = ("tile", "interpolate", "truncate-and-normal", "zero")
ROTARY = ("none", "linear", "ntk", "yarn")


@dataclass(frozen=True)
class Scale:
    """Sizes of an experiment.

    Attributes:
        objective: "mlm" or "clm".
        architecture: of the model with learned positions; that with rotary ones is a Llama, causal.
        hidden, layers, heads: of both.
        trained: tokens of the pretraining's sequences.
        factors: how many times longer.
        block, window: of the patterns: tokens a block, blocks a window.
        tokens: a step.
        pretrain, more: steps of pretraining, and of training at the new length.
        lr, more_lr: peak learning rates of the two.
        sequences: held-out sequences of the longest length that are read; shorter ones in proportion.
        packages: installed packages whose source is read beside the standard library.

    """

    objective: str
    architecture: str
    hidden: int
    layers: int
    heads: int
    trained: int
    factors: tuple[int, ...]
    block: int
    window: int
    tokens: int
    pretrain: int
    more: int
    lr: float
    more_lr: float
    sequences: int
    packages: tuple[str, ...]

    def patterns(self, attention: str) -> dict[str, SparsityConfig]:
        """Patterns whose windows are no wider than the trained length."""
        shared: dict[str, Any] = {
            "num_heads": self.heads, "block": self.block, "num_sliding_window_blocks": self.window,
            "attention": attention,
        }  # fmt: skip
        return {
            "bslongformer": BSLongformerSparsityConfig(**shared),
            "bigbird": BigBirdSparsityConfig(**shared),
            "local_sliding_window": LocalSlidingWindowSparsityConfig(**shared),
        }


GPU = Scale(
    objective="mlm", architecture="bert", hidden=384, layers=6, heads=6, trained=512, factors=(8, 32),
    block=64, window=7, tokens=65_536, pretrain=3000, more=300, lr=1e-3, more_lr=2e-4, sequences=16,
    packages=("torch", "transformers", "numpy", "sympy", "scipy"),
)  # fmt: skip
# Causal, since a masked model of bytes learns nothing of its context in so few steps.
CPU = Scale(
    objective="clm", architecture="gpt2", hidden=96, layers=3, heads=4, trained=128, factors=(8,), block=16,
    window=5, tokens=2048, pretrain=500, more=40, lr=3e-3, more_lr=1e-3, sequences=8,
    packages=("numpy", "matplotlib"),
)  # fmt: skip
TINY = replace(CPU, hidden=32, layers=1, heads=2, pretrain=4, more=2, tokens=512, sequences=2, packages=())
SCALES = {"gpu": GPU, "cpu": CPU, "tiny": TINY}


def cells(scale: Scale) -> list[dict[str, Any]]:
    """List the measurements in the order in which they are made; each is a line of the results."""
    found: list[dict[str, Any]] = [{"kind": "short"}]
    for factor in scale.factors:
        for pattern in ("bslongformer", "bigbird"):
            found += [
                {"kind": "extended", "factor": factor, "pattern": pattern, "method": method}
                for method in METHODS
            ]
            found.append({"kind": "scratch", "factor": factor, "pattern": pattern})
        # Without training: where a token meets its copy everywhere, and where it meets it nowhere.
        found += [
            {"kind": "untrained", "factor": factor, "pattern": pattern, "method": method}
            for pattern in ("full attention", "local_sliding_window")
            for method in ("tile", "truncate-and-normal")
        ]
    found.append({"kind": "rotary-short"})
    found += [
        {"kind": "rotary", "factor": factor, "method": method}
        for factor in scale.factors[:1]
        for method in ROTARY
    ]
    return found


def name_of(cell: dict[str, Any]) -> str:
    """Name a cell, as extended/8/bigbird/tile."""
    return "/".join(map(str, cell.values()))
