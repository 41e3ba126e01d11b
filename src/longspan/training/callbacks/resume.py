"""Exact resumption: a resumed run equals the uninterrupted one, to the bit."""

from __future__ import annotations

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

# The key of this callback's state in a checkpoint.
KEY = "exact_resume"


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators, as tensors and plain numbers.

    Plain types, so that torch.load can read the checkpoint with weights_only=True.
    """
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [str(name), torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set the generators to a state that `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    # A checkpoint from another kind of device has no such state; the arithmetic differs in any case.
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


class ExactResume(pl.Callback):
    """Makes every checkpoint resume exactly, at whatever moment and by whatever callback it is written.

    After each optimizer step it records the state of the loops (with the position in the data) and of the
    random generators. A checkpoint written inside a step, because the run was interrupted, gets the recorded
    state of the last step instead of the present one: the interrupted batch is trained again, which Lightning
    alone would skip. An interrupted validation is not repeated. The generators are restored after each
    validation, so that the weights do not depend on how often a run validates.

    Lightning reads one batch ahead of a loader of unknown length. The recorded state is that of the loader
    before this batch, so that the batch is not lost.
    """

    def __init__(self) -> None:
        self._loaders: list[Any] = []
        self._loaders_before: list[Any] = []
        self._loops: dict[str, Any] = {}
        self._random: dict[str, Any] = {}
        self._batches = 0
        self._restored: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the random state of a resumed run, after the loaders are made, and record the start."""
        if self._restored is not None:
            ranks = self._restored["random"]
            if len(ranks) != trainer.world_size:
                raise ValueError(
                    f"the checkpoint was written by {len(ranks)} processes and this run has "
                    f"{trainer.world_size}; resume with the same number"
                )
            set_random_state(ranks[trainer.global_rank], pl_module.device)
            self._restored = None
        self._loaders = self._loader_states(trainer)
        self._record(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the state of the loader: the batch of this step has been read, and maybe one more."""
        self._loaders_before, self._loaders = self._loaders, self._loader_states(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the state if the batch ended an optimizer step."""
        if not trainer.fit_loop._should_accumulate():
            self._record(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the generators to their state in training."""
        if self._random and trainer.state.fn == "fit" and not trainer.sanity_checking:
            if self._inside_step(trainer):
                return
            set_random_state(self._random, pl_module.device)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Restore the generators to the last step, before a callback writes a checkpoint."""
        if self._random and trainer.state.fn == "fit":
            set_random_state(self._random, pl_module.device)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the random states of all processes, and the loops of the last step, into the checkpoint."""
        if not self._loops:
            return
        state = self._random if self._inside_step(trainer) else random_state(pl_module.device)
        ranks: list[Any] = [state]
        if trainer.world_size > 1:
            ranks = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, state)
        checkpoint[KEY] = {"random": ranks}
        if self._inside_step(trainer):
            checkpoint["loops"]["fit_loop"] = self._loops
        elif self._reads_ahead(trainer):
            noted = self._loops["state_dict"].get("combined_loader")
            if noted is not None:
                checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = noted

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the random states until training starts: making the loaders draws from the generators."""
        self._restored = checkpoint.get(KEY)

    def _record(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._loops = trainer.fit_loop.state_dict()
        if self._reads_ahead(trainer) and "combined_loader" in self._loops["state_dict"]:
            self._loops["state_dict"]["combined_loader"] = self._loaders_before or self._loaders
        self._random = random_state(pl_module.device)
        self._batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready

    def _inside_step(self, trainer: pl.Trainer) -> bool:
        """Whether batches have been read since the last optimizer step."""
        return trainer.fit_loop.epoch_loop.batch_progress.total.ready != self._batches

    @staticmethod
    def _reads_ahead(trainer: pl.Trainer) -> bool:
        """Whether Lightning holds a batch that it has read and not yet given out."""
        return bool(getattr(trainer.fit_loop._data_fetcher, "batches", None))

    @staticmethod
    def _loader_states(trainer: pl.Trainer) -> list[Any]:
        loader = trainer.fit_loop._combined_loader
        return loader._state_dicts() if loader is not None else []
