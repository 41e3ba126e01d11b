"""Which GPU this is, in a word; imports no Triton."""

from __future__ import annotations

import functools

import torch

# Compute capability of an NVIDIA GPU, as (9, 0), or the name of an AMD architecture, as "gfx942".
Architecture = tuple[int, int] | str


@functools.cache
def architecture_of(device: torch.device) -> Architecture | None:
    """Give the architecture of a GPU, None for any other device and where there is no GPU."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    if torch.version.hip is not None:
        # Behind the name stand features that are switched on or off, as in "gfx90a:sramecc+:xnack-".
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return torch.cuda.get_device_capability(device)
