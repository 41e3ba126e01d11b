"""Calls that serve several loggers: the configuration, figures of the whole run, pictures, the end."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from longspan.training.loggers.wandb import WandbRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_configuration(loggers: Iterable[Logger], configuration: Mapping[str, Any]) -> None:
    """Write the configuration, nested as it is, to every logger.

    Args:
        loggers: the trainer's loggers.
        configuration: nested mappings, lists, strings and numbers, such as the resolved configuration with
            the account of the corpus.

    """
    for logger in loggers:
        logger.log_hyperparams(dict(configuration))  # type: ignore[arg-type]
        logger.save()


def log_summary(loggers: Iterable[Logger], figures: Mapping[str, float | None]) -> None:
    """Write figures of the whole run to the summaries of Weights & Biases; None is left out."""
    known = {name: value for name, value in figures.items() if value is not None}
    for logger in loggers:
        if isinstance(logger, WandbRun):
            _update_summary(logger, known)


def log_picture(loggers: Iterable[Logger], name: str, draw: Callable[[], Figure]) -> None:
    """Log a picture to Weights & Biases.

    Args:
        loggers: the trainer's loggers.
        name: what to call it.
        draw: makes the figure; called only if a logger takes it.

    """
    for logger in loggers:
        if isinstance(logger, WandbRun):
            _log_figure(logger, name, draw)


@rank_zero_only
def _update_summary(logger: WandbRun, figures: Mapping[str, float]) -> None:
    logger.experiment.summary.update(dict(figures))


@rank_zero_only
def _log_figure(logger: WandbRun, name: str, draw: Callable[[], Figure]) -> None:
    from PIL import Image

    file = io.BytesIO()
    draw().savefig(file, format="png", dpi=100)
    logger.log_image(name, [Image.open(file)])


def close_loggers(loggers: Iterable[Logger]) -> None:
    """Finish the loggers of a run, so that the next run of this process opens new ones."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbRun):
            logger.close()
