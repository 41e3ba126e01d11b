import copy
import csv
import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from longspan.data import MaskedLanguageModeling
from longspan.models import build_model
from longspan.training.module import LongspanModule, validation_metrics
from longspan.training.optim import AdamW, Constant


class Batches(pl.LightningDataModule):
    """Validation batches with unequal numbers of scored tokens and bytes."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)


def batch(scored, num_bytes, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(11, (2, 8), generator=generator)
    labels = torch.full((2, 8), -100)
    labels.view(-1)[:scored] = ids.view(-1)[:scored]
    return {"input_ids": ids, "labels": labels, "num_bytes": torch.tensor(num_bytes)}


def evaluate(run, batches):
    run.trainer.validate(run.module, datamodule=Batches(batches), verbose=False)
    return {key: float(value) for key, value in run.trainer.callback_metrics.items()}


def test_validation_weighs_by_tokens_and_bytes(tmp_path, make_run):
    run = make_run(tmp_path, checkpoints=False)
    # The third scores nothing: it must neither count nor make the sum not a number.
    batches = [batch(1, [5, 2], 0), batch(16, [3, 10], 1), batch(0, [0, 0], 2), batch(7, [1, 1], 3)]
    metrics = evaluate(run, batches)
    run.model.eval().requires_grad_(False)
    nats = sum(
        float(
            nn.functional.cross_entropy(
                run.model(item["input_ids"]).logits.flatten(0, 1), item["labels"].flatten(), reduction="sum"
            )
        )
        for item in batches
    )
    assert metrics["val/loss"] == pytest.approx(nats / 24, rel=1e-5)
    assert metrics["val/perplexity"] == pytest.approx(math.exp(nats / 24), rel=1e-5)
    assert metrics["val/bits_per_byte"] == pytest.approx(nats / math.log(2) / 22, rel=1e-5)


def test_without_bytes_there_are_no_bits_per_byte(tmp_path, make_run):
    batches = [batch(4, 4, 0), batch(4, 4, 1)]
    del batches[1]["num_bytes"]
    metrics = evaluate(make_run(tmp_path, checkpoints=False), batches)
    assert "val/loss" in metrics
    assert "val/bits_per_byte" not in metrics


def test_nothing_scored_is_an_error(tmp_path, make_run):
    with pytest.raises(ValueError, match="no token of the validation set is scored"):
        evaluate(make_run(tmp_path, checkpoints=False), [batch(0, 0, 0)])


def test_validation_metrics_of_a_uniform_model():
    metrics = validation_metrics(nats=100 * math.log(256), tokens=100, num_bytes=100)
    assert metrics == pytest.approx({"loss": math.log(256), "perplexity": 256, "bits_per_byte": 8})


def test_optional_inputs_reach_the_model(make_run, tmp_path):
    received = []

    class Model(nn.Module):
        def forward(self, **inputs):
            received.append(set(inputs))
            return type("Output", (), {"logits": torch.zeros(1)})

    module = LongspanModule(Model(), make_run(tmp_path).module.objective, AdamW())
    ids = torch.zeros(1, 2)
    module({"input_ids": ids, "labels": ids, "num_bytes": ids})
    module({"input_ids": ids, "position_ids": ids, "document_ids": ids, "labels": ids})
    assert received == [{"input_ids"}, {"input_ids", "position_ids", "document_ids"}]


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_positions_that_restart_begin_at_the_models_first_row(architecture):
    # RoBERTa's rows up to pad_token_id are no positions; given no position ids, it skips them by itself.
    model = build_model(architecture, "mlm", 16, 8, 8, 1, 2, pad_token_id=1).eval()
    module = LongspanModule(model, MaskedLanguageModeling(), AdamW()).eval()
    ids = torch.arange(2, 10)[None]
    given = module({"input_ids": ids, "position_ids": torch.arange(8)[None]})
    torch.testing.assert_close(given, module({"input_ids": ids}))


def test_two_runs_are_equal(tmp_path, make_run, same_end):
    same_end(make_run(tmp_path / "one").fit(), make_run(tmp_path / "two").fit())


def test_it_learns(tmp_path, make_run):
    run = make_run(tmp_path, val_check_interval=1000, max_steps=40)
    run.module.optimizer_factory = AdamW(lr=5e-2)
    # A task that can be learned: the target is the input itself.
    items = [{**item, "labels": item["input_ids"]} for item in (batch(16, 16, seed) for seed in range(20))]
    before = evaluate(run, items)["val/loss"]
    run.trainer.fit(run.module, datamodule=Batches(items))
    assert run.val_loss < before / 2


def test_what_is_logged(tmp_path, make_run):
    from longspan.training.loggers import CsvLogger

    make_run(tmp_path, loggers=[CsvLogger(str(tmp_path))], max_steps=4, val_check_interval=2).fit()
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    train = [row for row in rows if row["train/loss"]]
    assert [int(float(row["train/tokens"])) for row in train] == [16, 32, 48, 64]
    assert all(float(row["lr"]) > 0 for row in train)
    validation = [row for row in rows if row["val/loss"]]
    assert [int(row["step"]) for row in validation] == [1, 3]
    for row in validation:
        assert float(row["val/perplexity"]) == pytest.approx(math.exp(float(row["val/loss"])), rel=1e-4)
        # One byte a token.
        bits = float(row["val/loss"]) / math.log(2)
        assert float(row["val/bits_per_byte"]) == pytest.approx(bits, rel=1e-4)


def test_compile_is_in_place(tmp_path, make_run, monkeypatch):
    run = make_run(tmp_path)
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    module = LongspanModule(run.model, run.module.objective, AdamW(), Constant(), compile=True)
    keys = set(module.state_dict())
    run.trainer.fit(module, datamodule=run.data)
    assert compiled == [run.model]
    assert set(module.state_dict()) == keys


def test_a_model_in_evaluation_mode_is_trained_in_training_mode(make_run, tmp_path):
    run = make_run(tmp_path)
    model = copy.deepcopy(run.model).eval()
    assert LongspanModule(model, run.module.objective, AdamW()).model.dropout.training


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_clipped(tmp_path, make_run, precision, fused):
    norms = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            norms.append(nn.utils.get_total_norm([p.grad for p in pl_module.parameters()]))

    # Lightning zeroes the gradients before the next backward, so they can be read after a step.
    run = make_run(tmp_path, callbacks=[Watch()], max_steps=3, precision=precision, gradient_clip_val=1e-3)
    run.module.optimizer_factory = AdamW(fused=fused)
    run.fit()
    assert norms == pytest.approx([1e-3] * 3, rel=1e-2)
