"""What launches remember: `launches` in a process of its own, since other tests may interpret kernels."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


@pytest.mark.slow
def test_launches_are_those_of_triton():
    cases = Path(__file__).with_name("launches.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(cases.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist", "--noconftest"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(cases)],
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
