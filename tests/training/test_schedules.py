"""Windows and lengths that grow over training: stage by stage, resumed, compiled, exported."""

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback
from transformers import LlamaConfig, LlamaForCausalLM

from longspan.attention import SparseSelfAttention
from longspan.config.compose import compose
from longspan.config.instantiate import instantiate
from longspan.data.objective import positions_in_documents
from longspan.errors import ConfigError
from longspan.models import sparsify
from longspan.models.layers import attention_of, self_attention_layers, sparsity_of
from longspan.sparsity import (
    DenseSparsityConfig,
    HeadMixtureSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    UnionSparsityConfig,
)
from longspan.training.callbacks.architecture import KeepArchitecture
from longspan.training.callbacks.checkpoint import LastCheckpoint
from longspan.training.callbacks.length_schedule import LengthSchedule, cut
from longspan.training.callbacks.stages import spread, stage_at, warn_of_unreached
from longspan.training.callbacks.window_schedule import WindowSchedule, takes, with_value
from longspan.training.export import export
from longspan.training.module import LongspanModule
from longspan.training.optim import AdamW
from longspan.training.resuming import changed_settings
from longspan.training.run import train
from longspan.training.trainer import make_trainer

# As long as the tests' tiny data, in blocks of one token.
LENGTH = 8
LOCAL = LocalSlidingWindowSparsityConfig(2, 1, 3, "unidirectional")
DENSE = DenseSparsityConfig(2, 1, attention="unidirectional")
WINDOW = "num_sliding_window_blocks"


class Watch(Callback):
    """Notes the window and the shape of the inputs in each step and validation; breaks the run in a step."""

    def __init__(self, fail_at=None):
        self.train, self.validate, self.inputs, self.logged, self.fail_at = {}, {}, {}, {}, fail_at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.inputs.setdefault(trainer.global_step, []).append(batch["input_ids"].clone())

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.train[trainer.global_step] = window_of(pl_module.model)
        if trainer.global_step == self.fail_at:
            raise RuntimeError("broken on purpose")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        metrics = trainer.callback_metrics
        self.logged[trainer.global_step - 1] = metrics.get(f"train/{WINDOW}"), metrics.get("train/seq_len")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validate[trainer.global_step] = window_of(pl_module.model), batch["input_ids"].shape[1]


class Objective:
    name, attention = "clm", "unidirectional"

    def loss(self, logits, labels):
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def window_of(model):
    return attention_of(self_attention_layers(model)[0]).sparsity_config.num_sliding_window_blocks


def make_llama(pattern=(LOCAL, DENSE)):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = LlamaConfig(vocab_size=11, max_position_embeddings=LENGTH, use_cache=False, **sizes, **ids)
    return sparsify(LlamaForCausalLM(config), pattern)


class Run:
    def __init__(self, directory, data, schedules, model=None, fail_at=None, **trainer):
        self.model, self.data = model or make_llama(), data
        data.seq_len = LENGTH
        self.watch = Watch(fail_at)
        self.module = LongspanModule(self.model, Objective(), AdamW(lr=1e-2), compile=False)
        self.last = str(directory / "last.ckpt")
        callbacks = [*schedules, self.watch, KeepArchitecture(), LastCheckpoint(str(directory))]
        options = {"max_steps": 8, "val_check_interval": 2, "accelerator": "cpu", "log_every_n_steps": 1}
        self.trainer = make_trainer(str(directory), callbacks, **{**options, **trainer})

    def fit(self, ckpt_path=None):
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=ckpt_path)
        return self


def windows(start=1, stop=9, steps=6, stages=3):
    return WindowSchedule(WINDOW, start, stop, steps, stages)


def lengths(start=2, steps=4):
    return LengthSchedule(start, LENGTH, steps)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(1, 12))
