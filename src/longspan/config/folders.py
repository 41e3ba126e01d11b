"""Where the configuration lies."""

from __future__ import annotations

from pathlib import Path


def config_dir() -> Path:
    """The folder that holds train.yaml and the groups: `conf` of a checkout, `longspan/conf` of a wheel.

    Raises:
        FileNotFoundError: neither is there.

    """
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "conf", package.parents[1] / "conf")
    for candidate in candidates:
        if (candidate / "train.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"no train.yaml in {' nor in '.join(str(path) for path in candidates)}")
