"""An objective, a dataset, a model and a metric of the user: the guide as a reader follows it."""

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from longspan import custom, user_folders
from longspan.config.instantiate import locate
from longspan.errors import ConfigError

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "your-own-parts.md").read_text()
FILE = re.compile(r"`(mine/[\w/.]+)`(?:(?!```).)*?:\n\n```\w+\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
FILES = dict(FILE.findall(GUIDE))
RUNS = re.findall(r"^    python train.py (.*)$", GUIDE, flags=re.MULTILINE)
QUICK = ["experiment=smoke", "data.seq_len=128", "trainer.max_steps=4", "trainer.val_check_interval=2"]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """The folder in which a reader works, with the files; their modules are forgotten afterwards."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(user_folders.VARIABLE, "")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("longspan.custom.")]:
        del sys.modules[name]
        vars(custom).pop(name.removeprefix("longspan.custom.").partition(".")[0], None)


def test_each_part_is_two_files():
    parts = {"objective/spans", "data/squares", "model/qwen", "callbacks/sure"}
    assert sorted(FILES) == sorted(f"mine/{part}.{end}" for part in parts for end in ("py", "yaml"))
    assert len(RUNS) == 2


def test_an_objective_a_dataset_and_a_metric_train(reader, command):
    status, out, err = command(*shlex.split(RUNS[0]), *QUICK)
    assert status == 0, err
    assert "spans BertForMaskedLM" in out or "spans bert" in out
    result = json.loads((reader / "runs" / "spans" / "result.json").read_text())
    assert (result["objective"], result["corpus"]["name"]) == ("spans", "squares")
    # The direction of the pattern, the model and its head follow the objective.
    assert result["patterns"][0]["config"]["attention"] == "bidirectional"
    assert result["model"]["name"] == "BertForMaskedLM"
    assert result["metrics"]["val_loss"] > 0
    with (reader / "runs" / "spans" / "metrics.csv").open() as file:
        sure = [row["val/sure"] for row in csv.DictReader(file) if row["val/loss"]]
    assert len(sure) == 2
    assert all(0 <= float(value) <= 1 for value in sure)


def test_it_resumes_and_another_objective_is_refused(reader, command):
    run = shlex.split(RUNS[0])
    assert command(*run, *QUICK)[0] == 0
    longer = [*QUICK, "trainer.max_steps=6", "ckpt_path=last"]
    status, out, err = command(*run, *longer)
    assert status == 0, err
    assert "finished after 6 steps" in out
    status, _, err = command(*run, *longer, "objective=mlm", "trainer.max_steps=8")
    assert status == 1
    assert "objective: longspan.custom.objective.spans.SpanMasking before, longspan.data.Masked" in err


def test_a_model_trains(reader, command):
    status, _, err = command(*shlex.split(RUNS[1]), *QUICK)
    assert status == 0, err
    result = json.loads((reader / "runs" / "qwen" / "result.json").read_text())
    assert result["model"]["name"] == "Qwen2ForCausalLM"
    assert result["cost"]["flops"] > 0


def test_refusals(reader, command):
    spans, qwen = (shlex.split(run) for run in RUNS)
    status, _, err = command(*qwen, *QUICK, "objective=spans", "sparsity.attention=bidirectional")
    assert (status, "model: qwen is causal only, and the objective spans is not" in err) == (1, True)
    status, _, err = command(*spans, *QUICK, "objective.lenght=3")
    assert (status, "unknown key 'objective.lenght'; allowed: share, length, attention" in err) == (1, True)
    status, _, err = command(*qwen, *QUICK, "model.vocab_size=3")
    assert (status, "unknown key 'model.vocab_size'" in err) == (1, True)


def test_targets_outside_of_the_folders(reader, monkeypatch):
    target = "longspan.custom.objective.spans.SpanMasking"
    with pytest.raises(ConfigError, match=r"there is no folder objective .*\(now: none\)"):
        locate(target)
    monkeypatch.setenv(user_folders.VARIABLE, "mine")
    assert locate(target).name == "spans"
    (reader / "mine" / "objective" / "loose.py").write_text("from os import system\n")
    with pytest.raises(ConfigError, match=r"it comes from (posix|nt|os); allowed are"):
        locate("longspan.custom.objective.loose.system")
    with pytest.raises(ConfigError, match=r"_target_=.*has no attribute 'absent'"):
        locate("longspan.custom.objective.absent.Absent")
