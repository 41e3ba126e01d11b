"""The layouts that the original DeepSpeed classes made, all of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import longspan.sparsity as sparsity

ORACLE = Path(__file__).parent / "oracle"
CASES = json.loads((ORACLE / "layouts.json").read_text())["cases"]


@pytest.fixture(scope="module")
def original_layouts():
    with np.load(ORACLE / "layouts.npz") as arrays:
        return {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in arrays.files}


def make(case):
    return getattr(sparsity, case["cls"])(**case["kwargs"])


def lower_triangle_if_causal(pattern, dense):
    return dense.tril() if pattern.attention == "unidirectional" else dense


def test_all_cases_are_there(original_layouts):
    assert len(CASES) == 46
    assert {case["name"] for case in CASES} == set(original_layouts)


@pytest.mark.parametrize("case", [c for c in CASES if not c["random"]], ids=lambda case: case["name"])
def test_equal_to_the_original(case, original_layouts):
    pattern = make(case)
    expected = lower_triangle_if_causal(pattern, original_layouts[case["name"]])
    assert torch.equal(pattern.make_layout(case["seq_len"]), expected)


@pytest.mark.parametrize("case", [c for c in CASES if c["random"]], ids=lambda case: case["name"])
def test_random_layouts_have_the_original_structure(case, original_layouts):
    pattern = make(case)
    original = lower_triangle_if_causal(pattern, original_layouts[case["name"]])
    ours = pattern.make_layout(case["seq_len"])
    certain = replace(pattern, num_random_blocks=0).make_layout(case["seq_len"])
    assert ours.shape == original.shape
    for layout in (ours, original):
        assert bool((layout >= certain).all())
        assert int((layout - certain).sum(-1).max()) <= pattern.num_random_blocks
        one_for_all = bool((layout == layout[:1]).all())
        assert one_for_all == (not pattern.different_layout_per_head or pattern.num_heads == 1)
    # The original draws from all columns, kept ones too; ours adds that many wherever that many are free.
    allowed = lower_triangle_if_causal(pattern, torch.ones_like(ours))
    free = (allowed - certain).sum(-1)
    assert torch.equal((ours - certain).sum(-1), free.clamp(max=pattern.num_random_blocks))
