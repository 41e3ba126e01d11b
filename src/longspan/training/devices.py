"""One device for each job of a sweep, where jobs run beside each other on one machine.

The process of the sweep writes down which devices there are, in the sweep's folder. A job's process takes one
by locking a file of its name, so that it is free again when the process is gone, however it died.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

import torch
from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

FOLDER = ".devices"
_OFFERED = "offered.json"
_GPU, _CPU = "gpu-", "cpu-"
# How often a job that waits for a device looks again, in seconds.
_PAUSE = 0.2

# What CUDA was first used on cannot be changed in the same process.
_mine: str | None = None


def visible_gpus(accelerator: str = "auto") -> list[str]:
    """Return the CUDA devices of this machine that may be used, as CUDA_VISIBLE_DEVICES names them.

    Args:
        accelerator: the trainer's; none are used by "cpu".

    """
    if accelerator == "cpu" or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    return [name.strip() for name in named.split(",")][: torch.cuda.device_count()]


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs_at_once(accelerator: str = "auto") -> int:
    """Return how many jobs this machine has devices for: one a GPU, or else one a core."""
    return len(visible_gpus(accelerator)) or cores()


def offer(sweep_dir: Path, gpus: list[str], places: int = 0) -> None:
    """Offer devices to the jobs of a sweep, in place of what was offered before.

    Args:
        sweep_dir: the sweep's folder.
        gpus: as CUDA_VISIBLE_DEVICES names them.
        places: where there is no GPU, how many jobs may run at once; 0: as many as there are.

    """
    file = sweep_dir / FOLDER / _OFFERED
    names = [_GPU + quote(gpu, safe="") for gpu in gpus] or [f"{_CPU}{place}" for place in range(places)]
    if names:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(names) + "\n")
    else:
        file.unlink(missing_ok=True)


@contextmanager
def taken(sweep_dir: Path) -> Iterator[str | None]:
    """Take one of the devices that a sweep offers, and wait where none is free; gives its name.

    A GPU is the only one that CUDA sees from then on in this process, which has to be before its first use.
    Nothing is taken, and None given, where nothing is offered.
    """
    global _mine
    folder = sweep_dir / FOLDER
    if not (folder / _OFFERED).is_file():
        yield None
        return
    names = json.loads((folder / _OFFERED).read_text())
    if _mine is not None:
        names = [_mine]
    while (found := _first_free(folder, names)) is None:
        time.sleep(_PAUSE)
    name, lock = found
    try:
        if name.startswith(_GPU):
            _mine = name
            os.environ["CUDA_VISIBLE_DEVICES"] = unquote(name.removeprefix(_GPU))
        log.info("this job has %s", unquote(name))
        yield unquote(name)
    finally:
        lock.release()


def _first_free(folder: Path, names: list[str]) -> tuple[str, FileLock] | None:
    for name in names:
        lock = FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        return name, lock
    return None
