"""Print and draw what the patterns of a configuration attend and reach.

    python -m longspan.analysis.inspect sparsity=bigbird seq_len=4096
    python -m longspan.analysis.inspect sparsity=fixed objective=mlm model=bert layers=2 out=fixed.png

Arguments are the overrides of train.py, and these settings of the command:

    seq_len=N     tokens in the sequence, short for data.seq_len=N
    layers=N      number of layers; default: that of the model
    gradients=N   build the model with random weights in float64, compute by gradients which inputs N of its
                  outputs depend on, and report whether it is causal and whether it agrees with reach
    out=FILE      draw patterns and reach into a file (png, pdf or svg)

No corpus is read and nothing is trained. Reach counts paths through the layouts and the residual connections.
It is exact up to 4,096 blocks; for longer sequences it follows a sample of the sources, and the output says
so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from longspan.analysis.inspect_gradients import compare_with_gradients
from longspan.analysis.inspect_report import report
from longspan.analysis.inspection import Inspection
from longspan.analysis.picture import draw_reach
from longspan.analysis.reach import reach
from longspan.config.compose import compose
from longspan.config.patterns import read_patterns
from longspan.console import print_report
from longspan.errors import ConfigError
from longspan.sparsity import SparsityConfig

SETTINGS = ("seq_len", "layers", "gradients", "out")
_FORMATS = (".png", ".pdf", ".svg")


def inspect(config: DictConfig, layers: int | None = None) -> Inspection:
    """Compute the layouts and the reach of the patterns of a configuration.

    Args:
        config: a configuration from `longspan.config.compose.compose`.
        layers: number of layers; None for that of the model.

    Raises:
        ConfigError: a pattern is invalid or not defined for the length, the number of layers is unknown, or
            the configuration has a schedule, which changes patterns during a run.

    """
    if names := list(OmegaConf.select(config, "schedule") or {}):
        raise ConfigError(
            f"schedule must be none, got {', '.join(names)}: the command inspects fixed patterns; give the "
            "arguments and the length of a stage themselves, as in sparsity.num_sliding_window_blocks=9"
        )
    patterns = patterns_of(config, layers)
    seq_len = config.data.seq_len
    try:
        layouts = [None if one is None else one.layout(seq_len) for one in patterns]
        causal = True if config.objective.attention == "unidirectional" else None
        if causal is None and all(layout is None for layout in layouts):
            causal = False
        reached = reach(layouts, seq_len, causal)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Inspection(
        tuple(patterns),
        tuple(layouts),
        seq_len,
        causal,
        _head_dim(config),
        reached,
        own_windows=OmegaConf.select(config, "model.architecture") == "modernbert",
    )


def patterns_of(config: DictConfig, layers: int | None = None) -> list[SparsityConfig | None]:
    """Return the pattern of each layer of a configuration; None for a dense layer.

    Raises:
        ConfigError: a pattern is invalid, or the number of layers is unknown or does not fit the patterns.

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
    override = OmegaConf.select(config, "model.config_overrides.head_dim")
    return override or (hidden // heads if hidden and heads else None)


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split the arguments into settings of this command and overrides of the configuration.

    Raises:
        ConfigError: a setting is given twice or without a value, a number is malformed, or the picture has
            an unknown format or a folder that does not exist.

    """
    settings: dict[str, str] = {}
    overrides = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in SETTINGS:
            overrides.append(argument)
            continue
        if name in settings:
            raise ConfigError(f"{name} is given twice")
        if name != "out" and not (value.isdecimal() and int(value)):
            raise ConfigError(f"{name} must be a number of at least 1, got {value!r}")
        settings[name] = value
    if "out" in settings:
        out = Path(settings["out"])
        if out.suffix.lower() not in _FORMATS:
            raise ConfigError(f"out must end in one of {', '.join(_FORMATS)}, got {settings['out']!r}")
        if not out.parent.is_dir():
            raise ConfigError(f"out must lie in a folder that exists, got {settings['out']!r}")
    if "seq_len" in settings:
        overrides.append(f"data.seq_len={settings['seq_len']}")
    return settings, overrides


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit with status 1 and a message on a mistake of the user."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    try:
        settings, overrides = split_arguments(arguments)
        config = compose(overrides)
        inspection = inspect(config, int(settings["layers"]) if "layers" in settings else None)
        print_report(report(inspection))
        if "gradients" in settings:
            print_report(compare_with_gradients(config, inspection, int(settings["gradients"])))
        if "out" in settings:
            draw_reach(inspection.layouts, inspection.reach, inspection.title).savefig(
                settings["out"], dpi=130
            )
            print(f"wrote {settings['out']}")
    except (ConfigError, OSError, ValueError) as error:
        print(f"\nlongspan: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
