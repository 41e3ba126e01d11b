"""Tile sizes, pipeline depths and warps of the kernels, by architecture, dtype, head dimension and block.

Known architectures have a table here, made by ``experiments/attention_speed/tune.py``. For any other GPU a
few configurations are timed once and the fastest is remembered (`tuning/autotune.py`). Which one a call takes
is decided in `tuning/choice.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from longspan_kernels.architecture import Architecture

DIMS = (64, 128, 256)
# Larger blocks are cut into sub-blocks, and need no entries of their own.
BLOCKS = (16, 32, 64)
_TILES = (16, 32, 64, 128, 256)
_WARPS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class KernelConfig:
    """Tile sizes and launch options of one kernel.

    Attributes:
        q_tile: queries a tile or step.
        k_tile: keys a step or tile.
        stages: depth of the software pipeline.
        warps: warps a program.
        registers: most registers a thread, None for no bound; NVIDIA alone has it.

    Raises:
        ValueError: a number that no kernel can be launched with.

    """

    q_tile: int
    k_tile: int
    stages: int
    warps: int
    registers: int | None = None

    def __post_init__(self) -> None:
        allowed = {"q_tile": _TILES, "k_tile": _TILES, "stages": range(1, 9), "warps": _WARPS}
        for name, values in allowed.items():
            value = getattr(self, name)
            if type(value) is not int or value not in values:
                raise ValueError(f"{name} must be one of {', '.join(map(str, values))}, got {value!r}")
        if self.registers is not None and (
            type(self.registers) is not int or not 24 <= self.registers <= 255
        ):
            raise ValueError(f"registers must be None or lie in [24, 255], got {self.registers!r}")

    def launch_options(self) -> dict[str, Any]:
        """Keyword arguments of a Triton launch."""
        options: dict[str, Any] = {"num_stages": self.stages, "num_warps": self.warps}
        if self.registers is not None:
            options["maxnreg"] = self.registers
        return options

    def serves(self, block: int) -> bool:
        """Whether the pairs of sub-blocks of a tile and a step fit the 32 bits of a schedule."""
        sub = min(block, self.q_tile, self.k_tile)
        return (self.q_tile // sub) * (self.k_tile // sub) <= 32


@dataclass(frozen=True)
class KernelConfigs:
    """The configurations of all kernels of a call: forward, dq, dk with dv, and the gradient of the bias."""

    forward: KernelConfig
    queries: KernelConfig
    keys: KernelConfig
    bias: KernelConfig


@dataclass(frozen=True)
class OneBlockConfigs:
    """Configurations with tiles and steps of one block each, for layouts whose rows share few key blocks.

    Attributes:
        max_occupancy: they are used where the kept pairs of blocks fill less than this share of the
            steps that the ordinary configuration would walk.
        forward: of the forward; None for the ordinary one.
        queries: of dq; likewise.
        keys: of dk with dv; likewise.

    """

    max_occupancy: float
    forward: KernelConfig | None
    queries: KernelConfig | None
    keys: KernelConfig | None


@dataclass(frozen=True)
class ConfigChoice:
    """The configurations that a call is prepared with.

    Attributes:
        configs: one for each kernel.
        one_block: those for layouts whose rows share few key blocks; None where ``configs`` serve them too.
        is_final: whether a later call gets the same; False where timing is only postponed.

    """

    configs: KernelConfigs
    one_block: OneBlockConfigs | None = None
    is_final: bool = True


@dataclass(frozen=True)
class ConfigKey:
    """What the configurations of calls in bfloat16 and float16 depend on besides the architecture.

    Attributes:
        dim: the head dimension rounded up to one of `DIMS`.
        block: tokens a block, one of `BLOCKS`; the last one stands for all that are larger.

    """

    dim: int
    block: int


# From `experiments/attention_speed/tune.jsonl`. The sweep has not reached head dimension 256.
_HOPPER = {
    ConfigKey(64, 16): KernelConfigs(
        KernelConfig(64, 64, 2, 4, 128),
        KernelConfig(64, 32, 3, 4, 128),
        KernelConfig(64, 64, 1, 4, 168),
        KernelConfig(32, 32, 1, 4),
    ),
    ConfigKey(64, 32): KernelConfigs(
        KernelConfig(64, 32, 3, 4),
        KernelConfig(64, 32, 3, 4),
        KernelConfig(32, 64, 3, 4, 168),
        KernelConfig(32, 32, 1, 4),
    ),
    ConfigKey(64, 64): KernelConfigs(
        KernelConfig(64, 64, 2, 4, 128),
        KernelConfig(64, 64, 2, 4, 128),
        KernelConfig(64, 64, 3, 4),
        KernelConfig(32, 32, 1, 4),
    ),
    ConfigKey(128, 16): KernelConfigs(
        KernelConfig(64, 64, 3, 4),
        KernelConfig(64, 64, 2, 4),
        KernelConfig(32, 64, 3, 4),
        KernelConfig(32, 32, 1, 4),
    ),
    ConfigKey(128, 32): KernelConfigs(
        KernelConfig(64, 32, 2, 4),
        KernelConfig(64, 32, 2, 4),
        KernelConfig(32, 64, 3, 4),
        KernelConfig(32, 32, 1, 4),
    ),
    ConfigKey(128, 64): KernelConfigs(
        KernelConfig(64, 64, 3, 4),
        KernelConfig(64, 64, 2, 4),
        KernelConfig(64, 64, 2, 4),
        KernelConfig(32, 32, 1, 4),
    ),
    ConfigKey(256, 16): KernelConfigs(
        KernelConfig(64, 32, 2, 4),
        KernelConfig(64, 32, 2, 8),
        KernelConfig(64, 32, 1, 8),
        KernelConfig(32, 32, 1, 4),
    ),
    ConfigKey(256, 32): KernelConfigs(
        KernelConfig(64, 32, 2, 4),
        KernelConfig(64, 32, 2, 8),
        KernelConfig(64, 32, 1, 8),
        KernelConfig(32, 32, 1, 4),
    ),
    ConfigKey(256, 64): KernelConfigs(
        KernelConfig(64, 32, 2, 4),
        KernelConfig(64, 32, 2, 8),
        KernelConfig(64, 32, 1, 8),
        KernelConfig(32, 32, 1, 4),
    ),
}
TABLE: dict[Architecture, dict[ConfigKey, KernelConfigs]] = {(9, 0): _HOPPER}
ONE_BLOCK_CONFIGS: dict[Architecture, dict[ConfigKey, OneBlockConfigs]] = {
    (9, 0): {
        ConfigKey(64, 16): OneBlockConfigs(
            0.55, KernelConfig(16, 16, 3, 1), KernelConfig(16, 16, 3, 1), KernelConfig(16, 16, 3, 1)
        ),
        ConfigKey(64, 32): OneBlockConfigs(
            0.75, KernelConfig(32, 32, 3, 1), KernelConfig(32, 32, 3, 1), None
        ),
        ConfigKey(128, 16): OneBlockConfigs(
            0.6, KernelConfig(16, 16, 3, 1), KernelConfig(16, 16, 3, 1), None
        ),
        ConfigKey(128, 32): OneBlockConfigs(0.75, None, KernelConfig(32, 32, 3, 2), None),
    }
}
# Products of float32 run on the ordinary units: small tiles keep them in registers.
FLOAT32_CONFIGS = KernelConfigs(*[KernelConfig(32, 32, 1, 4)] * 4)


def config_key(dim: int, block: int) -> ConfigKey:
    """Return the key of a call.

    Args:
        dim: the larger head dimension, at most 256.
        block: tokens a block.

    """
    return ConfigKey(next(limit for limit in DIMS if dim <= limit), min(block, BLOCKS[-1]))


def nearest_configs(architecture: Architecture | None, key: ConfigKey) -> KernelConfigs:
    """Return the configurations of the known architecture that is nearest, to stand in for an unknown one.

    Nearest is the compute capability with the smallest difference, the lower of two.
    """
    if isinstance(architecture, tuple):
        known = [one for one in TABLE if isinstance(one, tuple)]
        wanted = 10 * architecture[0] + architecture[1]
        return TABLE[min(known, key=lambda one: (abs(10 * one[0] + one[1] - wanted), one))][key]
    if architecture is None:
        return TABLE[9, 0][key]  # the interpreter and the compile-only tests
    for one, configs in TABLE.items():
        if isinstance(one, str):
            return configs[key]
    hopper = TABLE[9, 0][key]
    names = [field.name for field in dataclasses.fields(KernelConfigs)]
    return KernelConfigs(*(dataclasses.replace(getattr(hopper, name), registers=None) for name in names))
