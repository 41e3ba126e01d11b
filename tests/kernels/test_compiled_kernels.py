"""The kernels, compiled for GPUs that need not be there, need no more than the committed table says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

HERE = Path(__file__).parent
TABLE = json.loads((HERE / "compiled_kernels.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(
    triton.__version__ != TABLE["triton"], reason=f"the table was made by Triton {TABLE['triton']}"
)
def test_no_kernel_needs_more_than_it_did():
    script = [sys.executable, str(HERE / "compiled_kernels.py")]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fresh = json.loads(done.stdout)
    assert fresh.keys() == TABLE.keys()
    worse = {
        name: (known, fresh[name])
        for name, known in TABLE.items()
        if name != "triton"
        and (
            fresh[name]["stack"] > known["stack"]
            or fresh[name]["registers"] > known["registers"]
            or fresh[name]["shared"] > known["shared"]
            or fresh[name]["wgmma"] != known["wgmma"]
            or fresh[name]["serialized"] > known["serialized"]
        )
    }
    assert not worse
