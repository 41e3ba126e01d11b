"""What this machine has for jobs: GPUs and cores."""

from __future__ import annotations

import os


def visible_gpus(accelerator: str = "auto") -> list[str]:
    """Return the CUDA devices of this machine that may be used, as CUDA_VISIBLE_DEVICES names them.

    Args:
        accelerator: that of the trainer; "cpu" uses none.

    """
    if accelerator == "cpu":
        return []
    # Imported here: a configuration that is only printed or refused needs no torch.
    import torch

    if not torch.cuda.is_available():
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
