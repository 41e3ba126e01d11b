"""Print what a call costs the host, in microseconds of CPU time, with a driver that launches nothing.

    python tests/kernels/triton_backend/host_time.py

Kernels are compiled for Hopper and never run: what is left is Python, torch's dispatcher and autograd, and
Triton's launcher up to the driver. On a GPU `experiments/attention_speed/gpu.py` measures the whole.
"""

import platform
import statistics
import time

import torch
import triton
from made_up_driver import made_up_gpu

from longspan.sparsity import BigBirdSparsityConfig
from longspan_kernels import block_sparse_attention

SHAPE = (1, 4, 512, 64)
CALLS, ROUNDS = 300, 9


def microseconds(call):
    """Give the smallest mean over rounds, which other processes disturb least, and the median."""
    for _ in range(3):
        call()
    times = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        for _ in range(CALLS):
            call()
        times.append((time.thread_time() - start) / CALLS * 1e6)
    return min(times), statistics.median(times)


def main():
    """Measure a forward alone, one that is recorded for a backward, and both."""
    torch.set_num_threads(1)
    layout = BigBirdSparsityConfig(SHAPE[1], 64).layout(SHAPE[2])
    plain = [torch.randn(SHAPE, dtype=torch.bfloat16) for _ in range(3)]
    leaves = [x.clone().requires_grad_() for x in plain]
    grad = torch.randn(SHAPE, dtype=torch.bfloat16)

    def attend(inputs):
        return block_sparse_attention(*inputs, layout, backend="triton")

    calls = {
        "forward": lambda: attend(plain),
        "forward, recorded": lambda: attend(leaves),
        "forward and backward": lambda: torch.autograd.grad(attend(leaves), leaves, grad),
    }
    print(f"torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}")
    with made_up_gpu(compiles=True) as gpu:
        gpu.launcher_cls = lambda src, metadata: lambda *arguments: None
        for name, call in calls.items():
            least, median = microseconds(call)
            print(f"{name}: {least:.0f} us (median {median:.0f})")


if __name__ == "__main__":
    main()
