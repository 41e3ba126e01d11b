"""A GPU without a table, its calls and its clock made up: what the tests of tuning share, as `tuner`."""

import pytest
import torch

from longspan_kernels.triton_backend.kernel_configs import ConfigKey, KernelConfig
from longspan_kernels.triton_backend.tuning import autotune

CPU = torch.device("cpu")
AMPERE = (8, 0)
WHOLE = ConfigKey(64, 64)
FAST = KernelConfig(
    64, 32, 2, 4
)  # of every list of head dimension 64 but that of the keys, where it lies turned
FAST_KEYS = KernelConfig(32, 64, 2, 4)


class Problem:
    """Stands for a call: says what was run, fails where it is told to, and has a time for each size."""

    def __init__(self, broken=(), wrong=(), none=False):
        self.broken, self.wrong, self.none = broken, wrong, none
        self.runs, self.made, self.timed = [], 0, 0

    def __call__(self, kind, dtype, device):
        self.made += 1
        return self

    def expected(self):
        return {kernel: (torch.ones(4),) for kernel in autotune.KERNELS}

    def run(self, kernel, size):
        self.runs.append((kernel, size))
        if size in self.broken or self.none:
            raise RuntimeError("out of resource: shared memory")
        return (torch.full((4,), self.wrong[size]) if size in self.wrong else torch.ones(4),)

    def timer(self, call):
        call()
        self.timed += 1
        kernel, size = self.runs[-1]
        if size == (FAST_KEYS if kernel == "keys" else FAST):
            return 1.0
        return 3.0 if size == autotune.SAFE else 2.0


def forget():
    """What a new process knows: nothing."""
    autotune._tuned.clear()
    autotune._failed.clear()
    autotune._announced = False


tuned_configs = autotune.tuned_configs  # tests put others in its place


def tuned(problem, kind=WHOLE):
    return tuned_configs(
        kind, torch.bfloat16, CPU, timer=lambda call: problem.timer(call), make_problem=problem
    )


def no_launch(*_):
    pytest.fail("timed")  # no Exception, so that nothing catches it
