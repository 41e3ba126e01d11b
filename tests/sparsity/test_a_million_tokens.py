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

OTHERS = """
import json, resource, time
import torch
torch.set_num_threads(1)
from longspan.sparsity import *

sinks, local = AttentionSinksSparsityConfig(16, 64), AShapeSparsityConfig(16, 64)
levels = HierarchicalSparsityConfig(16, 64)
dilated = DilatedSparsityConfig(16, 64, True, segment_blocks=(4, 64, 1024), dilations=(1, 8, 64))
slash = VerticalSlashSparsityConfig(16, 64, vertical_blocks=(0, 9000), slash_offsets=(0, 1, 5000))
patterns = [sinks, local, slash, levels, sinks | levels, levels - local, dilated, dilated & local]
patterns.append(StridedSparsityConfig(16, 64, True, stride=128))
sinks.layout(4096)
measured = []
for pattern in patterns:
    # The highest so far: each asks for more than those before it, if they keep to what they should.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    layout = pattern.layout(1 << 20)
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    measured.append((pattern.name, seconds, grown, layout.nbytes / 2**20))
print(json.dumps(measured))
"""


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize(("different", "max_seconds", "layouts"), [(True, 2.0, 16), (False, 0.3, 1)])
def test_bigbird_of_a_million_tokens(different, max_seconds, layouts):
    result = run(PROGRAM.replace("{different}", str(different)))
    blocks = 16_384
    # Row 0 keeps all, row 1 its window and a random block, the last row a block less; the others five.
    a_head = blocks + (3 + 1) + (blocks - 3) * (3 + 1 + 1) + (2 + 1 + 1)
    assert (result["blocks"], result["layouts"], result["nnz"]) == (blocks, layouts, 16 * a_head)
    assert result["seconds"] < max_seconds
    assert result["megabytes"] < 400


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_the_others_of_a_million_tokens():
    measured = run(OTHERS)
    assert len(measured) == 9
    for name, seconds, grown, megabytes in measured:
        assert seconds < 1.5, name
        # Temporaries for about a million intervals at a time, and what is kept once or a few times more.
        assert grown < 60 + 8 * megabytes, name
        # A dense layout of one head, of a byte a block, would be 256 MiB.
        assert megabytes < (30 if name == "strided" else 8), name