def test_values_are_spread_over_the_steps(values, steps):
    stages = spread(values, steps)
    gaps = len(values) - 1
    for step in range(steps + 3):
        # The last value whose share of the steps is over, rounded down to whole steps.
        begun = [n for n in range(len(values)) if n == 0 or max(1, n * steps // gaps) <= step]
        assert stage_at(stages, step).value == values[begun[-1]]
    assert all(one.value != other.value for one, other in itertools.pairwise(stages))


def test_windows_grow_at_their_steps(tmp_path, make_data):
    run = Run(tmp_path, make_data(), [windows()]).fit()
    assert run.watch.train == {0: 1, 1: 1, 2: 1, 3: 5, 4: 5, 5: 5, 6: 9, 7: 9}
    assert {step: logged for step, (logged, _) in run.watch.logged.items()} == run.watch.train
    # A validation after four steps sees what the fourth was trained with.
    assert run.watch.validate == {2: (1, 8), 4: (5, 8), 6: (5, 8), 8: (9, 8)}
    final = [with_value(LOCAL, WINDOW, 9), DENSE]
    assert sparsity_of(run.model.config) == final
    kept = torch.load(run.last, weights_only=False)["architecture"]["config"]["longspan_sparsity"]
    assert kept == [one.to_dict() for one in final]
    ids = torch.arange(LENGTH)[None]
    expected = make_llama(final).eval()
    expected.load_state_dict(run.model.state_dict())
    assert torch.equal(run.model.eval()(ids).logits, expected(ids).logits)


def test_sequences_grow_at_their_steps_and_no_token_is_lost(tmp_path, make_data):
    plain = Run(tmp_path / "plain", make_data(), []).fit()
    run = Run(tmp_path / "run", make_data(), [lengths()]).fit()
    shapes = {step: tuple(inputs[0].shape) for step, inputs in run.watch.inputs.items()}
    assert shapes == dict.fromkeys((0, 1), (8, 2)) | dict.fromkeys((2, 3), (4, 4)) | dict.fromkeys(
        (4, 5, 6, 7), (2, 8)
    )
    for step, (inputs,) in plain.watch.inputs.items():
        assert torch.equal(run.watch.inputs[step][0].reshape(inputs.shape), inputs)
    assert {step: length for step, (_, length) in run.watch.logged.items()} == {
        step: shape[1] for step, shape in shapes.items()
    }
    assert {length for _, length in run.watch.validate.values()} == {LENGTH}
    assert run.module.tokens_seen == plain.module.tokens_seen == 8 * 2 * LENGTH
    assert not torch.equal(run.model.lm_head.weight, plain.model.lm_head.weight)


def test_steps_are_those_of_the_optimizer(tmp_path, make_data):
    run = Run(tmp_path, make_data(), [windows(), lengths()], accumulate_grad_batches=2, max_steps=4).fit()
    assert run.watch.train == {0: 1, 1: 1, 2: 1, 3: 5}
    assert [[x.shape[1] for x in run.watch.inputs[step]] for step in range(4)] == [
        [2, 2],
        [2, 2],
        [4, 4],
        [4, 4],
    ]


@pytest.mark.parametrize("broken_at", [1, 2, 3, 4, 6])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, make_data, broken_at):
    whole = Run(tmp_path / "whole", make_data(), [windows(), lengths()]).fit()
    broken = Run(tmp_path / "broken", make_data(), [windows(), lengths()], fail_at=broken_at)
    with pytest.raises(RuntimeError, match="on purpose"):
        broken.fit()
    resumed = Run(tmp_path / "resumed", make_data(), [windows(), lengths()]).fit(broken.last)
    assert resumed.watch.train == {n: window for n, window in whole.watch.train.items() if n >= broken_at}
    for step, (inputs,) in resumed.watch.inputs.items():
        assert torch.equal(inputs, whole.watch.inputs[step][0])
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert resumed.trainer.callback_metrics["val/loss"] == whole.trainer.callback_metrics["val/loss"]
    assert resumed.module.tokens_seen == whole.module.tokens_seen


def test_the_same_callback_trains_again_from_the_start(tmp_path, make_data):
    plan, model = windows(), make_llama()
    first = Run(tmp_path / "first", make_data(), [plan], model).fit()
    assert Run(tmp_path / "second", make_data(), [plan], model).fit().watch.train == first.watch.train


def test_parts_of_sequences_have_positions_of_their_own():
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2, 3, 4]])
    batch = {
        "input_ids": torch.arange(16).reshape(2, 8),
        "labels": torch.arange(1, 17).reshape(2, 8),
        "document_ids": documents,
        "position_ids": torch.from_numpy(positions_in_documents(documents.numpy())),
        "num_bytes": torch.tensor([5, 6]),
    }
    cut(batch, 4)
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert torch.equal(batch["labels"], batch["input_ids"] + 1)
    assert batch["document_ids"].tolist() == [[0, 0, 0, 1], [1, 1, 1, 1], [2, 2, 2, 2], [2, 2, 3, 4]]
    by_parts = positions_in_documents(batch["document_ids"].numpy())
    assert batch["position_ids"].tolist() == by_parts.tolist()
    assert batch["num_bytes"].tolist() == [5, 6]


