"""Files of tuned configurations: a small JSON file for each GPU, software version and kind of call.

A file is written whole and renamed in one step, so that readers in other processes see all of it or nothing.
A file that cannot be read counts as absent; one that cannot be written is logged and does not stop the call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from longspan_kernels.triton_backend.kernel_configs import KernelConfig, KernelConfigs

logger = logging.getLogger(__name__)

# The folder of the whole package. By this file, since importing the package here would be a circle.
SOURCES = Path(__file__).parents[2]


def cache_directory() -> Path | None:
    """Return the directory of the files: ``LONGSPAN_CACHE_DIR``, else ``longspan`` in the user's cache.

    None where there is no home directory either.
    """
    chosen = os.environ.get("LONGSPAN_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # others are to be ignored, says the XDG specification
        return Path(base) / "longspan"
    try:
        return Path.home() / ".cache" / "longspan"
    except RuntimeError:
        return None


@functools.cache
def source_hash() -> str:
    """Return a hash of the sources of this package: any change of them has configurations timed anew."""
    digest = hashlib.sha256()
    for file in sorted(SOURCES.rglob("*.py")):
        digest.update(file.relative_to(SOURCES).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def path_of(key: dict[str, Any]) -> Path | None:
    """Return the file of a key, which need not exist; None where nothing can be remembered."""
    directory = cache_directory()
    if directory is None:
        return None
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9]+", "-", str(key.get("gpu", "gpu"))).strip("-")
    return directory / f"sizes-{name}-{digest}.json"


def read(key: dict[str, Any]) -> KernelConfigs | None:
    """Return the configurations remembered for a key, None if there is no file that can be read."""
    path = path_of(key)
    if path is None:
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] != key:
            raise ValueError(f"it is for {stored['key']}")
        names = {field.name for field in dataclasses.fields(KernelConfigs)}
        if stored["sizes"].keys() != names:
            raise ValueError(f"sizes must be those of {', '.join(sorted(names))}")
        return KernelConfigs(**{name: KernelConfig(**size) for name, size in stored["sizes"].items()})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("tuned sizes in %s cannot be read and count as absent: %r", path, error)
        return None


def write(key: dict[str, Any], configs: KernelConfigs, about: dict[str, Any]) -> Path | None:
    """Remember configurations for a key; return the file, None (with a warning) if it cannot be written.

    Args:
        key: what the configurations hold for, plain JSON types.
        configs: the configurations; the file calls them ``sizes``.
        about: more to keep beside them, for people to read, plain JSON types.

    """
    path = path_of(key)
    if path is None:
        logger.warning("tuned sizes are not remembered: no home directory, and LONGSPAN_CACHE_DIR is not set")
        return None
    text = json.dumps({"key": key, "sizes": dataclasses.asdict(configs), **about}, indent=1) + "\n"
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=path.stem, suffix=".tmp", delete=False
        ) as file:
            temporary = file.name
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        logger.warning("tuned sizes are not remembered, %s cannot be written: %s", path, error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return None
    return path
