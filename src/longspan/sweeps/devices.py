"""One device for each job of a sweep, where several jobs run at once on one machine.

The process of the sweep writes into the sweep's folder which devices there are. The process of a job takes
one by locking a file of its name, so that the device is free again when the process ends, however it ends.
The files lie in one folder for each user of the machine: two sweeps do not take the same device.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

FOLDER = ".devices"
_OFFERED = "offered.json"
_GPU, _CPU = "gpu-", "cpu-"
# How often a job that waits for a device looks again, in seconds.
_PAUSE = 0.2

# The device that this process has taken: CUDA cannot change to another one in the same process.
_taken_here: str | None = None


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


def locks_folder() -> Path:
    """Return where the devices' locks lie, of all sweeps of this user on this machine."""
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    return Path(tempfile.gettempdir()) / f"longspan-devices-{user}"


@contextmanager
def taken(sweep_dir: Path) -> Iterator[str | None]:
    """Take one of the devices that a sweep offers, and give its name; wait while none is free.

    A GPU is the only one that CUDA sees from then on in this process, which has to be before its first use.
    Nothing is taken, and None given, where nothing is offered.
    """
    global _taken_here
    offered = sweep_dir / FOLDER / _OFFERED
    if not offered.is_file():
        yield None
        return
    names = json.loads(offered.read_text()) if _taken_here is None else [_taken_here]
    folder = locks_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    uuids = _uuids()
    files = {name: folder / f"{_lock_name(name, uuids)}.lock" for name in names}
    while (free := _first_free(files)) is None:
        time.sleep(_PAUSE)
    name, lock = free
    try:
        if name.startswith(_GPU):
            _taken_here = name
            os.environ["CUDA_VISIBLE_DEVICES"] = unquote(name.removeprefix(_GPU))
        log.info("this job has %s", unquote(name))
        yield unquote(name)
    finally:
        lock.release()


def _uuids() -> list[str]:
    """The UUIDs of the machine's GPUs by their numbers, read without a first use of CUDA; or nothing."""
    import torch

    # Not part of torch's interface, and it needs NVIDIA's library: without it a GPU goes by its name.
    with suppress(AttributeError, OSError, RuntimeError):
        return torch.cuda._raw_device_uuid_nvml() or []  # type: ignore[attr-defined]
    return []


def _lock_name(name: str, uuids: list[str]) -> str:
    """What the lock of a device is called: a GPU's UUID, where it is known.

    In two containers of one machine number 0 may be two GPUs, and a GPU may go by its number or its UUID.
    """
    gpu = unquote(name.removeprefix(_GPU))
    if not name.startswith(_GPU):
        return name
    if gpu.isdecimal():
        found = uuids[int(gpu) : int(gpu) + 1]
    else:
        # CUDA takes the beginning of a UUID for the whole.
        found = [uuid for uuid in uuids if uuid.startswith(gpu)]
    return _GPU + quote(found[0] if len(found) == 1 else gpu, safe="")


def _first_free(files: dict[str, Path]) -> tuple[str, FileLock] | None:
    for name, file in files.items():
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        return name, lock
    return None
