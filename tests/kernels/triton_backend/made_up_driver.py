"""A GPU of Hopper's kind that compiles kernels and launches none: what Triton asks of a driver, and a record.

Tensors lie on the CPU. It shows which compiled kernel a call would launch, and with what.
"""

import contextlib
from types import SimpleNamespace
from unittest import mock

from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel, make_backend
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from longspan_kernels.triton_backend import backend as triton_backend
from longspan_kernels.triton_backend import launch


class MadeUpGPU:
    """A driver for Triton, with what was launched: (kernel's name, grid, arguments)."""

    def __init__(self, capability):
        self.capability = capability
        self.launches = []
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232448},
            load_binary=lambda name, *_: (1, name, 0, 0, 1024),
            unload_module=lambda module: None,
        )

    def front_end_alone(self, function, key, signature, device, constants, options, attributes, _):
        """Read a kernel as the compiler does, which refuses more than the interpreter, and stop there."""
        source = function.ASTSource(function, signature, constants, attributes)
        backend = make_backend(self.get_current_target())
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        implementation = backend.get_codegen_implementation(options)
        source.make_ir(self.get_current_target(), options, implementation, backend.get_module_map(), context)
        kernel = object.__new__(CompiledKernel)
        kernel.name, kernel.src, kernel._module_pid = function._fn_name, None, None
        kernel.module, kernel.function, kernel.packed_metadata = 1, function._fn_name, None
        kernel._run = self.launcher_cls(None, SimpleNamespace(name=function._fn_name.rpartition(".")[2]))
        function.device_caches[device][0][key] = kernel
        return kernel

    def launcher_cls(self, src, metadata):
        def launched(x, y, z, stream, function, *rest):
            # Behind the function come packed metadata, launch metadata and two hooks.
            self.launches.append((metadata.name, (x, y, z), rest[4:]))

        return launched

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return id(self)  # Triton remembers what it compiled by device

    def get_current_stream(self, device):
        return 0


@contextlib.contextmanager
def made_up_gpu(capability=90, compiles=False):
    """Let tensors of the CPU take the way of a GPU's; without compilation kernels are read alone."""
    gpu = MadeUpGPU(capability)
    forget()
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(triton_backend, "_INTERPRETED", True))
        patches.enter_context(mock.patch.object(launch, "has_tma", return_value=capability >= 90))
        if not compiles:
            front_end = lambda function, *rest: gpu.front_end_alone(function, *rest)  # noqa: E731
            patches.enter_context(mock.patch.object(JITFunction, "_do_compile", front_end))
        driver.set_active(gpu)
        yield gpu
    forget()


def forget():
    triton_backend._forwards.clear()
    triton_backend._backwards.clear()
