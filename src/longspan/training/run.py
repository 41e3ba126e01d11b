"""One training run, from its configuration to its result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from longspan.console import print_report
from longspan.training import resuming
from longspan.training.build import build, read_settings, warn_before_start
from longspan.training.fitting import fit
from longspan.training.loggers import close_loggers
from longspan.training.reports.logged import log_run_end, log_run_start
from longspan.training.reports.report import end_report, start_report
from longspan.training.reports.results import collect_result, start_record, write_result


def train(
    config: DictConfig,
    overrides: Sequence[str] = (),
    runs_dir: str | Path | None = None,
    resume: bool = False,
    sweep: str | None = None,
) -> dict[str, Any]:
    """Train with a configuration, print reports before and after training, and write result.json.

    Args:
        config: as composed from conf/train.yaml; see `longspan.config.schemas.RunConfig`.
        overrides: the command's overrides of the defaults, for the record.
        runs_dir: the folder of runs in which `ckpt_path=last` finds the newest one; None: the run's own
            folder alone.
        resume: resume from the last checkpoint in this run's own folder where there is one, whatever
            `ckpt_path` says; also from one of the end of training, whose run died before its result was
            written.
        sweep: the name of the sweep that this run is a job of; loggers group runs by it. None outside of one.

    Returns:
        The result, as `longspan.training.reports.results.collect_result` describes it.

    Raises:
        ConfigError: the parts cannot be made or do not go together, or the checkpoint is refused.

    """
    output_dir = Path(config.output_dir)
    checkpoint = resuming.read(config.ckpt_path, output_dir, runs_dir, resume)
    resuming.check_settings(checkpoint, read_settings(config))
    run = build(config, overrides)
    resuming.check_parts(checkpoint, run)

    record = start_record(run)
    print_report(start_report(record))
    warn_before_start(run)
    if checkpoint is not None:
        print(f"Going on from {checkpoint.path}")
    resuming.drop_later_metrics(checkpoint, run)
    log_run_start(run, record, sweep)

    interrupted = fit(run, checkpoint)

    result = collect_result(record, run)
    write_result(result, output_dir)
    log_run_end(run, result)
    print_report(end_report(result))
    close_loggers(run.loggers)
    if interrupted is not None:
        # The status of a process that Ctrl-C or a signal ends; a sweep ends with it.
        sys.exit(interrupted)
    return result
