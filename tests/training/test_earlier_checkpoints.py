"""Checkpoints that were written before the modules were moved into rooms still resume.

`earlier_checkpoints.json` holds the settings of two such checkpoints and the names in them. A checkpoint is
refused when a setting differs that may not, so a renamed target or argument would fail here.
"""

import json
from pathlib import Path

import pytest
import torch

from longspan.config.compose import compose
from longspan.training.build import read_settings
from longspan.training.resuming import changed_settings
from longspan.training.run import train

EARLIER = json.loads(Path(__file__).with_name("earlier_checkpoints.json").read_text())


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_the_same_command_may_resume_from_an_earlier_checkpoint(tmp_path, objective):
    now = read_settings(compose([*EARLIER["overrides"][objective], f"output_dir={tmp_path}"]))
    assert changed_settings(EARLIER["settings"][objective], now) == []
    other = {**now, "optimizer": {**now["optimizer"], "lr": 1.0}}
    assert changed_settings(EARLIER["settings"][objective], other) == ["optimizer.lr: 0.003 before, 1.0 now"]


def test_a_checkpoint_holds_what_an_earlier_one_holds(composed, tmp_path):
    train(composed())
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(EARLIER["keys"]) <= set(state)
    assert sorted(state["callbacks"]) == EARLIER["callbacks"]
