import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from longspan.training.loggers import CsvLogger, WandbRun, close_loggers, log_configuration


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_is_on_the_disk_at_each_log(tmp_path):
    logger = CsvLogger(str(tmp_path))
    logger.log_metrics({"a": 1.0}, step=0)
    assert [row["a"] for row in rows(logger.metrics_file)] == ["1.0"]
    logger.log_metrics({"b": 2.0}, step=1)
    assert rows(tmp_path / "metrics.csv") == [
        {"a": "1.0", "b": "", "step": "0"},
        {"a": "", "b": "2.0", "step": "1"},
    ]


def test_csv_goes_on_below_what_is_there(tmp_path):
    CsvLogger(str(tmp_path)).log_metrics({"a": 1.0}, step=0)
    CsvLogger(str(tmp_path)).log_metrics({"c": 3.0}, step=1)
    assert [(row["step"], row["a"], row["c"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("0", "1.0", ""),
        ("1", "", "3.0"),
    ]


def test_csv_forgets_what_was_logged_behind_a_checkpoint(tmp_path):
    logger = CsvLogger(str(tmp_path))
    logger.keep_until(3)
    assert not (tmp_path / "metrics.csv").exists()
    for step in range(5):
        logger.log_metrics({"a": float(step)}, step=step)
    logger.log_metrics({"b": 0.5}, step=2)
    with open(logger.metrics_file, "a") as file:
        file.write("1.0,")
    CsvLogger(str(tmp_path)).keep_until(3)
    assert [(row["step"], row["a"], row["b"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("0", "0.0", ""),
        ("1", "1.0", ""),
        ("2", "2.0", ""),
        ("2", "", "0.5"),
    ]


def test_configuration_is_logged_nested(tmp_path):
    configuration = {"trainer": {"max_steps": 3}, "corpus": {"train": {"sha256": "ab", "bytes": 7}}}
    logger = CsvLogger(str(tmp_path))
    log_configuration([logger], configuration)
    assert yaml.safe_load((tmp_path / "hparams.yaml").read_text()) == configuration


def test_a_run_that_breaks_leaves_its_metrics(tmp_path, make_run):
    run = make_run(tmp_path, loggers=[CsvLogger(str(tmp_path))])
    run.model.fail_at = 4
    with pytest.raises(RuntimeError, match="on purpose"):
        run.fit()
    assert len([row for row in rows(tmp_path / "metrics.csv") if row["train/loss"]]) == 3


SCRIPT = """
import importlib.util, sys
from pathlib import Path
import torch
spec = importlib.util.spec_from_file_location("tiny", {conftest!r})
tiny = importlib.util.module_from_spec(spec); spec.loader.exec_module(tiny)
from longspan.training.loggers import CsvLogger, WandbRun, close_loggers, log_configuration
for name in ("one", "two"):
    run_dir = Path("runs") / name
    loggers = [CsvLogger(str(run_dir)), WandbRun(str(run_dir), name=name, group="pair", tags=["x"])]
    log_configuration(loggers, {{"sparsity": {{"block": 16}}}})
    tiny.Run(run_dir, loggers=loggers, max_steps=3).fit()
    close_loggers(loggers)
"""


@pytest.mark.slow
def test_everything_lies_in_the_run_directory(tmp_path):
    """Two runs in one process, without account or terminal: nothing else is written, nothing printed."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "XDG"))}
    environment = {**keep, "HOME": str(home), "TMPDIR": str(temporary), "NETRC": str(home / "none")}
    # No network: a connection would go through a proxy that does not answer.
    environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    script = SCRIPT.format(conftest=str(Path(__file__).with_name("conftest.py")))
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "wandb" not in done.stdout + done.stderr
    assert [path.name for path in work.iterdir()] == ["runs"]
    # Lightning's metrics import matplotlib, which makes a cache of fonts for the user once.
    written = [path for path in home.rglob("*") if path.is_file()]
    assert [path for path in written if "matplotlib" not in path.parts] == []
    assert [path for path in temporary.rglob("*") if path.is_file()] == []
    for name in ("one", "two"):
        run_dir = work / "runs" / name
        assert {path.name for path in run_dir.iterdir()} == {
            "checkpoints",
            "hparams.yaml",
            "metrics.csv",
            "wandb",
        }
        runs = list((run_dir / "wandb").glob("offline-run-*"))
        assert len(runs) == 1
        record = next(runs[0].glob("*.wandb")).read_bytes()
        # The run's own name, the configuration nested as it is, and the metrics.
        for text in (name, "pair", "sparsity", "block", "val/bits_per_byte"):
            assert text.encode() in record


def test_wandb_leaves_the_environment_alone(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    opened = []
    import wandb

    class Opened:
        id = "abc"

        def finish(self, exit_code):
            opened.append(exit_code)

    def init(**options):
        opened.append({name: os.environ[name] for name in os.environ if name.startswith("WANDB")})
        assert options["dir"] == str(tmp_path)
        assert options["mode"] == "offline"
        return Opened()

    monkeypatch.setattr(wandb, "init", init)
    before = dict(os.environ)
    logger = WandbRun(str(tmp_path))
    assert logger.experiment is logger.experiment
    assert dict(os.environ) == before
    assert all(value.startswith(str(tmp_path)) for name, value in opened[0].items() if name.endswith("_DIR"))
    close_loggers([logger])
    logger.finalize("failed")
    assert json.dumps(opened[1:]) == "[0]"
