"""The training itself: Lightning's fit, and how it ends."""

from __future__ import annotations

import warnings

from lightning.pytorch.utilities.exceptions import SIGTERMException

from longspan.errors import ConfigError
from longspan.training.build import Run
from longspan.training.resuming import Checkpoint


def fit(run: Run, checkpoint: Checkpoint | None) -> int | None:
    """Train; return None, or the status to exit with where the training was interrupted.

    A run that died after its last step has nothing left to train. It is validated, since its result needs
    the figures.

    Raises:
        ConfigError: the checkpoint is of another model.

    """
    # Deprecations inside torchdata and Lightning, of which a user can do nothing.
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    path = None if checkpoint is None else str(checkpoint.path)
    try:
        run.trainer.fit(run.module, datamodule=run.data, ckpt_path=path)
    except SystemExit as stop:
        # Lightning ends so on Ctrl-C or SIGTERM, after its callbacks have saved a checkpoint: 130 or 143, as
        # a shell reports such a command. Submitit ends a job that it has queued again with another status, by
        # which it knows it.
        if stop.code not in (None, 0, 1):
            return int(stop.code)
        return 143 if isinstance(stop, SIGTERMException) else 130
    except RuntimeError as error:
        if checkpoint is None or "loading state_dict" not in str(error):
            raise
        raise ConfigError(f"{path} is of another model than this configuration's: {error}") from error
    if checkpoint is not None and checkpoint.of_this_run and "val/loss" not in run.trainer.callback_metrics:
        run.trainer.validate(run.module, datamodule=run.data, verbose=False)
    return None
