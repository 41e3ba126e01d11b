"""Offline runs of a sweep, read back from their files; and the guide to them, as far as it goes offline."""

import csv
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from torch import nn

from longspan import BigBirdSparsityConfig, FixedSparsityConfig, sparsify
from longspan.analysis.distance import attention_distance
from longspan.analysis.flops import training_flops
from longspan.config.compose import compose
from longspan.config.patterns import read_patterns
from longspan.data import ByteTokenizer
from longspan.models import build_model
from longspan.sparsity import DenseSparsityConfig, LocalSlidingWindowSparsityConfig
from longspan.training.loggers import WandbRun, close_loggers
from longspan.training.reports.facts import describe_patterns, mean_density, mean_distance
from longspan.training.reports.logged import log_run_start, pattern_label

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "wandb.md").read_text()
COMMANDS = [line.strip() for line in re.findall(r"^    (\S.*)$", GUIDE, flags=re.M)]
PATTERNS = {
    "bigbird": BigBirdSparsityConfig(2, 16, attention="unidirectional"),
    "fixed": FixedSparsityConfig(2, 16, attention="unidirectional"),
}


def load_reader():
    # Test folders are no packages.
    spec = importlib.util.spec_from_file_location(
        "offline_wandb", Path(__file__).with_name("offline_wandb.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


offline_wandb = load_reader()


@pytest.mark.slow
def test_the_guide_and_what_it_logged(tmp_path, warm_python):
    """One sweep for all of it: its runs take a while to start."""
    shell = shell_without_account(tmp_path, warm_python)
    corpus = (
        f"data=text_files 'data.corpus.files=[{ROOT}/kernels/**/*.py]' data.corpus.validation_fraction=0.2"
    )
    done = shell(f"{COMMANDS[0]} {corpus} seed=3 data.seq_len=128")
    assert done.returncode == 0, done.stdout + done.stderr
    for number, name in enumerate(PATTERNS):
        folder = tmp_path / "logs" / "sweeps" / "patterns" / f"{number}_{name}"
        run = offline_wandb.read(folder)
        check_name_tags_and_group(run, name)
        check_configuration(run, name)
        check_pattern(run, name)
        check_flops(run, name)
        check_every_loss_stands_beside_every_budget(run, folder)
        check_picture(run, folder)
    assert len(COMMANDS) == 10
    for command in COMMANDS[1:]:
        check_command(command, shell)


def shell_without_account(folder, python):
    """What runs commands in a folder, with no login, no settings and no network."""
    (folder / "home").mkdir()
    keep = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    path = f"{Path(python).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**keep, "HOME": str(folder / "home"), "NETRC": str(folder / "none"), "PATH": path}
    # A connection would go through a proxy that does not answer.
    environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 240}

    def shell(command):
        command = command.replace("python train.py", f"python {shlex.quote(str(ROOT / 'train.py'))}")
        return subprocess.run(["bash", "-c", command], stdin=subprocess.DEVNULL, **options)

    return shell


def check_name_tags_and_group(run, name):
    assert (run.name, run.group, run.project) == (f"{name} 128 seed 3", "patterns", "longspan")
    assert sorted(run.tags) == sorted([name, "length 128"])
    assert run.exit_code == 0


def check_configuration(run, name):
    """Nested, with what to group by."""
    config = run.config
    assert config["sparsity"]["name"] == name
    assert config["sparsity"]["_target_"] == f"longspan.sparsity.{type(PATTERNS[name]).__name__}"
    assert config["sparsity"]["block"] == 16
    assert config["trainer"]["max_steps"] == 6
    assert config["corpus"]["train"]["bytes"] > 0
    assert config["data"]["seq_len"] == 128


def check_pattern(run, name):
    layout = PATTERNS[name].layout(128)
    distance = attention_distance([layout], 128, causal=True)
    expected = {"density": layout.density, "attention_distance": distance}
    group = run.config["pattern"].pop("group")
    assert re.fullmatch(rf"{name}, clm, \w+, 128 tokens", group)
    assert run.config["pattern"] == pytest.approx(expected)
    assert {key: run.summary[f"pattern/{key}"] for key in expected} == pytest.approx(expected)


def check_flops(run, name):
    model = build_model("llama", "clm", ByteTokenizer().vocab_size, 128, 32, 2, 2)
    step = training_flops(model, [PATTERNS[name].layout(128)] * 2, 128, 2)
    assert run.summary["cost/flops_per_step"] == step.total
    assert run.summary["cost/dense_flops_per_step"] == step.dense
    assert run.summary["cost/flops"] == 6 * step.total
    logged = [row["cost/flops"] for row in run.history if "train/loss" in row]
    assert logged == pytest.approx([step.total * number for number in range(1, 7)])


def check_every_loss_stands_beside_every_budget(run, folder):
    losses = [row for row in run.history if "train/loss" in row or "val/loss" in row]
    assert len(losses) == 7
    assert all(row["cost/tokens"] > 0 and row["cost/seconds"] > 0 for row in losses)
    with open(folder / "metrics.csv", newline="") as file:
        table = [row for row in csv.DictReader(file) if row["val/loss"]]
    assert losses[-1]["val/loss"] == pytest.approx(float(table[-1]["val/loss"]))
    assert losses[-1]["cost/tokens"] == 6 * 2 * 128
    assert run.summary["val/best_loss"] == pytest.approx(losses[-1]["val/loss"])


def check_picture(run, folder):
    logged = run.summary["pattern/picture"]
    (file,) = logged["filenames"]
    with Image.open(next((folder / "wandb").glob("offline-run-*")) / "files" / file) as picture:
        assert picture.size == (logged["width"], logged["height"])
        # Not blank.
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10


def check_command(command, shell):
    """A command of the guide: run, or as much of it as asks for no account, terminal or network."""
    words = shlex.split(command)
    if words[:4] == ["python", "-m", "pip", "install"]:
        extra = re.fullmatch(r"longspan\[(\w+)\]", words[4]).group(1)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert extra in project["optional-dependencies"]
        return
    if words[1] == "train.py":
        # Composed, not run: it would go online.
        logger = compose(words[2:]).logger.wandb
        assert (logger.offline, logger.entity) == (False, "my-team")
        return
    # What opens a terminal or asks for a key is only looked up; what would upload, is asked what it would.
    if words[:2] in (["wandb", "login"], ["wandb", "leet"]) and "inspect" not in words:
        command = f"wandb {words[1]} --help"
    elif words[:2] == ["wandb", "sync"] and "--dry-run" not in words:
        command = command.replace("wandb sync", "wandb sync --dry-run")
    done = shell(command)
    if "longspan.analysis.dashboard" in words and "--print" not in words:
        assert (done.returncode, "no login to Weights & Biases" in done.stderr) == (1, True), done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    if "sync" in words:
        assert "Would sync 2 run(s)" in done.stdout + done.stderr
    if "inspect" in words:
        assert "bigbird 128 seed 3" in done.stdout
        assert "val/loss" in done.stdout


def test_a_resumed_run_goes_on_under_its_id(tmp_path):
    ids = []
    for part in range(2):
        logger = WandbRun(str(tmp_path))
        logger.introduce(f"part {part}", [], None)
        ids.append(logger.experiment.id)
        close_loggers([logger])
    parts = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert ids[0] == ids[1]
    assert {path.name for path in parts} == {f"run-{ids[0]}.wandb"}


def test_the_configuration_wins_over_what_is_filled_in(tmp_path):
    logger = WandbRun(str(tmp_path), name="mine", group="", tags=[])
    logger.introduce("made up", ["a" * 100], "sweep")
    assert [logger._wandb_init[key] for key in ("name", "group", "tags")] == ["mine", "", []]
    other = WandbRun(str(tmp_path))
    other.introduce("made up", ["a" * 100], None)
    assert [other._wandb_init[key] for key in ("name", "group", "tags")] == ["made up", None, ["a" * 64]]


def record_of_patterns(patterns, corpus=None):
    """As much of the record of a run as its loggers are given."""
    return {
        "patterns": describe_patterns(patterns, 128),
        "pattern": {"density": None, "attention_distance": None},
        "seq_len": 128,
        "objective": "clm",
        "corpus": corpus or {},
        "model": {"parameters": 1},
    }


def run_of(model, loggers, settings):
    return SimpleNamespace(module=SimpleNamespace(model=model), loggers=loggers, settings=settings)


def test_a_mixture():
    """The label, and the figures over all layers."""
    dense, bigbird = None, PATTERNS["bigbird"]
    model = sparsify(build_model("llama", "clm", 20, 128, 16, 2, 2), [bigbird, dense])
    layouts = [bigbird.layout(128), None]
    assert mean_density(model, 128) == (layouts[0].density + 1) / 2
    assert mean_distance(model, 128, causal=True) == attention_distance(layouts, 128, causal=True)
    logged = {}
    logger = SimpleNamespace(log_hyperparams=logged.update, save=lambda: None)
    record = record_of_patterns([bigbird, PATTERNS["fixed"]], corpus={"name": "code"})
    assert pattern_label(record["patterns"]) == "bigbird[0]+fixed[1]"
    assert pattern_label([]) == "none"
    log_run_start(run_of(model, [logger], {"sparsity": [{"block": 16}, None]}), record, None)
    assert logged["sparsity"] == {"layers": [{"block": 16}, None], "name": "bigbird[0]+fixed[1]"}
    assert logged["pattern"]["group"] == "bigbird[0]+fixed[1], clm, code, 128 tokens"


def label_of(sparsity, layers=None):
    return pattern_label(describe_patterns(sparsity, 512), layers)


def test_patterns_that_differ_have_labels_that_differ():
    local, wide = (LocalSlidingWindowSparsityConfig(2, 16, num_sliding_window_blocks=n) for n in (3, 5))
    dense = DenseSparsityConfig(2, 16, attention="unidirectional")
    assert label_of(local) == label_of([local] * 4, 4) == "local_sliding_window"
    assert label_of([local] * 4, 5) == "local_sliding_window[0–3]"
    assert label_of(wide) == "local_sliding_window(num_sliding_window_blocks=5)"
    assert label_of([local, local, local, dense]) == "local_sliding_window[0–2]+dense[3]"
    assert label_of([local, dense, local, dense]) == "local_sliding_window[0, 2]+dense[1, 3]"
    assert label_of(local | dense) == "union(patterns=[local_sliding_window,dense])"


def test_a_shipped_pattern_is_called_by_its_name():
    for name in ("a_shape", "bigbird", "fixed", "vertical_slash"):
        config = compose([f"sparsity={name}", *(["sparsity.seed=3"] if name == "bigbird" else [])])
        assert label_of(read_patterns(config, lambda: 2)) == name


def test_a_name_that_is_too_long_keeps_its_seed(tmp_path):
    pattern = FixedSparsityConfig(2, 16, attention="unidirectional")
    patterns = [pattern, None] * 40
    logger = WandbRun(str(tmp_path))
    logger.log_hyperparams = logger.log_image = lambda *given: None
    logger.save = lambda: None
    logger._experiment = SimpleNamespace(summary={})
    log_run_start(run_of(nn.Linear(1, 1), [logger], {"seed": 7}), record_of_patterns(patterns), None)
    name = logger._wandb_init["name"]
    assert len(name) == 128
    assert name.endswith(" 128 seed 7")
    assert mean_density(nn.Linear(1, 1), 128) is mean_distance(nn.Linear(1, 1), 128, True) is None
