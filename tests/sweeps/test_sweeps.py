"""Sweeps: killed and gone on with, changed, beside each other by each launcher, refused what they cannot."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hydra
import pytest
import torch
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from longspan.config import machine, schemas
from longspan.config.folders import config_dir
from longspan.training.run import train

ROOT = Path(__file__).parents[2]
# A small model and corpus.
TINY = [
    "experiment=compare_patterns",
    "data=text_files",
    f"data.corpus.files=[{ROOT}/kernels/**/*.py]",
    "data.corpus.validation_fraction=0.2",
    "data.seq_len=128",
    "data.batch_size=1",
    "data.validation_sequences=2",
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "sparsity.block=16",
    "logger=csv",
    "trainer=cpu",
    "trainer.val_check_interval=10",
    "sweep=it",
]
SHORT = ["seed=0", f"budget.tokens={3 * 128}"]
# What a clock says differs from run to run.
TIMES = ("seconds", "per_second", "memory")


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def rows(folder: Path) -> list[dict]:
    with (folder / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{key: one[key] for key in one if not any(time in key for time in TIMES)} for one in found]


def weights(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()
    }


def kill_inside(arguments: list[str], folder: Path, job: str) -> None:
    """Start a sweep and kill it with -9 when `job` has written a checkpoint, and before its end."""
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "-m", *arguments],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    checkpoint = folder / "logs" / "sweeps" / "it" / job / "checkpoints" / "last.ckpt"
    try:
        for _ in range(6000):
            if checkpoint.is_file() or process.poll() is not None:
                break
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert checkpoint.is_file(), (folder / "output.txt").read_text()
    assert not (checkpoint.parents[1] / "result.json").exists(), "killed too late to show anything"


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_where_it_was(command, tmp_path):
    arguments = [*TINY, "sparsity=bigbird,dense,fixed", "seed=0", f"budget.tokens={40 * 128}"]
    arguments.append("callbacks.last.every_n_train_steps=4")
    kill_inside(arguments, tmp_path, "1_dense")
    sweep = tmp_path / "logs" / "sweeps" / "it"
    before = files(sweep / "0_bigbird")
    reached = torch.load(sweep / "1_dense" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 4 <= reached < 40
    assert not (sweep / "2_fixed").exists()

    status, out, err = command("-m", *arguments)
    assert status == 0, err
    assert "2 of 3 runs to train, 1 of them begun before, 1 finished" in out
    assert f"Going on from {sweep / '1_dense'}/checkpoints/last.ckpt" in out.replace("\n", "")
    assert out.count("Going on from") == 1
    assert files(sweep / "0_bigbird") == before, "a finished run is left alone"

    assert result(sweep / "2_fixed")["steps"] == 40
    whole = tmp_path / "whole"
    arguments.remove("sparsity=bigbird,dense,fixed")
    status, _, err = command("-m", *arguments, "sparsity=dense", f"hydra.sweep.dir={whole}")
    assert status == 0, err
    gone_on, uninterrupted = sweep / "1_dense", whole / "0_dense"
    assert result(gone_on)["steps"] == 40
    for name in ("metrics", "steps", "tokens", "status", "budget"):
        assert result(gone_on)[name] == result(uninterrupted)[name]
    assert rows(gone_on) == rows(uninterrupted)
    for name, value in weights(uninterrupted).items():
        assert torch.equal(value, weights(gone_on)[name]), name


def test_a_run_that_died_behind_its_last_step_is_finished(command, tmp_path):
    arguments = ["-m", *TINY, "sparsity=bigbird", "seed=0,1", f"budget.tokens={2 * 128}"]
    assert command(*arguments)[0] == 0
    sweep = tmp_path / "logs" / "sweeps" / "it"
    first = result(sweep / "0_bigbird")
    (sweep / "0_bigbird" / "result.json").unlink()
    weights_before = (sweep / "0_bigbird" / "checkpoints" / "last.ckpt").read_bytes()
    status, out, err = command(*arguments)
    assert status == 0, err
    assert "1 of 2 runs to train, 1 of them begun before, 1 finished" in out
    again = result(sweep / "0_bigbird")
    assert {**again["metrics"], "train_loss": None} == {**first["metrics"], "train_loss": None}
    assert again["metrics"]["train_loss"] == pytest.approx(first["metrics"]["train_loss"], rel=1e-6)
    assert (again["steps"], again["tokens"], again["status"]) == (2, 256, "finished")
    assert (sweep / "0_bigbird" / "checkpoints" / "last.ckpt").read_bytes() == weights_before


def test_a_sweep_whose_list_changes_and_a_job_that_failed(command, tmp_path):
    (tmp_path / "texts").mkdir()
    arguments = ["-m", *TINY, "seed=0", f"budget.tokens={2 * 128}"]
    missing = f"data.corpus.files=[{tmp_path}/texts/*.py],[{ROOT}/kernels/**/*.py]"
    status, _, err = command(*arguments, "sparsity=dense", missing)
    assert status == 1
    assert "failed: 0_dense" in err
    sweep = tmp_path / "logs" / "sweeps" / "it"
    before = files(sweep / "1_dense")

    # The list is another one now: what was the second job is the fourth, and what failed is the third.
    for index in range(4):
        text = (ROOT / "kernels" / "longspan_kernels" / "functional.py").read_text()
        (tmp_path / "texts" / f"{index}.py").write_text(f"# {index}\n{text}")
    status, out, err = command(*arguments, "sparsity=fixed,dense", missing)
    assert status == 0, err
    assert "3 of 4 runs to train, 1 of them begun before, 1 finished" in out
    assert files(sweep / "1_dense") == before
    assert sorted(path.parent.name for path in sweep.glob("*/result.json")) == [
        "0_dense",
        "1_dense",
        # Their own numbers are taken by others.
        "2_fixed",
        "3_fixed",
    ]
    assert not (sweep / "0_dense" / "failure.json").exists()
    # A job that is not asked for any more need not have ended well.
    (sweep / "0_dense" / "result.json").unlink()
    assert command(*arguments, "sparsity=fixed", f"data.corpus.files=[{ROOT}/kernels/**/*.py]")[0] == 0


def test_the_table_over_seeds(command, tmp_path):
    status, out, err = command(
        "-m", *TINY, "sparsity=bigbird,dense", "seed=0,1", f"budget.tokens={2 * 128}", "logger=none"
    )
    assert status == 0, err
    sweep = tmp_path / "logs" / "sweeps" / "it"
    table = (sweep / "comparison.txt").read_text()
    assert "Sweep of 4 runs" in table
    assert table.partition("Sweep of 4 runs")[2].rstrip() in out.replace("\r", "")
    over_seeds = table.partition("Over seeds")[2]
    for number, name in ((0, "bigbird"), (2, "dense")):
        losses = [result(sweep / f"{number + seed}_{name}")["metrics"]["val_loss"] for seed in (0, 1)]
        mean, half = sum(losses) / 2, abs(losses[0] - losses[1]) / 2
        assert f"{mean:.4f} ± {half * 2**0.5:.4f}" in over_seeds


def test_the_experiment_is_patterns_times_seeds():
    params = OmegaConf.load(ROOT / "conf/experiment/compare_patterns.yaml").hydra.sweeper.params
    given = OverridesParser.create().parse_overrides([*(f"{key}={value}" for key, value in params.items())])
    (jobs,) = BasicSweeper.split_arguments(given, None)
    names = ["dense", "local_sliding_window", "bslongformer", "bigbird", "fixed", "variable"]
    assert jobs == [[f"sparsity={name}", f"seed={seed}"] for name in names for seed in range(3)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=2"], "trainer.devices=2: a job of a sweep has one device"),
        (["trainer=ddp", "trainer.accelerator=cpu"], "trainer.devices=auto: a job of a sweep has one device"),
        (["trainer.strategy=ddp"], "trainer.strategy=ddp: a job of a sweep has one device"),
        (["trainer.num_nodes=2"], "trainer.num_nodes=2: a job of a sweep has one device"),
        (
            ["sweep=a/b"],
            "hydra.sweep.dir: ValueError raised while resolving interpolation: sweep=a/b must be the name",
        ),
        (["hydra.sweep.subdir=all"], "hydra.sweep.subdir gives two jobs the folder all"),
        (["hydra/launcher=joblin"], "no option 'joblin' in the group hydra/launcher"),
    ],
)
def test_what_a_sweep_cannot_have_ends_it_before_its_first_job(command, tmp_path, overrides, message):
    status, _, err = command("-m", "experiment=smoke", "seed=0,1", *overrides)
    assert status == 1
    assert f"longspan: {message}" in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("logs/sweeps/*/*/*"))


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


PLUGINS = [
    ("hydra/launcher=joblib", "hydra_plugins.hydra_joblib_launcher", "joblib"),
    ("hydra/launcher=submitit_local", "hydra_plugins.hydra_submitit_launcher", "slurm"),
    ("hydra/launcher=ray", "hydra_plugins.hydra_ray_launcher", "ray"),
]


@pytest.mark.parametrize(("option", "module", "extra"), [*PLUGINS, ("experiment=search", "optuna", "optuna")])
def test_a_plugin_that_is_missing_is_named(command, option, module, extra):
    if installed(module):
        pytest.skip(f"{module} is installed")
    status, _, err = command("-m", option, "seed=0,1")
    assert status == 1
    assert f"pip install 'longspan[{extra}]'" in err
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory) -> dict[str, dict]:
    """What the jobs of the launchers' tests reach without a launcher."""
    schemas.register()
    reached = {}
    for pattern in ("bigbird", "dense"):
        folder = tmp_path_factory.mktemp(pattern)
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = hydra.compose(
                schemas.PRIMARY, [*TINY, *SHORT, f"sparsity={pattern}", f"output_dir={folder}"]
            )
        reached[pattern] = train(config)["metrics"]
    return reached


