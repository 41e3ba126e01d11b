"""65,536 tokens, forward and backward, within 4 GB: the peak is that of a process of its own."""

import subprocess
import sys

CODE = """
import resource
import torch
from longspan import BigBirdSparsityConfig, block_sparse_attention

q, k, v = (torch.randn(1, 8, 65536, 64, requires_grad=True) for _ in range(3))
layout = BigBirdSparsityConfig(num_heads=8, block=64).layout(65536)
block_sparse_attention(q, k, v, layout).sum().backward()
assert all(x.grad.isfinite().all() for x in (q, k, v))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # KiB on Linux, bytes on macOS
"""


def test_a_long_sequence_fits():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    peak = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    # q, k, v and their gradients alone are 0.8 GB; the scores of one dense head would be 17 GB.
    assert 0.8e9 < peak < 4e9