def test_patterns_inside_of_others_grow_too():
    heads = HeadMixtureSparsityConfig(2, 1, patterns=f"local({WINDOW}=3) dense", attention="unidirectional")
    union = UnionSparsityConfig(2, 1, patterns=(heads, LOCAL), attention="unidirectional")
    grown = with_value(union, WINDOW, 7)
    assert isinstance(grown, UnionSparsityConfig)
    first, second = grown.parts.values()
    assert isinstance(first, HeadMixtureSparsityConfig)
    assert first.children[0] == LocalSlidingWindowSparsityConfig(1, 1, 7, "unidirectional")
    assert first.children[1] == heads.children[1]
    assert second == LocalSlidingWindowSparsityConfig(2, 1, 7, "unidirectional")
    assert not takes(DENSE, WINDOW)
    assert not takes(LOCAL, "attention")
    assert not takes(DENSE, "different_layout_per_head")


def test_compiled_attention_follows():
    """Dynamo's guards see the pattern: the code of a stage is not run in the next."""
    torch._dynamo.reset()
    module, seen = SparseSelfAttention(LOCAL), []
    compiled = torch.compile(lambda q, k, v: module(q, k, v), fullgraph=True, backend="eager")
    inputs = torch.randn(3, 1, 2, LENGTH, 4)
    for stage in windows().stages:
        module.sparsity_config = with_value(LOCAL, WINDOW, stage.value)
        seen.append(compiled(*inputs))
        torch.testing.assert_close(seen[-1], module(*inputs))
    assert not torch.allclose(seen[0], seen[1])
    assert not torch.allclose(seen[1], seen[2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: windows(start=-1), "start must be a whole number of at least 0, got -1"),
        (lambda: windows(stop=1.5), "stop must be a whole number of at least 0, got 1.5"),
        (lambda: windows(steps=0), "steps must be a whole number of at least 1"),
        (lambda: windows(stages=1), "stages must be a whole number of at least 2"),
        (lambda: WindowSchedule("num_heads", 2, 4, 3), "argument='num_heads' must be one that says how many"),
        (lambda: lengths(start=0), "start must be a whole number of at least 1"),
        (lambda: lengths(start=3), "seq_len=8, start=3 and factor=2"),
        (lambda: lengths(start=16), "seq_len=8, start=16 and factor=2"),
        (lambda: LengthSchedule(2, LENGTH, 4, 1), "factor must be a whole number of at least 2"),
    ],
)
def test_schedules_that_are_none(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_schedules_that_do_not_go_with_the_model_or_the_data(tmp_path, make_data):
    with pytest.raises(ConfigError, match=r"argument='block_size' must be .* local_sliding_window, dense"):
        Run(tmp_path, make_data(), [WindowSchedule("block_size", 1, 2, 3)]).fit()
    with pytest.raises(ConfigError, match=r"seq_len=16 must be data.seq_len, 8"):
        Run(tmp_path, make_data(), [LengthSchedule(2, 16, 3)]).fit()


SCHEDULE = [
    "schedule=window_and_length",
    "schedule.length.start=32",
    "schedule.length.steps=4",
    "schedule.window.start=1",
    "schedule.window.stop=5",
    "schedule.window.stages=2",
    "schedule.window.steps=3",
    "scheduler=constant",
    "data.document_mask=true",
    'sparsity.layers="local*3 dense"',
]


def test_a_run_from_the_command_line_resumes_in_the_middle_of_a_stage(composed, tmp_path, capsys):
    whole = train(composed(*SCHEDULE, "trainer.max_steps=5", f"output_dir={tmp_path / 'whole'}"))
    printed = capsys.readouterr().out
    assert f"{WINDOW} 1 (density 0.234) from step 0, 5 (density 0.387) from step 3" in printed
    assert "sequences of 32 tokens from step 0, 64 tokens from step 2, 128 tokens from step 4" in printed
    assert "local_sliding_window, 3 layers (0–2): at last" in printed
    assert len(whole["schedules"]) == 2
    assert [one["config"].get(WINDOW) for one in whole["patterns"]] == [1, None]
    half = train(composed(*SCHEDULE, "trainer.max_steps=3", f"output_dir={tmp_path / 'half'}"))
    go_on = f"ckpt_path={half['checkpoints']['last']}"
    resumed = train(composed(*SCHEDULE, "trainer.max_steps=5", f"output_dir={tmp_path / 'on'}", go_on))
    weights = [
        torch.load(r["checkpoints"]["last"], weights_only=False)["state_dict"] for r in (whole, resumed)
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    assert whole["metrics"]["val_loss"] == resumed["metrics"]["val_loss"]
    assert whole["tokens"] == resumed["tokens"] == 5 * 2 * 128
    with pytest.raises(ConfigError, match=r"other settings: schedule.window.steps: 3 before, 2 now"):
        train(composed(*SCHEDULE, "schedule.window.steps=2", "trainer.max_steps=5", go_on))
    export(tmp_path / "on", tmp_path / "exported")
    entries = json.loads((tmp_path / "exported" / "config.json").read_text())["longspan_sparsity"]
    assert [entry.get(WINDOW) for entry in entries] == [5, 5, 5, None]


@pytest.mark.parametrize("option", ["window", "length", "window_and_length"])
def test_the_shipped_schedules_end_before_the_shipped_run(composed, option):
    config = composed(f"schedule={option}", "data.seq_len=1024")
    for schedule in instantiate(config.schedule).values():
        last = schedule.stages[-1]
        assert 0 < last.first_step < 0.8 * compose([]).trainer.max_steps
        assert last.value in (9, 1024)


def test_a_stage_that_is_never_trained_with_is_told(recwarn):
    stages = spread([3, 5, 9], 10)
    for steps in (11, -1):
        warn_of_unreached(stages, steps)
    assert not recwarn
    with pytest.warns(UserWarning, match="value 9 begins at step 10, and the run ends after 10"):
        warn_of_unreached(stages, 10)


def test_one_window_schedule_at_most(composed):
    second = "+schedule.second={_target_: longspan.training.callbacks.window_schedule.WindowSchedule, "
    second += "argument: num_random_blocks, start: 1, stop: 2, steps: 2}"
    with pytest.raises(ConfigError, match="at most one WindowSchedule"):
        train(composed("schedule=window", second))


def test_a_task_is_not_cut(tmp_path):
    small = ["experiment=smoke", "data.batch_size=1", "data.validation_sequences=1", f"output_dir={tmp_path}"]
    task = ["data=copy", "data.seq_len=512", "schedule=length", "schedule.length.start=64"]
    with pytest.raises(ConfigError, match="the sequences of the task copy cannot be cut"):
        train(compose([*task, *small, "trainer.accelerator=cpu"]))


def test_checkpoints_from_before_there_were_schedules_are_no_others():
    old = {"seed": 0, "sparsity": {"_target_": "a"}}
    new = {"seed": 0, "sparsity": {"_target_": "a", "layers": None}, "schedule": {}}
    assert changed_settings(old, new) == []
    assert changed_settings(old, {**new, "schedule": {"window": {"steps": 3}}}) != []


def test_a_budget_of_flops_does_not_go_with_windows_that_grow(composed):
    with pytest.raises(ConfigError, match="budget=flops does not go together with a schedule of windows"):
        train(composed(*SCHEDULE, "budget=flops", "budget.flops=1e12"))
