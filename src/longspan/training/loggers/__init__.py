"""Loggers: a CSV file, and Weights & Biases. Their files lie in the run's directory and nowhere else.

`CsvLogger` and `WandbRun` are the `_target_`s of `conf/logger/`. They stand in checkpoints.
"""

from longspan.training.loggers.calls import close_loggers, log_configuration, log_picture, log_summary
from longspan.training.loggers.csv import CsvLogger
from longspan.training.loggers.wandb import MAX_NAME, MAX_TAG, WandbRun

__all__ = [
    "MAX_NAME",
    "MAX_TAG",
    "CsvLogger",
    "WandbRun",
    "close_loggers",
    "log_configuration",
    "log_picture",
    "log_summary",
]