@pytest.mark.slow
@pytest.mark.parametrize(("option", "module", "extra"), PLUGINS, ids=[extra for *_, extra in PLUGINS])
def test_jobs_beside_each_other(command, tmp_path, monkeypatch, one_by_one, option, module, extra):
    if not installed(module):
        pytest.skip(f"the extra {extra} is not installed")
    # As on a machine with two GPUs; the jobs compute on the CPU all the same.
    monkeypatch.setattr(machine, "visible_gpus", lambda accelerator="auto": ["6", "GPU-b"])
    arguments = ["-m", *TINY, *SHORT, option, "sparsity=bigbird,dense"]
    if extra == "ray":
        # Ray gives out devices itself, and finds none here. A token would lie in the home directory.
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        arguments += ["hydra.launcher.ray.remote.num_gpus=0", "+hydra.launcher.ray.init.num_cpus=2"]
    status, out, err = command(*arguments)
    assert status == 0, err
    assert "Sweep of 2 runs" in out
    sweep = tmp_path / "logs" / "sweeps" / "it"
    for number, pattern in enumerate(one_by_one):
        folder = sweep / f"{number}_{pattern}"
        assert result(folder)["metrics"] == one_by_one[pattern]
        log = (folder / "train.log").read_text()
        assert extra == "ray" or "this job has gpu-6" in log or "this job has gpu-GPU-b" in log
    if extra == "ray":
        importlib.import_module("ray").shutdown()
    before = files(sweep / "0_bigbird")
    status, out, err = command(*arguments)
    assert status == 0, err
    assert "0 of 2 runs to train, 0 of them begun before, 2 finished" in out
    assert files(sweep / "0_bigbird") == before


def test_a_search_goes_on_with_the_trials_it_had(command, tmp_path):
    if not installed("optuna"):
        pytest.skip("the extra optuna is not installed")
    arguments = ["-m", *(one for one in TINY if not one.startswith("experiment")), "experiment=search"]
    arguments += ["trainer.max_steps=2", "sparsity=bigbird", "logger=none"]
    status, _, err = command(*arguments, "hydra.sweeper.n_trials=2")
    assert status == 0, err
    sweep = tmp_path / "logs" / "sweeps" / "it"
    before = {job: files(sweep / job) for job in ("0_bigbird", "1_bigbird")}
    rates = [result(sweep / job)["config"]["optimizer"]["lr"] for job in before]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert rates[0] != rates[1]
    status, out, err = command(*arguments, "hydra.sweeper.n_trials=3")
    assert status == 0, err
    assert {job: files(sweep / job) for job in before} == before
    losses = [result(sweep / f"{number}_bigbird")["metrics"]["val_loss"] for number in range(3)]
    found = (sweep / "optimization_results.yaml").read_text()
    assert f"best_value: {min(losses)}" in found
    assert "Sweep of 3 runs" in out
