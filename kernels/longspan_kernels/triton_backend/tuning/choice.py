"""Which configurations the kernels of a call run with: the table's, tuned ones, or the nearest known."""

from __future__ import annotations

import torch

from longspan_kernels import architecture
from longspan_kernels.triton_backend.kernel_configs import (
    FLOAT32_CONFIGS,
    ONE_BLOCK_CONFIGS,
    TABLE,
    ConfigChoice,
    config_key,
    nearest_configs,
)
from longspan_kernels.triton_backend.tuning import autotune


def choose_configs(dtype: torch.dtype, dim: int, block: int, device: torch.device) -> ConfigChoice:
    """Choose the configurations for a call; on an unknown GPU the first call times some and remembers.

    Args:
        dtype: of queries, keys and values.
        dim: the larger head dimension, at most 256.
        block: tokens a block.
        device: of the tensors.

    """
    if dtype == torch.float32:
        return ConfigChoice(FLOAT32_CONFIGS)
    key, gpu = config_key(dim, block), architecture.architecture_of(device)
    if gpu is None:
        return ConfigChoice(nearest_configs(None, key))
    if gpu in TABLE:
        return ConfigChoice(TABLE[gpu][key], ONE_BLOCK_CONFIGS.get(gpu, {}).get(key))
    may_time = autotune.may_time()
    tuned = autotune.tuned_configs(key, dtype, device)
    if tuned is None:
        return ConfigChoice(nearest_configs(gpu, key), is_final=may_time)
    return ConfigChoice(tuned)
