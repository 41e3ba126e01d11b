"""The functions of a configuration: `${name:argument}`."""

from __future__ import annotations

import re

from omegaconf import OmegaConf

from longspan.config import machine


def heads_of(name_or_path: str, revision: str | None = None) -> int:
    """The number of heads of a pretrained model, which its own config.json says."""
    from longspan.models.pretrained import num_heads_of

    return num_heads_of(name_or_path, revision)


def sweep_folder(name: str | None, otherwise: str) -> str:
    """The name of a sweep's folder.

    Args:
        name: that the user gave, or None.
        otherwise: taken where the user gave none.

    Raises:
        ValueError: the name is not that of a folder.

    """
    if name is None:
        return otherwise
    if not re.fullmatch(r"\w[\w.=+-]*", str(name)):
        raise ValueError(f"sweep={name} must be the name of a folder: letters, digits and any of _ . = + -")
    return str(name)


def jobs_at_once(accelerator: str) -> int:
    """How many jobs of a sweep this machine has a device for."""
    return machine.jobs_at_once(accelerator)


def gpus_here(accelerator: str) -> int:
    """How many GPUs this machine has for jobs."""
    return len(machine.visible_gpus(accelerator))


def gpus_of_a_job(accelerator: str) -> int:
    """1 where this machine has a GPU for a job, or else 0."""
    return min(1, gpus_here(accelerator))


def register() -> None:
    """Make the functions known to OmegaConf under their names; may be called again."""
    for function in (heads_of, sweep_folder, jobs_at_once, gpus_here, gpus_of_a_job):
        OmegaConf.register_new_resolver(function.__name__, function, replace=True)
