"""Patterns of one's own: the guide as a reader follows it, and what goes wrong without the folder."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from longspan import user_folders
from longspan.config.instantiate import locate
from longspan.errors import ConfigError
from longspan.sparsity import custom, from_dict, registry
from longspan.training import export

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "custom-patterns.md").read_text()
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
FILES = re.findall(r"`(mine/\S+)`:\n\n```\w+\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^    (python .*)$", GUIDE, flags=re.MULTILINE)
# In the place of the default corpus and sizes.
QUICK = [
    "experiment=smoke",
    "data=text_files",
    f"data.corpus.files=[{ROOT}/kernels/longspan_kernels/*.py]",
    "data.corpus.validation_fraction=0.2",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
]
TARGET = "longspan.sparsity.custom.tree.TreeSparsityConfig"


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """The folder in which a reader works, with the two files; nothing of it is known afterwards."""
    for name, text in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(user_folders.VARIABLE, "")
    monkeypatch.setattr(registry, "_patterns", dict(registry.PATTERNS))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("longspan.sparsity.custom.")]:
        del sys.modules[name]
        vars(custom).pop(name.rpartition(".")[2], None)


@pytest.fixture
def python(warm_python):
    def run(*arguments: str) -> str:
        done = subprocess.run([warm_python, *arguments], capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_every_line_of_the_guide(reader, command, python, monkeypatch):
    assert [name for name, _ in FILES] == ["mine/sparsity/tree.py", "mine/sparsity/tree.yaml"]
    assert len(COMMANDS) == 3
    run, union, exported = (shlex.split(line)[1:] for line in COMMANDS)
    assert run[0] == union[0] == "train.py"
    python(str(ROOT / "train.py"), *run[1:], *QUICK)
    # The others in this process, which has paid for its imports.
    status, _, err = command(*union[1:], *QUICK)
    assert status == 0, err
    assert exported[:2] == ["-m", "longspan.training.export"]
    monkeypatch.setattr(sys, "argv", exported[1:])
    export.main()
    programs = [text for language, text in FENCED.findall(GUIDE) if language == "python"][1:]
    assert len(programs) == 2
    # In one process that has seen nothing of what came before, as a reader's notebook.
    drawn = python("-c", "\n".join(programs))
    assert "█" in drawn

    result = json.loads((reader / "runs" / "tree" / "result.json").read_text())
    assert result["patterns"][0]["name"] == "tree"
    assert result["patterns"][0]["config"]["reach"] == 2
    union = json.loads((reader / "runs" / "union" / "result.json").read_text())["patterns"][0]
    assert [part["name"] for part in union["config"]["patterns"]] == ["attention_sinks", "tree"]
    saved = json.loads((reader / "trained-tree" / "config.json").read_text())
    assert saved["longspan_sparsity"]["name"] == "tree"


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_flag_and_variable_find_the_options_and_check_their_arguments(reader, command, monkeypatch, how):
    before = ["--config-dir", "mine"] if how == "flag" else []
    if how == "variable":
        monkeypatch.setenv(user_folders.VARIABLE, f"{reader / 'mine'}{os.pathsep}{reader}")
    status, out, err = command(
        *before, "--cfg", "job", "-p", "sparsity", "sparsity=tree", "sparsity.block=32"
    )
    assert (status, err) == (0, "")
    assert f"_target_: {TARGET}\nnum_heads: ${{model.num_heads}}\nblock: 32" in out
    status, _, err = command(*before, "sparsity=tree", "sparsity.raech=2")
    assert status == 1
    assert "unknown key 'sparsity.raech'; allowed: num_heads, block, different_layout_per_head, reach" in err
    assert "did you mean reach?" in err
    status, out, _ = command(*before, "--help")
    assert status == 0
    assert "strided, tree, union" in " ".join(out.split())
    assert from_dict({"name": "tree", "num_heads": 2, "reach": 0}).to_dict()["reach"] == 0


def test_a_sweep_and_the_jobs_of_its_table(reader, command):
    status, out, err = command(
        "-m", "--config-dir", "mine", "sparsity=dense,tree", *QUICK, "logger=none", "hydra.sweep.dir=sweep"
    )
    assert status == 0, err
    assert sorted(path.parent.name for path in reader.glob("sweep/*/result.json")) == ["0_dense", "1_tree"]
    assert "Sweep of 2 runs" in out


def test_without_the_folder(reader, command, monkeypatch):
    nowhere = r"in sparsity/tree\.py of a folder that LONGSPAN_PATH or --config-dir names \(now: none\)"
    with pytest.raises(
        ConfigError, match=rf"_target_={re.escape(TARGET)}: a pattern of your own .*{nowhere}"
    ):
        locate(TARGET)
    with pytest.raises(ValueError, match=rf"name must be one of dense, .* got 'tree'; .*{nowhere}"):
        from_dict({"name": "tree", "num_heads": 2})
    status, _, err = command("sparsity=tree")
    assert status == 1
    assert "no option 'tree' in the group sparsity; options: a_shape, attention_sinks" in err
    monkeypatch.setenv(user_folders.VARIABLE, str(reader))
    with pytest.raises(ValueError, match=rf"names \(now: {re.escape(str(reader / 'sparsity'))}\)"):
        from_dict({"name": "tree", "num_heads": 2})
    # Named later, it is found: nothing was remembered.
    monkeypatch.setenv(user_folders.VARIABLE, "mine")
    assert locate(TARGET) is type(from_dict({"name": "tree", "num_heads": 2}))


@pytest.mark.parametrize("name", ["../tree", "tree.other", "os", "", None, 3, "__init__"])
def test_names_that_are_no_module_of_the_folder(reader, monkeypatch, name):
    monkeypatch.setenv(user_folders.VARIABLE, "mine")
    with pytest.raises(ValueError, match="name must be one of dense"):
        from_dict({"name": name, "num_heads": 2})


def test_what_a_module_of_the_folder_has_imported_is_no_target(reader, monkeypatch):
    monkeypatch.setenv(user_folders.VARIABLE, "mine")
    (reader / "mine" / "sparsity" / "loose.py").write_text("from os import system\nimport absent_module\n")
    with pytest.raises(ConfigError, match=r"_target_=.*: No module named 'absent_module'"):
        locate("longspan.sparsity.custom.loose.system")
    (reader / "mine" / "sparsity" / "loose.py").write_text("from os import system\n")
    with pytest.raises(ConfigError, match=r"it comes from (posix|nt|os); allowed are"):
        locate("longspan.sparsity.custom.loose.system")
    with pytest.raises(ConfigError, match="has no attribute 'Tree'"):
        locate("longspan.sparsity.custom.loose.Tree")
    with pytest.raises(ValueError, match="got 'loose'"):
        from_dict({"name": "loose", "num_heads": 2})


def test_a_folder_that_is_none(reader, command, monkeypatch):
    status, _, err = command("--config-dir", "yours", "sparsity=tree")
    assert (status, err.strip()) == (1, "longspan: --config-dir yours: there is no such folder")
    odd = reader / f"a{os.pathsep}b"
    odd.mkdir()
    status, _, err = command("--config-dir", str(odd), "sparsity=tree")
    assert status == 1
    assert f"must not have '{os.pathsep}' in its name" in err
    monkeypatch.setenv(user_folders.VARIABLE, "yours")
    status, _, err = command("sparsity=tree")
    assert status == 1
    assert f"LONGSPAN_PATH names {reader / 'yours'}, which is no folder" in err


def test_the_shipped_options_keep_their_meaning(reader, command):
    (reader / "mine" / "sparsity" / "dense.yaml").write_text(
        "_target_: longspan.sparsity.custom.tree.Nothing\n"
    )
    status, out, _ = command("--config-dir", "mine", "--cfg", "job", "-p", "sparsity", "sparsity=dense")
    assert status == 0
    assert "_target_: longspan.sparsity.DenseSparsityConfig" in out
