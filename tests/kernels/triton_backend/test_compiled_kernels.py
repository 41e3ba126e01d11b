"""The kernels, compiled for GPUs that need not be there, need no more than the committed table says.

Compiling all of them takes some minutes. Those whose sources are the recorded ones have the recorded machine
code, so that only some of them are compiled, others in each commit. `make compiled` compiles all and records
what they need; with LONGSPAN_COMPILE_ALL=1 these tests compile all and compare.
"""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

HERE = Path(__file__).parent
TABLE = json.loads((HERE / "compiled_kernels.json").read_text())
SOURCES = json.loads((HERE / "compiled_sources.json").read_text())
NAMES = [name for name in TABLE if name != "triton"]
# Of the kernels whose sources are the recorded ones.
SAMPLE = 4


def commit() -> str:
    """The commit that is checked out, so that a commit passes or fails and not a day."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.strip() or "none"


@pytest.fixture(scope="module")
def fresh():
    """By kernel: whether its sources are others than the recorded ones, and what it needs if compiled."""
    count = len(NAMES) if os.environ.get("LONGSPAN_COMPILE_ALL") == "1" else SAMPLE
    script = [sys.executable, str(HERE / "compiled_kernels.py"), "--check", str(count), commit()]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def worse(known: dict, needs: dict) -> bool:
    return (
        needs["stack"] > known["stack"]
        or needs["registers"] > known["registers"]
        or needs["shared"] > known["shared"]
        or needs["wgmma"] != known["wgmma"]
        or needs["serialized"] > known["serialized"]
    )


@pytest.mark.slow
@pytest.mark.skipif(
    triton.__version__ != TABLE["triton"], reason=f"the table was made by Triton {TABLE['triton']}"
)
def test_no_kernel_needs_more_than_it_did(fresh):
    assert fresh.keys() == set(NAMES)
    compiled = {name: one["needs"] for name, one in fresh.items() if "needs" in one}
    assert len(compiled) >= SAMPLE
    assert compiled.keys() >= {name for name, one in fresh.items() if one["changed"]}
    assert not {name: (TABLE[name], needs) for name, needs in compiled.items() if worse(TABLE[name], needs)}
    changed = sum(one["changed"] for one in fresh.values())
    if changed:
        warnings.warn(
            f"{changed} kernels have other sources than recorded; `make compiled` records them", stacklevel=1
        )


def test_both_files_are_of_the_same_kernels():
    assert SOURCES["triton"] == TABLE["triton"]
    assert SOURCES["kernels"].keys() == set(NAMES)
