"""The settings in a checkpoint, and what may differ in a run that goes on from it."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf

from longspan.errors import ConfigError
from longspan.training import resuming
from longspan.training.build import read_settings
from longspan.training.callbacks.budget import SecondsBudget
from longspan.training.callbacks.settings import CORPUS_KEY, SETTINGS_KEY, KeepSettings
from longspan.training.callbacks.stages import Stage
from longspan.training.callbacks.throughput import Throughput
from longspan.training.fitting import fit
from longspan.training.resuming import Checkpoint, changed_corpus, changed_settings

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")

SETTINGS = {
    "seed": 0,
    "compile": False,
    "output_dir": "here",
    "optimizer": {"_target_": "a.AdamW", "lr": 0.5, "betas": [0.5, 0.75]},
    "data": {"_target_": "a.Data", "pin_memory": False, "corpus": {"_target_": "a.Text", "files": ["a"]}},
    "trainer": {"_target_": "a.make", "max_steps": 4},
    "callbacks": {"last": {"_target_": "a.Last"}},
    "logger": {},
}

ACCOUNT = {
    "name": "text_files",
    "train": {"documents": 3, "sha256": "1a"},
    "validation": {"documents": 1, "sha256": "2b"},
    "details": {},
}


def changed(*path_and_value):
    *path, last, value = path_and_value
    settings = copy.deepcopy(SETTINGS)
    node = settings
    for key in path:
        node = node[key]
    node[last] = value
    return settings


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (changed("seed", 7), "seed: 0 before, 7 now"),
        (changed("optimizer", "lr", 0.25), "optimizer.lr: 0.5 before, 0.25 now"),
        (changed("optimizer", "betas", [0.5, 1.0]), "optimizer.betas: [0.5, 0.75] before, [0.5, 1.0] now"),
        (changed("optimizer", {"_target_": "a.Sgd", "lr": 1}), "optimizer: a.AdamW before, a.Sgd now"),
        (changed("optimizer", "eps", 1), "optimizer.eps: 'nothing' before, 1 now"),
        (
            changed("trainer", "accumulate_grad_batches", 2),
            "trainer.accumulate_grad_batches: 1 before, 2 now",
        ),
        (changed("trainer", "gradient_clip_val", None), "trainer.gradient_clip_val: 1.0 before, None now"),
        (changed("data", "corpus", "files", ["b"]), "data.corpus.files: ['a'] before, ['b'] now"),
    ],
)
def test_what_may_not_differ(now, expected):
    assert changed_settings(SETTINGS, now) == [expected]


@pytest.mark.parametrize(
    "now",
    [
        SETTINGS,
        changed("trainer", "max_steps", 9),
        changed("trainer", "precision", "bf16-mixed"),
        changed("trainer", "gradient_clip_val", 1.0),
        changed("trainer", {"_target_": "a.make_other", "max_steps": 4}),
        changed("callbacks", {}),
        changed("logger", "csv", {"_target_": "a.Csv"}),
        changed("output_dir", "there"),
        changed("compile", True),
        changed("data", "pin_memory", True),
        changed("optimizer", "betas", (0.5, 0.75)),
    ],
)
def test_what_may_differ(now):
    assert changed_settings(SETTINGS, now) == []


def test_every_checkpoint_holds_the_settings(tmp_path, make_run):
    keep = KeepSettings({"path": tmp_path, "pair": (1, 2)}, ACCOUNT)
    run = make_run(tmp_path, callbacks=[keep], max_steps=2).fit()
    for name in ("last", "best"):
        state = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert state[SETTINGS_KEY] == {"path": str(tmp_path), "pair": [1, 2]}
        assert state[CORPUS_KEY] == ACCOUNT
    assert run.trainer.global_step == 2


def read(tmp_path, state):
    path = tmp_path / "one.ckpt"
    torch.save(state, path)
    return resuming.read(str(path), tmp_path)


def test_what_is_read_of_a_checkpoint(tmp_path):
    clock = {Throughput().state_key: {"seconds": 2.5, "flops": 1, "dense_flops": 2}}
    state = {"global_step": 4, SETTINGS_KEY: SETTINGS, CORPUS_KEY: ACCOUNT, "callbacks": clock}
    path = tmp_path / "one.ckpt"
    assert read(tmp_path, state) == Checkpoint(path, 4, SETTINGS, ACCOUNT, 2.5)
    assert read(tmp_path, {"global_step": 4}) == Checkpoint(path, 4)
    assert resuming.read(None, tmp_path) is None
    with pytest.raises(ConfigError, match=r"no checkpoints/last\.ckpt in"):
        resuming.read("last", tmp_path)


def test_the_last_checkpoint_of_the_run_itself(tmp_path):
    assert resuming.read(None, tmp_path, resume=True) is None
    (tmp_path / "checkpoints").mkdir()
    torch.save({"global_step": 5}, tmp_path / "checkpoints" / "last.ckpt")
    found = resuming.read(None, tmp_path, resume=True)
    assert found == Checkpoint(tmp_path / "checkpoints" / "last.ckpt", 5, of_this_run=True)
    assert resuming.read(None, tmp_path) is None


@pytest.mark.parametrize("state", [{}, {"global_step": Stage(1, 2)}, "text"], ids=["empty", "code", "text"])
def test_a_file_that_is_no_checkpoint(tmp_path, state):
    """A class in a file would be code from elsewhere."""
    with pytest.raises(ConfigError, match=r"one\.ckpt cannot be read as the checkpoint of a run"):
        read(tmp_path, state)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    checkpoint = Checkpoint(tmp_path / "one.ckpt", 4, SETTINGS)
    resuming.check_settings(checkpoint, changed("trainer", "max_steps", 5))
    resuming.check_settings(None, SETTINGS)
    with pytest.raises(
        ConfigError, match=r"one.ckpt is of a run with other settings: seed: 0 before, 1 now\."
    ):
        resuming.check_settings(checkpoint, changed("seed", 1))


def test_a_checkpoint_that_leaves_nothing_to_train_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"4 steps behind it and trainer.max_steps=4: nothing is left"):
        resuming.check_settings(Checkpoint(tmp_path / "one.ckpt", 4, SETTINGS), SETTINGS)
    resuming.check_settings(Checkpoint(tmp_path / "one.ckpt", 4, SETTINGS, of_this_run=True), SETTINGS)


def test_a_checkpoint_that_leaves_nothing_of_a_budget_is_refused(tmp_path):
    data = SimpleNamespace(corpus_info=SimpleNamespace(to_dict=lambda: ACCOUNT))
    run = SimpleNamespace(data=data, budget=SecondsBudget(9), trainer=SimpleNamespace(max_steps=-1))
    resuming.check_parts(None, run)
    resuming.check_parts(Checkpoint(tmp_path / "one.ckpt", 4, seconds=8.5), run)
    resuming.check_parts(Checkpoint(tmp_path / "one.ckpt", 4, seconds=9.5, of_this_run=True), run)
    with pytest.raises(ConfigError, match=r"4 steps behind it, and a budget of 9 seconds leaves nothing"):
        resuming.check_parts(Checkpoint(tmp_path / "one.ckpt", 4, seconds=9.5), run)


def other_corpus(train="1a", validation="2b"):
    return {**ACCOUNT, "train": {"sha256": train}, "validation": {"sha256": validation}}


def test_which_side_of_a_corpus_has_changed():
    assert changed_corpus(ACCOUNT, ACCOUNT) == []
    assert changed_corpus(ACCOUNT, other_corpus(train="3c")) == ["train: sha256 1a before, 3c now"]
    assert changed_corpus(other_corpus(validation="3c"), ACCOUNT) == ["validation: sha256 3c before, 2b now"]
    assert changed_corpus(ACCOUNT, other_corpus(train=None)) == [], "a stream has no digest"


def test_a_checkpoint_over_another_corpus_is_refused(tmp_path):
    checkpoint = Checkpoint(tmp_path / "one.ckpt", 4, corpus=ACCOUNT)
    resuming.check_corpus(checkpoint, ACCOUNT)
    resuming.check_corpus(Checkpoint(tmp_path / "old.ckpt", 4), ACCOUNT)
    with pytest.raises(ConfigError, match=r"one.ckpt is of a run over another.*sha256 1a before, 3c now"):
        resuming.check_corpus(checkpoint, other_corpus(train="3c"))


@pytest.mark.parametrize(
    ("stop", "status"),
    [(SIGTERMException(), 143), (SystemExit(1), 130), (SystemExit(85), 85)],
    ids=["SIGTERM", "Ctrl-C", "of its own"],
)
def test_the_status_of_an_interrupted_run(stop, status):
    class Trainer:
        def fit(self, *arguments, **options):
            raise stop

    assert fit(SimpleNamespace(trainer=Trainer(), module=None, data=None), None) == status


def test_a_checkpoint_without_settings_warns(tmp_path):
    with pytest.warns(UserWarning, match="holds no settings to compare"):
        resuming.check_settings(Checkpoint(tmp_path / "one.ckpt", 3), SETTINGS)


def test_a_preset_that_misspells_a_callback():
    config = OmegaConf.create({**SETTINGS, "callbacks": {**SETTINGS["callbacks"], "lst": {"dirpath": "x"}}})
    with pytest.raises(
        ConfigError, match=r"callbacks.lst has no _target_.*present: last \(did you mean last\?"
    ):
        read_settings(config)
