"""The Triton backend equals the reference: `interpreted_triton` in processes that interpret kernels."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

triton = pytest.importorskip("triton")

CASES = Path(__file__).with_name("interpreted_triton.py")
TESTS = re.findall(r"^def (test_\w+)", CASES.read_text(), re.MULTILINE)
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
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]
        + [f"{CASES}::{name}" for name in TESTS[part::PARTS]],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-20000:] + finished.stderr[-2000:]
