"""The floors of the source tree: which room imports which, read from every import statement.

An import goes to a lower floor or stays within its room, and no modules import each other in a circle.
Imports inside functions and under TYPE_CHECKING count. There are no exceptions.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up. A room is named without its `longspan.`; `longspan` is the face, `longspan/__init__.py`.
FLOORS = (
    {"longspan_kernels", "data", "records", "errors", "console", "version", "after_import", "user_folders"},
    {"sparsity", "custom"},
    {"attention"},
    {"models"},
    {"positions", "distributed", "generation", "config"},
    {"analysis", "deepspeed", "evaluation"},
    {"training"},
    {"sweeps", "longspan"},
    {"cli"},
    {"train.py", "__main__"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ABOVE_MODELS = {room for room, floor in FLOOR_OF.items() if floor >= FLOOR_OF["models"]}

# The rooms that may import a library; every room may import a library that is not listed.
LIBRARIES = {
    "hydra": {"config", "sweeps", "cli"},
    "lightning": {"training", "distributed"},
    "lightning_utilities": {"training", "distributed"},
    "transformers": {"data", *ABOVE_MODELS},
    "tokenizers": {"data", *ABOVE_MODELS},
    "datasets": {"data"},
    "triton": {"longspan_kernels"},
}

# The only libraries of the kernels besides torch and triton: module -> libraries.
KERNEL_EXTRAS = {
    "longspan_kernels.layout.block_layout": {"matplotlib"},
    "longspan_kernels.layout.drawing": {"matplotlib"},
}


@cache
def modules() -> dict[str, Path]:
    """Every module of both source roots and train.py: dotted name -> file."""
    found = {"train.py": ROOT / "train.py"}
    for root in (ROOT / "src", ROOT / "kernels"):
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported_names(source: str, package: str) -> Iterator[str]:
    """The dotted names that a module imports, anywhere in it; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


@cache
def imports() -> dict[str, frozenset[str]]:
    """What each module imports: modules of this project by their full name, libraries by their top name."""
    found = {}
    for module, file in modules().items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        targets = set()
        for name in imported_names(file.read_text(), package):
            top = name.partition(".")[0]
            if top in ("longspan", "longspan_kernels"):
                # `from longspan.models import sparsify` imports the module of that name, if there is one.
                targets.add(name if name in modules() else name.rpartition(".")[0])
            else:
                targets.add(top)
        found[module] = frozenset(targets - sys.stdlib_module_names - {module})
    return found


def project_imports() -> set[tuple[str, str]]:
    """Every import of one module of the project by another: (importer, imported)."""
    return {(module, target) for module, targets in imports().items() for target in targets & set(modules())}


def library_imports() -> set[tuple[str, str]]:
    """Every import of a library: (importer, top name of the library)."""
    return {(module, target) for module, targets in imports().items() for target in targets - set(modules())}


def room_of(module: str) -> str:
    """The room of a module: the folder or file below `longspan`."""
    top, _, rest = module.partition(".")
    if module == "train.py":
        return module
    return rest.partition(".")[0] if top == "longspan" and rest else top


def goes_down(importer: str, imported: str) -> bool:
    """Whether an import stays in its room or goes to a lower floor."""
    here, there = room_of(importer), room_of(imported)
    return here == there or FLOOR_OF[here] > FLOOR_OF[there]


def circle(edges: set[tuple[str, str]]) -> list[str]:
    """The modules of one circle of imports, in order; an empty list if there is none."""
    graph: dict[str, set[str]] = {}
    for importer, imported in sorted(edges):
        graph.setdefault(importer, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def test_every_kind_of_import_is_read():
    source = """
import torch.nn
from longspan.models import sparsify
from . import rows
from ..errors import ConfigError
if TYPE_CHECKING:
    from typing import Any
def function():
    import lightning as L
    importlib.import_module("hydra.core")
"""
    assert set(imported_names(source, "longspan.sparsity")) == {
        "torch.nn", "longspan.models.sparsify", "longspan.sparsity.rows", "longspan.errors.ConfigError",
        "typing.Any", "lightning", "hydra.core",
    }  # fmt: skip


def test_a_circle_is_found():
    assert set(circle({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")})) == {"a", "b", "c"}
    assert circle({("a", "b"), ("a", "c"), ("b", "c")}) == []


def test_every_module_belongs_to_a_room():
    assert {module for module in modules() if room_of(module) not in FLOOR_OF} == set()


def test_imports_go_down():
    assert {edge for edge in project_imports() if not goes_down(*edge)} == set()


def test_no_circles():
    assert circle(project_imports()) == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_are_imported_by_their_rooms(library):
    importers = {module for module, target in library_imports() if target == library}
    assert {module for module in importers if room_of(module) not in LIBRARIES[library]} == set()


def test_kernels_import_torch_and_triton_alone():
    others: dict[str, set[str]] = {}
    for module, library in library_imports():
        if room_of(module) == "longspan_kernels" and library not in ("torch", "triton"):
            others.setdefault(module, set()).add(library)
    assert others == KERNEL_EXTRAS


def test_nothing_imports_experiments_or_tests():
    assert {edge for edge in library_imports() if edge[1] in ("experiments", "tests", "conftest")} == set()
