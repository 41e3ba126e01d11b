"""Rotary positions that are stretched in stages while a model trains."""

import copy

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch import Callback
from transformers import LlamaConfig, LlamaForCausalLM

from longspan.config import schemas
from longspan.config.folders import config_dir
from longspan.config.instantiate import instantiate
from longspan.errors import ConfigError
from longspan.positions.rotary import extend_rotary, rotary_factor, rotary_positions
from longspan.training.callbacks.checkpoint import LastCheckpoint
from longspan.training.callbacks.rotary_schedule import RotarySchedule
from longspan.training.module import LongspanModule
from longspan.training.optim import AdamW
from longspan.training.trainer import make_trainer

# Each sequence of the tests' data is as long as the model was made for: the stages stretch its positions.
LENGTH = 8


class Watch(Callback):
    """Notes the factor in each step and each validation; breaks the run in a step."""

    def __init__(self, fail_at=None):
        self.train, self.validate, self.logged, self.fail_at = {}, {}, {}, fail_at

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        # Inside the step, where the loss has been computed.
        step = trainer.global_step
        self.train[step] = rotary_factor(pl_module.model)
        if step == self.fail_at:
            raise RuntimeError("broken on purpose")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.logged[trainer.global_step - 1] = trainer.callback_metrics.get("train/rotary_factor")

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.validate[trainer.global_step] = rotary_factor(pl_module.model)


class Objective:
    name, attention = "clm", "unidirectional"

    def loss(self, logits, labels):
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def make_llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = LlamaConfig(vocab_size=11, max_position_embeddings=LENGTH, use_cache=False, **sizes, **ids)
    return LlamaForCausalLM(config)


class Run:
    def __init__(self, directory, data, schedule, model=None, fail_at=None, **trainer):
        self.model = model or make_llama()
        self.watch = Watch(fail_at)
        self.module = LongspanModule(self.model, Objective(), AdamW(lr=1e-2), compile=False)
        self.last = str(directory / "last.ckpt")
        callbacks = [*([schedule] if schedule else []), self.watch, LastCheckpoint(str(directory))]
        options = {"max_steps": 8, "val_check_interval": 2, "accelerator": "cpu", "log_every_n_steps": 1}
        self.trainer = make_trainer(str(directory), callbacks, **{**options, **trainer})
        self.data = data

    def fit(self, ckpt_path=None):
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=ckpt_path)
        return self


def schedule(method="yarn", steps=(2, 5), max_positions=(2 * LENGTH, 4 * LENGTH), **options):
    return RotarySchedule(method, steps, max_positions, **options)


@pytest.mark.parametrize("method", ["linear", "ntk", "dynamic", "yarn"])
def test_stages_begin_at_their_steps(tmp_path, make_data, method):
    run = Run(tmp_path, make_data(), schedule(method)).fit()
    assert run.watch.train == {0: 1, 1: 1, 2: 2, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4}
    assert run.watch.logged == run.watch.train
    # A validation after two steps sees what those two were trained with.
    assert run.watch.validate == {2: 1, 4: 2, 6: 4, 8: 4}
    at_once = extend_rotary(make_llama(), 4 * LENGTH, method)
    assert torch.equal(run.model.model.rotary_emb.inv_freq, at_once.model.rotary_emb.inv_freq)
    assert run.model.config.rope_parameters == pytest.approx(at_once.config.rope_parameters)


def test_steps_are_those_of_the_optimizer(tmp_path, make_data):
    run = Run(tmp_path, make_data(), schedule(), accumulate_grad_batches=3, max_steps=6).fit()
    assert run.watch.train == {0: 1, 1: 1, 2: 2, 3: 2, 4: 2, 5: 4}


@pytest.mark.parametrize("broken_at", [1, 2, 4, 5, 6])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, make_data, broken_at):
    whole = Run(tmp_path / "whole", make_data(), schedule()).fit()
    broken = Run(tmp_path / "broken", make_data(), schedule(), fail_at=broken_at)
    with pytest.raises(RuntimeError, match="on purpose"):
        broken.fit()
    resumed = Run(tmp_path / "resumed", make_data(), schedule()).fit(broken.last)
    assert resumed.watch.train == {
        step: factor for step, factor in whole.watch.train.items() if step >= broken_at
    }
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    metrics = [run.trainer.callback_metrics["val/loss"] for run in (whole, resumed)]
    assert metrics[0] == metrics[1]


def test_a_finished_run_is_validated_with_its_last_stage(tmp_path, make_data):
    # A stage that begins where the run ends is never trained with, and so never validated with either.
    plan = {"steps": (2, 8), "max_positions": (2 * LENGTH, 4 * LENGTH)}
    done = Run(tmp_path / "done", make_data(), schedule(**plan)).fit()
    again = Run(tmp_path / "again", make_data(), schedule(**plan)).fit(done.last)
    assert again.watch.train == {}
    again.trainer.validate(again.module, datamodule=again.data, verbose=False)
    assert again.watch.validate == {8: 2}
    assert again.trainer.callback_metrics["val/loss"] == done.trainer.callback_metrics["val/loss"]


def test_the_positions_matter_to_training(tmp_path, make_data):
    runs = [Run(tmp_path / str(i), make_data(), plan).fit() for i, plan in enumerate([None, schedule()])]
    weights = [run.model.state_dict()["model.layers.0.self_attn.q_proj.weight"] for run in runs]
    assert not torch.equal(*weights)


