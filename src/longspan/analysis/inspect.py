"""What a pattern can see: print it for a configuration, and draw it.

    python -m longspan.analysis.inspect sparsity=bigbird seq_len=4096
    python -m longspan.analysis.inspect sparsity=fixed objective=mlm model=bert layers=2 out=fixed.png

Takes the overrides of train.py, and of its own:

    seq_len=N     tokens of the sequence, short for data.seq_len=N
    layers=N      number of layers; the model's if not given
    gradients=N   build the model with random weights in float64, and ask N of its outputs by their gradients
                  which inputs they depend on: is it causal, and is that what reach says?
    out=FILE      draw pattern and reach into a file (png, pdf or svg)

No corpus is read and nothing is trained. Reach counts paths through the layouts and the residual; up to 4,096
blocks it is exact, beyond it a sample of the sources is followed, and the output says so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from longspan.analysis.reach import Reach, reach
from longspan.config.compose import compose
from longspan.config.patterns import read_patterns
from longspan.console import print_report
from longspan.errors import ConfigError
from longspan.sparsity import SparsityConfig
from longspan_kernels.layout import BlockLayout

OWN = ("seq_len", "layers", "gradients", "out")
_FORMATS = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Inspection:
    """What is known of the patterns of a configuration.

    Attributes:
        patterns: one for each layer; None for a dense one.
        layouts: of each layer at the length.
        seq_len: tokens of the sequence.
        causal: True for a causal model; None: each layer is what its pattern says.
        head_dim: dimension of a head; None where the configuration does not say.
        reach: what the layers reach.
        own_windows: whether layers of the model have windows of its own, which are not counted here.

    """

    patterns: tuple[SparsityConfig | None, ...]
    layouts: tuple[BlockLayout | None, ...]
    seq_len: int
    causal: bool | None
    head_dim: int | None
    reach: Reach
    own_windows: bool = False

    @property
    def title(self) -> str:
        """The patterns' names, the direction, the length and the layers in a line."""
        names = ", ".join(dict.fromkeys("dense" if one is None else one.name for one in self.patterns))
        direction = "causal" if self.reach.causal else "both directions"
        layers = "1 layer" if len(self.patterns) == 1 else f"{len(self.patterns)} layers"
        return f"{names}: {direction}, {self.seq_len:,} tokens, {layers}"


def inspect(config: DictConfig, layers: int | None = None) -> Inspection:
    """Find out what the patterns of a configuration can see.

    Args:
        config: as `longspan.config.compose.compose` gives it.
        layers: number of layers; None: the model's.

    Raises:
        ConfigError: a pattern that cannot be made or is not defined for the length, a number of layers
            that nothing says, or a schedule, whose patterns change.

    """
    if names := list(OmegaConf.select(config, "schedule") or {}):
        raise ConfigError(
            f"schedule must be none, got {', '.join(names)}: a pattern is inspected as it stands; give the "
            "arguments and the length of a stage themselves, as in sparsity.num_sliding_window_blocks=9"
        )
    patterns = patterns_of(config, layers)
    seq_len = config.data.seq_len
    try:
        layouts = [None if one is None else one.layout(seq_len) for one in patterns]
        causal = True if config.objective.attention == "unidirectional" else None
        if causal is None and all(layout is None for layout in layouts):
            causal = False
        found = reach(layouts, seq_len, causal)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Inspection(
        tuple(patterns),
        tuple(layouts),
        seq_len,
        causal,
        _head_dim(config),
        found,
        own_windows=OmegaConf.select(config, "model.architecture") == "modernbert",
    )


def patterns_of(config: DictConfig, layers: int | None = None) -> list[SparsityConfig | None]:
    """The pattern of each layer of a configuration; None for a dense layer.

    Raises:
        ConfigError: a pattern that cannot be made, no number of layers, or one that is not the patterns'.

    """
    if layers is None:
        layers = OmegaConf.select(config, "model.num_layers")
    if layers is None:
        raise ConfigError("layers must be given: this model's configuration does not say how many it has")
    if layers < 1:
        raise ConfigError(f"layers must be at least 1, got {layers}")
    made = read_patterns(config, lambda: layers)
    return made if isinstance(made, list) else [made] * layers


def _head_dim(config: DictConfig) -> int | None:
    hidden, heads = (OmegaConf.select(config, f"model.{name}") for name in ("hidden_size", "num_heads"))
    own = OmegaConf.select(config, "model.config_overrides.head_dim")
    return own or (hidden // heads if hidden and heads else None)


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The command's own settings, and the overrides for the configuration.

    Raises:
        ConfigError: a setting twice or without a value, a number that is none, a picture's name that ends
            otherwise than in a known format, or whose folder does not exist.

    """
    own: dict[str, str] = {}
    overrides = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in OWN:
            overrides.append(argument)
            continue
        if name in own:
            raise ConfigError(f"{name} is given twice")
        if name != "out" and not (value.isdecimal() and int(value)):
            raise ConfigError(f"{name} must be a number of at least 1, got {value!r}")
        own[name] = value
    if "out" in own:
        out = Path(own["out"])
        if out.suffix.lower() not in _FORMATS:
            raise ConfigError(f"out must end in one of {', '.join(_FORMATS)}, got {own['out']!r}")
        if not out.parent.is_dir():
            raise ConfigError(f"out must lie in a folder that exists, got {own['out']!r}")
    if "seq_len" in own:
        overrides.append(f"data.seq_len={own['seq_len']}")
    return own, overrides


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends the process with status 1 and a message on a user's mistake."""
    from longspan.analysis.inspect_gradients import ask_gradients
    from longspan.analysis.inspect_report import report

    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    try:
        own, overrides = split_arguments(arguments)
        config = compose(overrides)
        inspection = inspect(config, int(own["layers"]) if "layers" in own else None)
        print_report(report(inspection))
        if "gradients" in own:
            print_report(ask_gradients(config, inspection, int(own["gradients"])))
        if "out" in own:
            from longspan.analysis.picture import draw_reach

            draw_reach(inspection.layouts, inspection.reach, inspection.title).savefig(own["out"], dpi=130)
            print(f"wrote {own['out']}")
    except (ConfigError, OSError, ValueError) as error:
        print(f"\nlongspan: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
