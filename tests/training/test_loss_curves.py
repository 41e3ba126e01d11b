"""Losses of small runs are those that were kept, so that a change of the code alone shows equal digits.

Where a change means to alter them, write the file anew and say why in the commit:

    LONGSPAN_KEEP_CURVES=1 python -m pytest tests/training/test_loss_curves.py
"""

import csv
import json
import os
from pathlib import Path

import pytest

from longspan.training.run import train

FILE = Path(__file__).with_name("loss_curves.json")
PATTERNS = ["bigbird", "fixed", "local_sliding_window"]
STEPS = 20


@pytest.mark.parametrize("objective", ["clm", "mlm"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_losses_are_the_kept_ones(composed, tmp_path, pattern, objective):
    """To 1e-4 of their size, since processors differ in the order of their sums."""
    train(
        composed(
            f"sparsity={pattern}",
            "sparsity.block=16",
            f"objective={objective}",
            "model=bert" if objective == "mlm" else "model=llama",
            "seed=1",
            "data.batch_size=2",
            "data.validation_sequences=2",
            "model.num_layers=2",
            "model.num_heads=2",
            "model.hidden_size=32",
            f"trainer.max_steps={STEPS}",
            f"trainer.val_check_interval={STEPS}",
            "trainer.log_every_n_steps=1",
            "logger=csv",
        )
    )
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = {
        "train": [float(row["train/loss"]) for row in rows if row.get("train/loss")],
        "validation": [float(row["val/loss"]) for row in rows if row.get("val/loss")],
    }
    assert len(losses["train"]) == STEPS
    assert losses["validation"]
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    name = f"{pattern} {objective}"
    if os.environ.get("LONGSPAN_KEEP_CURVES") == "1":
        kept[name] = {split: [round(one, 6) for one in values] for split, values in losses.items()}
        FILE.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
    assert losses == {split: pytest.approx(values, rel=1e-4) for split, values in kept[name].items()}
