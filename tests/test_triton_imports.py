"""Triton is imported by the Triton backend alone, and that only when a call needs it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "kernels" / "longspan_kernels"
BACKEND = KERNELS / "triton_backend"
# What can be read of the backend where there is no Triton; everything else of it imports Triton.
WITHOUT_TRITON = {
    BACKEND / name
    for name in (
        "__init__.py",
        "columns.py",
        "kernel_configs.py",
        "schedule.py",
        "tiling.py",
        "kernels/__init__.py",
        "kernels/structs.py",
        "tuning/__init__.py",
        "tuning/config_cache.py",
    )
}
FILES = sorted([*KERNELS.rglob("*.py"), *(ROOT / "src").rglob("*.py"), ROOT / "train.py"])


def imported(tree: ast.AST, inside_functions: bool) -> Iterator[str]:
    """Every name that is imported, dotted; on request not those that wait for a function to be called."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imported(node, inside_functions)


def needs_triton(path: Path) -> bool:
    """Whether importing a file of the kernels' package imports Triton, itself or by what it imports."""
    for name in imported(ast.parse(path.read_text()), False):
        parts = name.split(".")
        if parts[0] == "triton":
            return True
        if parts[0] == "longspan_kernels":
            for depth in range(len(parts), 1, -1):
                file = KERNELS.joinpath(*parts[1:depth]).with_suffix(".py")
                if file.is_file():
                    if file != path and needs_triton(file):
                        return True
                    break
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_who_imports_triton(path):
    if BACKEND not in path.parents or path in WITHOUT_TRITON:
        names = imported(ast.parse(path.read_text()), True)
        assert not [name for name in names if name.split(".")[0] == "triton"]
        assert not needs_triton(path)


@pytest.mark.parametrize(
    "path", sorted(set(BACKEND.rglob("*.py")) - WITHOUT_TRITON), ids=lambda path: path.stem
)
def test_the_rest_of_the_backend_does_import_it(path):
    assert needs_triton(path)
