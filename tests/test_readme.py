"""What the README shows: its commands run (training as the smoke preset), its code runs, its links lead."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip() for line in re.findall(r"^    (python train\.py.*)$", README, flags=re.M)
]
LINKS = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
MAKE_TARGETS = re.findall(r"^    make (\w+)", README, flags=re.M)


# In the place of the smoke preset, whose sizes of a model a pretrained one does not take.
FEW_STEPS = [
    "data=text_files",
    "data.corpus.files=[kernels/longspan_kernels/*.py]",
    "data.corpus.validation_fraction=0.2",
    "trainer=cpu",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "data.batch_size=1",
    "data.validation_sequences=2",
    "logger=csv",
]


def run(command: str, folder: Path) -> str:
    """Run a command of the README as the smoke preset, its files in a folder of the test's."""
    arguments = shlex.split(command)[1:]
    if "model=pretrained" in arguments:
        arguments += [*FEW_STEPS, f"hydra.run.dir={folder}"]
    elif "--help" not in arguments:
        where = "sweep" if "-m" in arguments else "run"
        arguments += ["experiment=smoke", f"hydra.{where}.dir={folder}"]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readme_was_read():
    assert len(COMMANDS) >= 6
    assert len(PYTHON_BLOCKS) >= 3
    assert len(LINKS) >= 8


@pytest.mark.parametrize("command", [one for one in COMMANDS if "ckpt_path" not in one])
def test_command(command, tmp_path, pretrained):
    assert run(command.replace("=FOLDER", f"={pretrained}"), tmp_path)


@pytest.mark.parametrize("command", [one for one in COMMANDS if "ckpt_path" in one])
def test_command_that_goes_on(command, tmp_path):
    run("python train.py", tmp_path / "first")
    # A few steps more than the preset has, as the README's number is more than the default's.
    command = re.sub(r"max_steps=\d+", "max_steps=8", command)
    printed = run(command, tmp_path / "second")
    assert "Going on from" in printed


@pytest.mark.parametrize("code", PYTHON_BLOCKS)
def test_code(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("link", LINKS)
def test_link(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M)
