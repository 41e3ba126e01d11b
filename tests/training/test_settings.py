"""The settings in a checkpoint, and what may differ in a run that goes on from it."""

import copy

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf

from longspan.errors import ConfigError
from longspan.training.callbacks.settings import (
    CORPUS_KEY,
    KEY,
    KeepSettings,
    changed_corpus,
    changed_settings,
)
from longspan.training.run import check, check_corpus, find_checkpoint, fit

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
        assert state[KEY] == {"path": str(tmp_path), "pair": [1, 2]}
        assert state[CORPUS_KEY] == ACCOUNT
    assert run.trainer.global_step == 2


def find(tmp_path, state, now):
    path = tmp_path / "one.ckpt"
    torch.save(state, path)
    config = OmegaConf.create({"ckpt_path": str(path), "trainer": {"max_steps": 5}})
    return find_checkpoint(config, now, tmp_path, None) == path


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    state = {"global_step": 4, KEY: SETTINGS}
    assert find(tmp_path, state, changed("trainer", "max_steps", 5))
    with pytest.raises(
        ConfigError, match=r"one.ckpt is of a run with other settings: seed: 0 before, 1 now\."
    ):
        find(tmp_path, state, changed("seed", 1))


def other_corpus(train="1a", validation="2b"):
    return {**ACCOUNT, "train": {"sha256": train}, "validation": {"sha256": validation}}


def test_which_side_of_a_corpus_has_changed():
    assert changed_corpus(ACCOUNT, ACCOUNT) == []
    assert changed_corpus(ACCOUNT, other_corpus(train="3c")) == ["train: sha256 1a before, 3c now"]
    assert changed_corpus(other_corpus(validation="3c"), ACCOUNT) == ["validation: sha256 3c before, 2b now"]
    assert changed_corpus(ACCOUNT, other_corpus(train=None)) == [], "a stream has no digest"


def test_a_checkpoint_over_another_corpus_is_refused(tmp_path):
    torch.save({CORPUS_KEY: ACCOUNT}, tmp_path / "one.ckpt")
    torch.save({}, tmp_path / "old.ckpt")
    check_corpus(tmp_path / "one.ckpt", ACCOUNT)
    check_corpus(tmp_path / "old.ckpt", ACCOUNT)
    check_corpus(None, ACCOUNT)
    with pytest.raises(ConfigError, match=r"one.ckpt is of a run over another.*sha256 1a before, 3c now"):
        check_corpus(tmp_path / "one.ckpt", other_corpus(train="3c"))


@pytest.mark.parametrize(
    ("stop", "status"),
    [(SIGTERMException(), 143), (SystemExit(1), 130), (SystemExit(85), 85)],
    ids=["SIGTERM", "Ctrl-C", "of its own"],
)
def test_the_status_of_an_interrupted_run(stop, status):
    class Trainer:
        def fit(self, *arguments, **options):
            raise stop

    assert fit(Trainer(), None, None, None) == status


def test_a_checkpoint_without_settings_warns(tmp_path):
    with pytest.warns(UserWarning, match="holds no settings to compare"):
        assert find(tmp_path, {"global_step": 4}, SETTINGS)


def test_a_preset_that_misspells_a_callback():
    config = OmegaConf.create({**SETTINGS, "callbacks": {**SETTINGS["callbacks"], "lst": {"dirpath": "x"}}})
    with pytest.raises(
        ConfigError, match=r"callbacks.lst has no _target_.*present: last \(did you mean last\?"
    ):
        check(config)
