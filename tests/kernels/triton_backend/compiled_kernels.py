"""Compile the kernels for GPUs that need not be there, and say what each needs.

    python tests/kernels/triton_backend/compiled_kernels.py

compiles all of them and writes two files: `compiled_kernels.json`, what the machine code of each needs, and
`compiled_sources.json`, a digest of all that decides on that code. `test_compiled_kernels.py` compares a
fresh compilation with the first file; with

    python tests/kernels/triton_backend/compiled_kernels.py --check 4 SEED

only the kernels whose digest is another than in the second file are compiled, and of the others four that the
seed draws; what was compiled is printed.
"""

import dataclasses
import functools
import hashlib
import json
import random
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

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

NEEDS, SOURCES = (Path(__file__).with_name(f"compiled_{name}.json") for name in ("kernels", "sources"))
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


def launches() -> Iterator[tuple[str, str, Callable]]:
    """Every kernel of every case: its name, the digest of its sources, and a function that compiles it.

    The digest covers the text of the kernel and of all that it calls, the types, alignments and constants of
    its arguments, and its options. Together with Triton's version these decide on the machine code.
    """
    found: dict[str, tuple[str, Callable]] = {}

    def note(function, key, signature, device, constants, options, attributes, warmup):
        source = function.ASTSource(function, signature, constants, attributes)
        digest = hashlib.sha256(f"{source.hash()} {options.hash()}".encode()).hexdigest()[:16]
        target = driver.active.get_current_target()
        compiles = functools.partial(function.compile, source, target=target, options=options.__dict__)
        found[function.__name__] = digest, compiles
        # Nothing is launched where there is no compiled kernel.

    jit.JITFunction._do_compile = note
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
            found.clear()
            choice = (
                choose_configs(q.dtype, dim, block, q.device) if configs is None else ConfigChoice(configs)
            )
            out, lse = prepare_forward(q, q, q, arguments, choice)(q, q, q, arguments)
            backward = prepare_backward(q, q, q, out, arguments, False, False, choice)
            backward(q, q, q, out, lse, out, None, arguments)
            for name, (digest, compiles) in found.items():
                yield f"sm_{capability} D{dim} block {block} {label}{name}", digest, compiles


def check(count: int, seed: str) -> dict[str, dict]:
    """Compile what has changed since the files were written, and some of the rest: what each needs."""
    known = json.loads(SOURCES.read_text())
    sampled = set(random.Random(seed).sample(sorted(known["kernels"]), count))
    same_triton = known["triton"] == triton.__version__
    fresh: dict[str, dict] = {}
    for name, digest, compiles in launches():
        changed = not same_triton or known["kernels"].get(name) != digest
        fresh[name] = {"changed": changed}
        if changed or name in sampled:
            fresh[name]["needs"] = resources(compiles())
    return fresh


def write() -> None:
    """Compile all kernels, and write both files."""
    needs, digests = {"triton": triton.__version__}, {}
    for name, digest, compiles in launches():
        digests[name] = digest
        needs[name] = resources(compiles())
    sources = {"triton": triton.__version__, "kernels": digests}
    NEEDS.write_text(json.dumps(needs, indent=1) + "\n")
    SOURCES.write_text(json.dumps(sources, indent=1) + "\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["--check"]:
        json.dump(check(int(sys.argv[2]), sys.argv[3]), sys.stdout)
    else:
        write()
