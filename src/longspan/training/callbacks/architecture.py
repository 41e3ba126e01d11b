"""The architecture of the model inside a run's checkpoints, to load the weights without the run."""

from __future__ import annotations

import json
from typing import Any

import lightning.pytorch as pl

# Its key in a checkpoint.
KEY = "architecture"


class KeepArchitecture(pl.Callback):
    """Writes the class and the configuration of a Hugging Face model into each checkpoint, as plain types."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add ``{"class": name in transformers, "config": fields}``; of another model, nothing."""
        model: Any = pl_module.model
        if hasattr(getattr(model, "config", None), "to_json_string"):
            config = json.loads(model.config.to_json_string(use_diff=False))
            checkpoint[KEY] = {"class": type(model).__name__, "config": config}
