"""What `import longspan` brings along, and how its names are found."""

import ast
import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import longspan


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_longspan_is_light():
    run(
        "import sys, longspan\n"
        "heavy = {'torch', 'triton', 'numpy', 'transformers', 'lightning', 'hydra', 'wandb', 'datasets'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
    )


def test_attention_needs_neither_training_nor_hydra():
    run(
        "import sys\n"
        "from longspan import BigBirdSparsityConfig, SparseSelfAttention, extend, sparsify\n"
        "heavy = {'triton', 'lightning', 'hydra', 'wandb', 'datasets', 'matplotlib', 'torch._dynamo'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
    )


def test_names_for_type_checkers_are_those_that_are_found():
    tree = ast.parse(Path(longspan.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted([*imported, "__version__"]) == longspan.__all__
    for name, module in imported.items():
        value = getattr(longspan, name)
        assert value is getattr(importlib.import_module(module), name)
        assert value is getattr(longspan, name)
    assert set(longspan.__all__) <= set(dir(longspan))


def test_parts_are_attributes_and_other_names_are_refused():
    run(
        "import longspan\n"
        "assert 'bigbird' in longspan.sparsity.PATTERNS\n"
        "assert longspan.models.sparsify is longspan.sparsify\n"
        "names = {}\n"
        "exec('from longspan import *', names)\n"
        "assert set(longspan.__all__) <= set(names)\n"
    )
    with pytest.raises(AttributeError, match=r"module 'longspan' has no attribute 'bigbird'"):
        _ = longspan.bigbird


def test_a_pattern_is_pickled_by_the_module_that_defines_it():
    pattern = longspan.BigBirdSparsityConfig(2)
    assert pickle.loads(pickle.dumps(pattern)) == pattern
