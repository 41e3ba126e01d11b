"""What the README shows: its commands run (training as the smoke preset), its code runs, its links lead.

The guide from DeepSpeed is run as a reader would, from the first line to the last, in one folder; the other
guides have tests of their own.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GUIDES = sorted((ROOT / "docs").glob("*.md"))
# This guide shows single commands and examples, as the README does; the others have tests of their own.
SHOWN = README + (ROOT / "docs" / "longer-documents.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", SHOWN, flags=re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip() for line in re.findall(r"^    (python train\.py.*)$", SHOWN, flags=re.M)
]


def links_of(file: Path) -> list[tuple[str, Path]]:
    """The relative links of a page: as written, and where they lead."""
    found = re.findall(r"\]\((?!https?://)([^)#]+)\)", file.read_text())
    return [(f"{file.name}: {link}", file.parent / link) for link in found]


LINKS = [
    link
    for file in (ROOT / "README.md", ROOT / "experiments" / "README.md", *GUIDES)
    for link in links_of(file)
]
MAKE_TARGETS = re.findall(r"^    make (\w+)", README, flags=re.M)


# In the place of the smoke preset, whose sizes of a model a pretrained one does not take.
FEW_STEPS = [
    "data=text_files",
    f"data.corpus.files=['{ROOT}/kernels/longspan_kernels/*.py']",
    "data.corpus.validation_fraction=0.2",
    "trainer=cpu",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "data.batch_size=1",
    "data.validation_sequences=2",
    "logger=csv",
]


@pytest.fixture
def run(command, warm_python):
    """run(line, folder) -> what a command of the README prints, as the smoke preset, in the folder."""

    def of_line(line: str, folder: Path) -> str:
        arguments = smoke(line, folder)
        if "=" in line.replace("experiment=smoke", ""):
            status, printed, errors = command(*arguments[1:])
        else:
            # Two of them as a reader would; the others in this process, which has all imported.
            done = subprocess.run([warm_python, *arguments], cwd=ROOT, capture_output=True, text=True)
            status, printed, errors = done.returncode, done.stdout, done.stderr
        assert status == 0, printed + errors
        return printed

    return of_line


def smoke(command: str, folder: Path) -> list[str]:
    """The arguments of a command that trains, cut short, its files in a folder of the test's."""
    arguments = shlex.split(command)[1:]
    if "model=pretrained" in arguments:
        arguments += [*FEW_STEPS, f"hydra.run.dir={folder}"]
    elif "--help" not in arguments:
        where = "sweep" if "-m" in arguments else "run"
        arguments += ["experiment=smoke", f"hydra.{where}.dir={folder}"]
    return arguments


def test_the_readme_was_read():
    assert len(COMMANDS) >= 6
    assert len(PYTHON_BLOCKS) >= 3
    assert len(LINKS) >= 8


@pytest.mark.parametrize("line", [one for one in COMMANDS if "ckpt_path" not in one])
def test_command(run, line, tmp_path, pretrained):
    assert run(line.replace("=FOLDER", f"={pretrained}"), tmp_path / "run")


@pytest.mark.parametrize("line", [one for one in COMMANDS if "ckpt_path" in one])
def test_command_that_goes_on(run, line, tmp_path):
    run("python train.py sparsity=bigbird", tmp_path / "first")
    # A few steps more than the preset has, as the README's number is more than the default's.
    line = re.sub(r"max_steps=\d+", "max_steps=8", line)
    printed = run(line, tmp_path / "second")
    assert "Going on from" in printed


@pytest.mark.parametrize("code", PYTHON_BLOCKS)
def test_code(code):
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize(("link", "target"), LINKS)
def test_link(link, target):
    assert target.exists(), link


# A fenced block with its language, or indented lines: commands.
GUIDE_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$|((?:^ {4}[^\n]*\n)+)", flags=re.DOTALL | re.MULTILINE)
# A run is cut short; what the guide says of it stays as it stands.
SHORT = (
    " trainer=cpu logger=none trainer.max_steps=2 trainer.val_check_interval=2"
    " data.validation_sequences=1 data.batch_size=1"
)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """The folder in which a reader of a guide works: with a small BERT of twelve heads in `bert`."""
    from transformers import BertConfig, BertForMaskedLM

    from longspan.data import ByteTokenizer

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 32}
    config = BertConfig(vocab_size=260, pad_token_id=256, max_position_embeddings=512, **sizes)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    ByteTokenizer().to_hugging_face().save_pretrained(tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:method 'tile' repeats")
def test_every_line_of_the_guide_from_deepspeed(reader, warm_python):
    guide = ROOT / "docs" / "coming-from-deepspeed.md"
    text = guide.read_text()
    blocks = [match.groups() for match in GUIDE_BLOCK.finditer(text)]
    assert {language for language, _, _ in blocks} == {"json", "python", None}
    names = re.findall(r"`(\w+\.json)`:\n\n```json", text)
    variables: dict = {}
    for language, code, commands in blocks:
        if language == "json":
            json.loads(code)
            (reader / names.pop(0)).write_text(code)
        elif language == "python":
            exec(compile(code, guide.name, "exec"), variables)
        else:
            shell_run(commands, warm_python)
    assert not names
    assert list(reader.glob("runs/*/result.json"))
    assert variables["logits"].shape[-1] == 260
    assert variables["output"].shape[:2] == variables["batch"].input_ids.shape


def shell_run(commands: str, python: str) -> None:
    """Run commands as they stand, by a Python, with this repository's train.py, a training cut short."""
    lines = commands.replace("\\\n", " ").splitlines()
    for line in (line.strip() for line in lines):
        assert line.startswith("python "), line
        command = line.replace("python train.py", f"python {shlex.quote(str(ROOT / 'train.py'))}")
        command += SHORT if "train.py" in line else ""
        script = f'python() {{ {shlex.quote(python)} "$@"; }}\n{command}'
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M)
