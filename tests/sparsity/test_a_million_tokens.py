"""Layouts of a million tokens: time on one core and memory, in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, time
import torch
torch.set_num_threads(1)
from longspan.sparsity import BigBirdSparsityConfig

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB -> MiB

different = {different}
make = lambda seed: BigBirdSparsityConfig(16, 64, different, seed=seed)
make(0).layout(4096)
before, seconds = peak(), []
for seed in (1, 2, 3):
    start = time.process_time()  # of this process alone: neighbours on the machine do not count
    layout = make(seed).layout(1 << 20)
    seconds.append(time.process_time() - start)
    if seed == 1:
        megabytes = peak() - before
print(json.dumps(dict(
    seconds=min(seconds), megabytes=megabytes, layouts=layout.layouts, nnz=layout.nnz, blocks=layout.q_blocks
)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize(("different", "max_seconds", "layouts"), [(True, 2.0, 16), (False, 0.3, 1)])
def test_bigbird_of_a_million_tokens(different, max_seconds, layouts):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{different}", str(different))],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    blocks = 16_384
    # Row 0 keeps all, row 1 its window and a random block, the last row a block less; the others five.
    a_head = blocks + (3 + 1) + (blocks - 3) * (3 + 1 + 1) + (2 + 1 + 1)
    assert (result["blocks"], result["layouts"], result["nnz"]) == (blocks, layouts, 16 * a_head)
    assert result["seconds"] < max_seconds
    assert result["megabytes"] < 400
