"""The command: mistakes end it with a message and nothing else; a few real runs end to end."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from longspan.sparsity import PATTERNS

ROOT = Path(__file__).parents[2]
# A small corpus and two steps.
QUICK = [
    "data=text_files",
    f"data.corpus.files=[{ROOT}/kernels/**/*.py]",
    "data.corpus.validation_fraction=0.2",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
]


PATTERN_KEYS = "allowed: num_heads, block, different_layout_per_head, num_random_blocks"
MISTAKES = [
    ("sparsity.blok=3", f"unknown key 'sparsity.blok'; {PATTERN_KEYS}"),
    ("sparsity.blok=3", "did you mean block?"),
    ("sparsity.block=abc", "sparsity.block: Value 'abc'"),
    ("sparsity.block=abc", "expected int"),
    ("sparsity.block=1.5", "expected int"),
    (
        "sparsity=foo",
        "no option 'foo' in the group sparsity; options: a_shape, attention_sinks, bigbird, bslongformer",
    ),
    ("spasity=dense", "unknown key 'spasity'; allowed: tokenizer, data, objective, model, sparsity"),
    ("trainer.max_stepz=1", "unknown key 'trainer.max_stepz'; allowed: run_dir"),
    ("trainer.max_steps=many", "trainer.max_steps"),
    ("model.foo=1", "unknown key 'model.foo'; allowed: architecture, max_positions, hidden_size"),
    ("model.vocab_size=3", "unknown key 'model.vocab_size'"),
    ("data.corpus.foo=1", "unknown key 'data.corpus.foo'; allowed: packages"),
    ("callbacks.best.monitr=x", "unknown key 'callbacks.best.monitr'; allowed: dirpath, monitor"),
    ("seed=abc", "seed: Value 'abc'"),
    ("foo=1", "unknown key 'foo'; allowed: "),
    ("+foo=1", "unknown key 'foo'; allowed: "),
    ("+sparsity.foo=1", f"unknown key 'sparsity.foo'; {PATTERN_KEYS}"),
    ("++sparsity.foo=1", f"unknown key 'sparsity.foo'; {PATTERN_KEYS}"),
    ("+data.corpus.a.b=1", "unknown key 'data.corpus.a.b'; allowed: packages"),
    ("+callbacks.foo=1", "callbacks.foo has no _target_, so it is no part of its own; present: best, last"),
    ("+logger.foo.level=1", "logger.foo has no _target_, so it is no part of its own; present: csv, wandb"),
    ("callbacks.progress=null", "callbacks.progress has no _target_"),
    ("seed=-1", "seed=-1 must lie in [0, 2**32)"),
    ("seed=4294967296", "seed=4294967296 must lie in [0, 2**32)"),
    ("+experiment=smoke", "write it once, without a +"),
    ("experiment=smok", "did you mean smoke?"),
    ("sparsity={block:3", "no viable alternative"),
    ("sparsity.num_heads=${nowhere}", "sparsity.num_heads: Interpolation key 'nowhere' not found"),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES)
def test_a_mistake_ends_before_anything_starts(command, tmp_path, override, message):
    status, out, err = command(override)
    assert status == 1
    assert message in err
    assert "Traceback" not in err
    assert "Error executing job" not in err
    assert out == ""
    assert not list(tmp_path.glob("logs/runs/*/result.json"))


@pytest.mark.parametrize(
    "override", ["sparsity.blok=3", "sparsity.block=abc", "+sparsity.foo=1", "sparsity=dense,foo"]
)
def test_a_mistake_ends_a_sweep_before_its_first_job(command, tmp_path, override):
    overrides = [override] if override.startswith("sparsity=") else ["sparsity=bigbird,dense", override]
    status, _, err = command("-m", *overrides)
    assert status == 1
    assert re.search("unknown key|expected int|no option", err)
    assert "Traceback" not in err
    assert not list(tmp_path.glob("logs/sweeps/*/*/*"))


@pytest.mark.parametrize("path", ["last", "best", "null,last"])
def test_a_sweep_has_no_last_checkpoint(command, tmp_path, path):
    status, out, err = command("-m", "experiment=smoke", f"ckpt_path={path}", "seed=0,1")
    assert status == 1
    assert re.search("longspan: ckpt_path=(last|best) means nothing in a sweep", err)
    assert (out, list(tmp_path.iterdir())) == ("", [])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sparsity.num_random_blocks=-1"], "sparsity: "),
        (["optimizer.lr=-1"], "optimizer: lr must be positive"),
        (["objective=mlm", "model=llama"], "model: "),
        (["data=text_files", "data.corpus.files=[nothing/*.txt]"], "nothing"),
        (["data=text_files"], "data.corpus"),
        (["ckpt_path=last"], "ckpt_path=last"),
        (["+callbacks.lst.every_n_train_steps=1"], "callbacks.lst has no _target_"),
        (["sparsity.num_heads=3"], "3"),
        (
            ["budget=tokens", "budget.tokens=511"],
            "budget: tokens=511 is less than the 512 that an optimizer step",
        ),
        (["budget=flops", "budget.flops=-1"], "budget: flops must be positive and finite, got -1.0"),
        (["sweep=some"], "sweep=some names the folder of a sweep: add -m"),
        (["loss_chunk=0"], "loss_chunk must be at least 1"),
        ([*QUICK, "attention_backend=cuda"], "attention_backend=cuda: backend must be one of 'auto', "),
    ],
)
def test_a_mistake_found_by_the_parts_themselves(command, overrides, message):
    status, _, err = command("experiment=smoke", *overrides)
    assert status == 1
    assert f"longspan: {message}" in err or message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_free_dictionary_takes_additions(command):
    status, out, err = command("--cfg", "job", "+model.config_overrides.rope_theta=5000.0")
    assert (status, err) == (0, "")
    assert "rope_theta: 5000.0" in out


def test_help_lists_groups_examples_and_places(command):
    status, out, _ = command("--help")
    assert status == 0
    assert f"sparsity: {', '.join(sorted(PATTERNS))} " in " ".join(out.split())
    assert out.count("python train.py") >= 6
    assert "logs/runs" in out
    assert max(len(line) for line in out.splitlines()) <= 110
    for group in ("data", "model", "objective", "optimizer", "trainer", "logger", "experiment"):
        assert re.search(rf"^{group}: ", out, re.MULTILINE)


def test_cfg_job_prints_every_argument(command):
    status, out, _ = command("--cfg", "job")
    assert status == 0
    assert "_target_: longspan.sparsity.BigBirdSparsityConfig" in out
    assert "num_heads: ${model.num_heads}" in out


def run(folder: Path, *arguments: str, timeout: int = 100) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")},
    )


def test_a_smoke_run_and_its_continuation(command, tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").mkdir()
    first = run(tmp_path, "experiment=smoke", "logger=default")
    assert first.returncode == 0, first.stderr
    (folder,) = (tmp_path / "logs" / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 6
    assert result["metrics"]["val_loss"] < 7
    assert result["overrides"] == ["experiment=smoke", "logger=default"]
    assert (folder / "metrics.csv").is_file()
    assert list(folder.glob("wandb/**/*.wandb"))
    outside = {
        path.relative_to(tmp_path)
        for path in tmp_path.glob("**/*")
        # Matplotlib's list of fonts, written once a user: Lightning imports it through torchmetrics.
        if not path.is_dir() and folder not in path.parents and path.parent.name != "matplotlib"
    }
    assert not outside, "a run writes into its own directory alone"
    for word in (
        "held-out byte entropy",
        "validation loss",
        "bigbird",
        "parameters",
        str(folder.relative_to(tmp_path)),
    ):
        assert word in first.stdout

    status, _, err = command(
        "experiment=smoke", "ckpt_path=last", "trainer.max_steps=8", "optimizer.lr=0.001", "sparsity=fixed"
    )
    assert status == 1
    assert "last.ckpt is of a run with other settings: sparsity: longspan.sparsity.BigBird" in err
    assert "optimizer.lr: 0.003 before, 0.001 now" in err

    again = run(tmp_path, "experiment=smoke", "ckpt_path=last", "trainer.max_steps=8")
    assert again.returncode == 0, again.stderr
    newest = max((tmp_path / "logs" / "runs").iterdir())
    assert newest != folder
    assert json.loads((newest / "result.json").read_text())["steps"] == 8
    assert str(folder / "checkpoints" / "last.ckpt") in again.stdout.replace("\n", "")


def test_a_seed_gives_the_same_loss_again(command, tmp_path):
    losses = []
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        status, _, err = command(
            "experiment=smoke",
            *QUICK,
            "logger=none",
            f"seed={seed}",
            f"hydra.run.dir={name}",
            "data.batch_size=${model.num_layers}",  # an interpolation on the command line is one of the run's
        )
        assert status == 0, err
        losses.append(json.loads((tmp_path / name / "result.json").read_text())["metrics"]["val_loss"])
    assert losses[0] == losses[1] != losses[2]


def test_a_sweep_over_patterns_ends_with_their_comparison(command, tmp_path):
    status, out, err = command("-m", "experiment=smoke", *QUICK, "sparsity=glob([b*,d*])")
    assert status == 0, err
    (sweep,) = (tmp_path / "logs" / "sweeps").iterdir()
    names = ["bigbird", "bslongformer", "dense", "difference", "dilated"]
    jobs = {path.parent.name for path in sweep.glob("*/result.json")}
    assert jobs == {f"{number}_{name}" for number, name in enumerate(names)}
    table = (sweep / "comparison.txt").read_text()
    assert all(f"sparsity={name}" in table for name in names)
    assert f"Sweep of {len(names)} runs" in out
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}


def test_a_sweep_with_a_job_that_fails_runs_the_others(command, tmp_path):
    status, _, err = command("-m", "experiment=smoke", *QUICK, "logger=none", "optimizer.lr=-1,0.001")
    assert status == 1
    assert "failed: 0_bigbird" in err
    assert "lr must be positive" in err
    (sweep,) = (tmp_path / "logs" / "sweeps").iterdir()
    assert [path.parent.name for path in sweep.glob("*/result.json")] == ["1_bigbird"]
