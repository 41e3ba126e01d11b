"""Tiny models of every architecture, the six patterns, and the dense masks that say the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import longspan  # noqa: F401  (registers the attention implementation)
from longspan.models import build_model
from longspan.sparsity import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    SparsityConfig,
    VariableSparsityConfig,
)

HEADS = 4
BLOCK = 8
VOCABULARY = 40
PAD = 36
LENGTH = 45  # no multiple of the block
LOCAL_ATTENTION = 20  # ModernBERT's window, no multiple of the block either

OBJECTIVE_OF = {"bert": "mlm", "roberta": "mlm", "modernbert": "mlm", "gpt2": "clm", "llama": "clm"}


def make_model(architecture: str, objective: str | None = None, **arguments):
    """A tiny model in float64 whose attention matters to its logits."""
    torch.manual_seed(0)
    overrides = {"local_attention": LOCAL_ATTENTION} if architecture == "modernbert" else {}
    arguments = {
        "hidden_size": 8 * HEADS,
        "num_layers": 3 if architecture == "modernbert" else 2,
        "num_heads": HEADS,
        "num_kv_heads": 2 if architecture == "llama" else None,
        "intermediate_size": 16,
        "config_overrides": overrides,
        **arguments,
    }
    model = build_model(
        architecture,
        objective or OBJECTIVE_OF[architecture],
        VOCABULARY,
        64,
        pad_token_id=PAD,
        bos_token_id=37,
        eos_token_id=38,
        **arguments,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return model.double().eval()


def make_pattern(name: str, attention: str) -> SparsityConfig:
    """One of the six patterns, with heads of their own where the pattern knows them."""
    patterns: dict[str, Callable[[], SparsityConfig]] = {
        "dense": lambda: DenseSparsityConfig(HEADS, BLOCK, attention=attention),
        "fixed": lambda: FixedSparsityConfig(
            HEADS,
            BLOCK,
            True,
            num_local_blocks=2,
            attention=attention,
            num_different_global_patterns=2,
        ),
        "variable": lambda: VariableSparsityConfig(
            HEADS, BLOCK, True, num_random_blocks=1, local_window_blocks=(1, 2), attention=attention
        ),
        "bigbird": lambda: BigBirdSparsityConfig(
            HEADS, BLOCK, True, num_random_blocks=1, num_sliding_window_blocks=1, attention=attention
        ),
        "bslongformer": lambda: BSLongformerSparsityConfig(
            HEADS, BLOCK, num_sliding_window_blocks=1, attention=attention
        ),
        "local_sliding_window": lambda: LocalSlidingWindowSparsityConfig(HEADS, BLOCK, attention=attention),
    }
    return patterns[name]()


PATTERNS = ("dense", "fixed", "variable", "bigbird", "bslongformer", "local_sliding_window")


def token_mask(pattern: SparsityConfig, length: int, causal: bool) -> Tensor:
    """The pattern spelled out over tokens: bool ``[1, heads, length, length]``, True where attended."""
    layout = pattern.layout(length)
    blocks = layout.to_dense().bool()
    tokens = blocks.repeat_interleave(pattern.block, 1).repeat_interleave(pattern.block, 2)
    tokens = tokens[:, :length, :length]
    if causal or layout.causal:
        tokens = tokens.tril()
    return tokens[None]


def additive(mask: Tensor) -> Tensor:
    """A boolean mask as the floating point one that stock models take."""
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)


def for_stock(model, mask: Tensor):
    """The mask in the form that the stock model takes: ModernBERT wants one for each type of layer."""
    if model.config.model_type != "modernbert":
        return additive(mask)
    positions = torch.arange(mask.shape[-1])
    near = (positions[:, None] - positions[None, :]).abs() <= LOCAL_ATTENTION // 2
    return {"full_attention": additive(mask), "sliding_attention": additive(mask & near)}


@dataclass
class Case:
    """An architecture and what goes with it."""

    architecture: str

    @property
    def causal(self) -> bool:
        return OBJECTIVE_OF[self.architecture] == "clm"

    @property
    def attention(self) -> str:
        return "unidirectional" if self.causal else "bidirectional"

    def model(self, **arguments):
        return make_model(self.architecture, **arguments)

    def pattern(self, name: str) -> SparsityConfig:
        return make_pattern(name, self.attention)


@pytest.fixture(params=sorted(OBJECTIVE_OF))
def case(request) -> Case:
    return Case(request.param)


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The functions of this file: test folders are no packages, so tests cannot import them."""
    return SimpleNamespace(
        make_model=make_model,
        make_pattern=make_pattern,
        token_mask=token_mask,
        additive=additive,
        for_stock=for_stock,
    )


@pytest.fixture(params=PATTERNS)
def pattern_name(request) -> str:
    return request.param


@pytest.fixture
def ids() -> Tensor:
    """Two sequences of tokens, none of them special."""
    return torch.randint(0, PAD, (2, LENGTH), generator=torch.Generator().manual_seed(1))