def test_the_same_callback_trains_again_from_the_start(tmp_path, make_data):
    plan, model = schedule(), make_llama()
    first = Run(tmp_path / "first", make_data(), plan, model).fit()
    second = Run(tmp_path / "second", make_data(), plan, model).fit()
    assert second.watch.train == first.watch.train


def test_longrope_with_factors_for_each_stage(tmp_path, make_data):
    factors = [{"long_factor": [1.0 * by] * 4} for by in (2, 3)]
    shared = {"short_factor": [1.5] * 4}
    run = Run(tmp_path, make_data(), schedule("longrope", options=shared, stage_options=factors)).fit()
    assert run.model.config.rope_parameters["short_factor"] == [1.5] * 4
    assert run.model.config.rope_parameters["long_factor"] == [3.0] * 4
    assert run.watch.train[2] == 2


def test_a_model_that_is_extended_already_goes_on(tmp_path, make_data):
    model = extend_rotary(make_llama(), 2 * LENGTH, "yarn", beta_fast=8)
    run = Run(tmp_path, make_data(), schedule(steps=[3], max_positions=[8 * LENGTH]), model).fit()
    assert run.watch.train == {0: 2, 1: 2, 2: 2, 3: 8, 4: 8, 5: 8, 6: 8, 7: 8}
    assert model.config.rope_parameters["beta_fast"] == 8


def test_a_stage_that_the_model_cannot_have_ends_the_run_before_it_begins(tmp_path, make_data):
    run = Run(tmp_path, make_data(), schedule(max_positions=(4, 32)))
    with pytest.raises(ConfigError, match=r"RotarySchedule: max_positions \(4\) must be at least the 8"):
        run.fit()
    assert run.watch.train == {}
    late = schedule("longrope", options={"short_factor": [1.0] * 4, "long_factor": [1.0] * 5})
    with pytest.raises(ConfigError, match="RotarySchedule: long_factor must have 4 numbers"):
        Run(tmp_path, make_data(), late).fit()


def test_resuming_with_another_schedule_or_none_is_said(tmp_path, make_data):
    first = Run(tmp_path / "first", make_data(), schedule(), max_steps=3).fit()
    with pytest.warns(UserWarning, match=r"another RotarySchedule: steps: \[2, 5\] before, \[2, 6\] now"):
        Run(tmp_path / "other", make_data(), schedule(steps=(2, 6)), max_steps=4).fit(first.last)
    with pytest.warns(UserWarning, match="add the following callbacks.*RotarySchedule"):
        Run(tmp_path / "none", make_data(), None, max_steps=4).fit(first.last)


def test_a_compiled_model_follows():
    """Dynamo's guards see the new frequencies and their scale: the code of a stage is not run in the next."""
    model = make_llama().eval()
    plain = copy.deepcopy(model)
    model.compile(backend="eager")
    ids = torch.arange(LENGTH)[None]
    for length in (LENGTH, 2 * LENGTH, 4 * LENGTH):
        for each in (model, plain):
            extend_rotary(each, length, "yarn")
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert rotary_positions(model) == 4 * LENGTH


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "pi"}, "method must be one of linear"),
        ({"steps": []}, "steps must be ascending whole numbers from 0 on"),
        ({"steps": [3, 3]}, "steps must be ascending"),
        ({"steps": [-1, 3]}, "steps must be ascending whole numbers from 0 on"),
        ({"steps": [1.5, 3]}, "steps must be ascending whole numbers"),
        ({"max_positions": [32, 16]}, "max_positions must be ascending whole numbers from 1 on"),
        ({"max_positions": [16]}, "same number of stages, got 2 and 1"),
        ({"options": {"beta": 1}}, "'yarn' has no option beta"),
        ({"stage_options": [{}]}, "stage_options must be one mapping for each of the 2 stages, got 1"),
        ({"stage_options": [{}, {"beta": 1}]}, "'yarn' has no option beta"),
    ],
)
def test_a_schedule_that_is_none(arguments, message):
    given = {"method": "yarn", "steps": [2, 5], "max_positions": [16, 32], **arguments}
    with pytest.raises(ValueError, match=message):
        RotarySchedule(**given)


def test_the_stage_of_a_step():
    assert [schedule().stage(step) for step in (0, 1, 2, 4, 5, 100)] == [None, None, 0, 0, 1, 1]


def test_from_the_shipped_configuration(tmp_path):
    schemas.register()
    GlobalHydra.instance().clear()
    key = "callbacks.rotary_schedule"
    given = [f"{key}.steps=[1,2]", f"{key}.max_positions=[128,256]", f"+{key}.options.beta_fast=8"]
    stages = f"{key}.stage_options=[{{beta_slow: 2}},{{beta_fast: 16}}]"
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        overrides = ["callbacks=rotary_schedule", *given, stages, f"output_dir={tmp_path}"]
        made = instantiate(hydra.compose(schemas.PRIMARY, overrides=overrides).callbacks)
    assert list(made) == ["best", "last", "throughput", "evaluation", "progress", "rotary_schedule"]
    assert made["rotary_schedule"].max_positions == [128, 256]
    assert made["rotary_schedule"].options == [{"beta_fast": 8.0, "beta_slow": 2.0}, {"beta_fast": 16.0}]
