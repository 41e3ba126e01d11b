"""The sparse_attention block of a DeepSpeed configuration as overrides of train.py.

python train.py $(python -m longspan.training.deepspeed ds_config.json)
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from longspan.sparsity import from_deepspeed


def overrides(config: Mapping[str, Any] | str | os.PathLike[str]) -> list[str]:
    """Return the overrides of train.py for the pattern of a DeepSpeed configuration.

    The first one selects the option of the group ``sparsity``; the others give all arguments of the pattern
    except ``num_heads``, which comes from the model.

    Args:
        config: the whole configuration or its ``sparse_attention`` block, or the path of a JSON file of
            either.

    Raises:
        ValueError: as `longspan.from_deepspeed`.
        OSError: the file cannot be read.

    """
    arguments = from_deepspeed(config, num_heads=1).to_dict()
    name = arguments.pop("name")
    del arguments["num_heads"]
    written = [f"sparsity.{key}={_value(value)}" for key, value in arguments.items()]
    return [f"sparsity={name}", *written]


def _value(value: Any) -> str:
    """Format a value for Hydra, without spaces, at which a shell would split."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def main() -> None:
    """Print the overrides for a file; exit with status 1 and a message on an error."""
    parser = argparse.ArgumentParser(
        prog="python -m longspan.training.deepspeed",
        description="Print the sparse_attention block of a DeepSpeed configuration as overrides of train.py.",
    )
    parser.add_argument("file", help="the JSON file")
    try:
        print(" ".join(overrides(parser.parse_args().file)))
    except (OSError, ValueError) as error:
        print(f"longspan: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
