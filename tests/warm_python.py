"""A Python that has imported the large packages already: each command runs in a process forked from it.

A command of the repository imports PyTorch, Lightning and Transformers for seconds before it does a thing. As
`python`, the fixture `warm_python` of `conftest.py` gives a small program that hands its arguments, folder,
environment and streams to this server, which forks: the command runs in a process of its own, in its folder,
with its environment, that has seen no module of this repository, and its exit status comes back.

It takes `-c CODE`, `-m MODULE` or a file, with arguments, and `-W` before them. What depends on how the
interpreter itself starts needs `sys.executable`: other options, signals, memory, which packages an import
brings in, variables that those packages read while they are imported (a cache in HOME).
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import socket
import sys
import threading
import traceback
import warnings
from types import ModuleType

# What commands import sooner or later; one that is not installed is left out.
PACKAGES = [
    "torch",
    "torch._dynamo",
    "lightning.pytorch",
    "lightning.pytorch.strategies",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "torchdata.stateful_dataloader",
    "hydra.main",
    "hydra._internal.hydra",
    "rich.table",
    "filelock",
    "scipy.stats",
    "matplotlib.figure",
]
# In the place of a Python: it starts in a hundredth of a second, since it imports next to nothing.
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(connection, [len(request).to_bytes(4, "little")], [0, 1, 2])
    connection.sendall(request)
    status = connection.recv(1)
if not status:
    sys.exit("the process forked from warm_python.py died")
sys.exit(status[0])
"""


def serve(address: str) -> None:
    """Fork a process for each connection, until standard input ends."""
    del sys.path[0]  # the folder of this file
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # a collection in a forked process would copy all of their memory
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while server in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                run(connection)
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def run(connection: socket.socket) -> None:
    """Become the process that a client asks for, and end as it would."""
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    request = b""
    while len(request) < int.from_bytes(size, "little"):
        request += connection.recv(1 << 16)
    arguments, folder, environment = json.loads(request)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    status = 1
    try:
        execute(arguments)
        status = 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        else:
            status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    connection.sendall(bytes([status % 256]))
    os._exit(status)


def execute(arguments: list[str]) -> None:
    while arguments[0] == "-W":
        warnings._setoption(arguments[1])
        arguments = arguments[2:]
    first, *rest = arguments
    for path in reversed(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if path:
            sys.path.insert(0, path)
    if first == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif first == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(first)))
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
    os._exit(0)  # nothing to take down, and packages that complain about it
