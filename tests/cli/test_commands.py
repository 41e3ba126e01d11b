"""`longspan`, `python -m longspan` and the commands that they find."""

import importlib
import subprocess
import sys

import pytest

from longspan.cli.commands import COMMANDS, main
from longspan.version import __version__


@pytest.fixture
def longspan(monkeypatch, capsys, tmp_path):
    """longspan(*words) -> (status, stdout, stderr), in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["longspan", *words])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return call


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]], ids=["none", "--help", "-h"])
def test_help_lists_every_command_with_a_line(longspan, words):
    status, out, err = longspan(*words)
    assert (status, err) == (0, "")
    for word, (_, does) in COMMANDS.items():
        assert any(line.split() == [word, *does.split()] for line in out.splitlines())
    assert max(map(len, out.splitlines())) <= 110


def test_the_version(longspan):
    assert longspan("--version") == (0, f"longspan {__version__}\n", "")


@pytest.mark.parametrize(("word", "meant"), [("trian", "train"), ("inspct", "inspect"), ("exprot", "export")])
def test_an_unknown_word_is_refused_with_the_nearest(longspan, word, meant):
    status, out, err = longspan(word, "sparsity=fixed")
    assert (status, out) == (1, "")
    assert f"there is no command '{word}'; commands: train, inspect, compare" in err
    assert f"did you mean {meant}?" in err


@pytest.mark.parametrize("word", COMMANDS)
def test_every_command_prints_its_help(longspan, word):
    status, out, err = longspan(word, "--help")
    assert (status, err) == (0, "")
    assert "longspan" in out.lower()


def test_each_command_has_a_main_without_arguments():
    for module, _ in COMMANDS.values():
        assert callable(importlib.import_module(module).main)


def test_training_through_the_command(longspan, tmp_path):
    status, _, err = longspan("train", "optimizer.lrr=1")
    assert status == 1
    assert "unknown key 'optimizer.lrr'" in err
    status, out, err = longspan("train", "--cfg", "job", "-p", "sparsity", "sparsity=dense")
    assert (status, err) == (0, "")
    assert "DenseSparsityConfig" in out


def test_inspecting_through_the_command(longspan):
    status, out, _ = longspan("inspect", "sparsity=bigbird", "seq_len=256")
    assert status == 0
    assert "bigbird" in out
    status, _, err = longspan("inspect", "sparsity=bigbrd")
    assert status == 1
    assert "did you mean bigbird?" in err


MODULES = {
    "longspan": "usage: longspan COMMAND",
    "longspan.analysis.inspect": "longspan.analysis.inspect",
    "longspan.analysis.compare": "usage: python -m longspan.analysis.compare",
    "longspan.analysis.dashboard": "usage: python -m longspan.analysis.dashboard",
    "longspan.training.export": "usage: python -m longspan.training.export",
    "longspan.training.deepspeed": "usage: python -m longspan.training.deepspeed",
}


@pytest.mark.parametrize(("module", "said"), MODULES.items(), ids=MODULES)
def test_python_m(module, said):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert done.stderr == ""


def test_a_command_imports_no_other():
    """The list of commands is printed, and an unknown one refused, before anything heavy is imported."""
    code = (
        "import sys\n"
        "from longspan.cli.commands import main\n"
        "for word in ('--help', 'trian'):\n"
        "    sys.argv = ['longspan', word]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit:\n"
        "        pass\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'lightning', 'transformers', 'longspan.analysis'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
