"""The Triton backend equals the torch backend: `interpreted_*` in processes that interpret kernels."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

triton = pytest.importorskip("triton")

FILES = [Path(__file__).with_name(f"interpreted_{name}.py") for name in ("triton", "distances")]
TESTS = [
    f"{file}::{name}"
    for file in FILES
    for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
]
PARTS = 4


def _version(module):
    return tuple(int(part) for part in module.__version__.split(".")[:2])


@pytest.mark.slow
@pytest.mark.skipif(
    _version(triton) < (3, 7) and _version(np) >= (2, 4),
    reason="the interpreter of Triton 3.6 makes numbers of arrays with one element, which NumPy 2.4 refuses",
)
@pytest.mark.parametrize("part", range(PARTS))
def test_under_the_interpreter(part):
    """The whole process is interpreted, whichever backend another test has imported before."""
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]
    # One file takes its comparisons from the other.
    paths = [str(FILES[0].parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *TESTS[part::PARTS]],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-20000:] + finished.stderr[-2000:]
