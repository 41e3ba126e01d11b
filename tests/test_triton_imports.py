"""Triton is imported by the kernels of the Triton backend alone, and those only when a call needs them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "kernels" / "longspan_kernels"
# What the Triton backend is made of.
TRITON_MODULES = {
    "triton_backend", "prepared", "call", "launch", "autotune",
    "forward", "backward", "bias_gradient", "tiles",
}  # fmt: skip
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_who_imports_triton(path):
    if path.parent == KERNELS and path.stem in TRITON_MODULES:
        return
    tree = ast.parse(path.read_text())
    assert not [name for name in imported(tree, True) if name.split(".")[0] == "triton"]
    eager = [name for name in imported(tree, False) if name.startswith("longspan_kernels.")]
    assert not [name for name in eager if name.split(".")[1] in TRITON_MODULES]


def test_the_modules_of_the_backend_do_import_it():
    for name in TRITON_MODULES:
        names = list(imported(ast.parse((KERNELS / f"{name}.py").read_text()), False))
        own = {one.split(".")[1] for one in names if one.startswith("longspan_kernels.")}
        assert "triton" in {one.split(".")[0] for one in names} or own & TRITON_MODULES, name
