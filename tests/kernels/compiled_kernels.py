"""Compile the kernels for a GPU that need not be there, and print what each needs, as JSON.

    python tests/kernels/compiled_kernels.py > tests/kernels/compiled_kernels.json

makes the committed table, which `test_compiled_kernels.py` holds a fresh compilation to.
"""

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import warnings

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from longspan.sparsity import BigBirdSparsityConfig
from longspan_kernels.arguments import Arguments
from longspan_kernels.triton_backend import kernel_configs, launch
from longspan_kernels.triton_backend.kernel_configs import ConfigChoice
from longspan_kernels.triton_backend.prepared import prepare_backward, prepare_forward
from longspan_kernels.triton_backend.tuning.choice import choose_configs

CASES = [(dim, block) for dim in (64, 128) for block in (16, 64)]


class Target:
    """What Triton asks of a GPU's driver while it compiles."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0


def resources(kernel):
    """What a kernel needs, as its machine code tells.

    Registers a thread, bytes of stack (spills) and of shared memory, whether it has Hopper's products, and
    whether each of those is waited for before the next begins, as the assembler does where it cannot follow
    the registers of a loop (C7515).
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    products, waits = code.count("HGMMA."), code.count("WARPGROUP.DEPBAR")
    return {
        "registers": int(registers),
        "stack": int(stack),
        "shared": kernel.metadata.shared,
        "wgmma": products > 0,
        "serialized": 0 < products <= waits,
    }


def main():
    """Compile forward and backward of each case for Hopper (with the bulk copy engine) and Ampere."""
    warnings.simplefilter("ignore")
    compiled = {}
    run = jit.JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        compiled[self.__name__] = kernel
        return kernel

    jit.JITFunction.run = compile_only
    table = {"triton": triton.__version__}
    for capability in (90, 80):
        driver.set_active(Target(capability))
        launch.has_tma = lambda device, capability=capability: capability >= 90
        cases = [(dim, block, "", None) for dim, block in CASES]
        for kind, scattered in kernel_configs.ONE_BLOCK_CONFIGS[9, 0].items():
            usual = kernel_configs.TABLE[9, 0][kind]
            own = {
                one: getattr(scattered, one) or getattr(usual, one) for one in ("forward", "queries", "keys")
            }
            cases.append((kind.dim, kind.block, "scattered ", dataclasses.replace(usual, **own)))
        for dim, block, label, configs in cases:
            layout = BigBirdSparsityConfig(16, block, attention="unidirectional").layout(16384)
            q = torch.empty(1, 16, 16384, dim, dtype=torch.bfloat16)
            arguments = Arguments(layout, dim**-0.5, None, 0)
            compiled.clear()
            choice = (
                choose_configs(q.dtype, dim, block, q.device) if configs is None else ConfigChoice(configs)
            )
            out, lse = prepare_forward(q, q, q, arguments, choice)(q, q, q, arguments)
            backward = prepare_backward(q, q, q, out, arguments, False, False, choice)
            backward(q, q, q, out, lse, out, None, arguments)
            for name, kernel in compiled.items():
                table[f"sm_{capability} D{dim} block {block} {label}{name}"] = resources(kernel)
    json.dump(table, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
