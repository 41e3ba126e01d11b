"""The settings and the corpus of a run inside its checkpoints, to refuse a run with other ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from longspan.records.jsonable import to_jsonable

# The keys of the settings and of the account of the corpus in a checkpoint.
SETTINGS_KEY = "settings"
CORPUS_KEY = "corpus"


class KeepSettings(pl.Callback):
    """Writes the settings of a run and the account of its corpus into each of its checkpoints.

    Args:
        settings: the resolved configuration.
        corpus: the account of the corpus, as `CorpusInfo.to_dict` returns it. The settings name files, and
            the files may have changed when the run resumes.

    """

    def __init__(self, settings: Mapping[str, Any], corpus: Mapping[str, Any]) -> None:
        # Plain types, which torch.load reads with weights_only=True.
        self.settings = to_jsonable(settings)
        self.corpus = to_jsonable(corpus)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the settings and the account."""
        checkpoint[SETTINGS_KEY] = self.settings
        checkpoint[CORPUS_KEY] = self.corpus
