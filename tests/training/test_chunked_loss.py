import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from longspan.data import CausalLanguageModeling, MaskedLanguageModeling
from longspan.models import build_model
from longspan.training.chunked_loss import chunk_loss_sum, chunked_loss, scored_positions
from longspan.training.module import LongspanModule
from longspan.training.optim import AdamW
from longspan.training.trainer import make_trainer

OBJECTIVES = {"mlm": MaskedLanguageModeling(), "clm": CausalLanguageModeling()}


def labels_of(shape, share, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(11, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) >= share] = -100
    return labels


def gradients(loss, tensors):
    return torch.autograd.grad(loss * 3, tensors)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    chunk=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_loss_and_gradients_are_those_of_all_logits(batch, length, share, chunk, seed):
    torch.manual_seed(seed)
    # A large eps: four features may be nearly equal, and then their norm multiplies rounding by hundreds.
    head = nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.LayerNorm(4, eps=0.1), nn.Linear(4, 11))
    hidden = torch.randn(batch, length, 5, requires_grad=True)
    labels = labels_of((batch, length), share, seed)
    wanted = OBJECTIVES["mlm"].loss(head(hidden), labels)
    found = chunked_loss(head, hidden, labels, scored_positions(labels), chunk)
    torch.testing.assert_close(found, wanted)
    tensors = [hidden, *head.parameters()]
    for left, right in zip(gradients(found, tensors), gradients(wanted, tensors), strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            chunked_loss(head, hidden, labels, scored_positions(labels), chunk), wanted
        )


def test_logits_exist_for_one_chunk_of_scored_positions():
    seen = []

    def watch(head, hidden, targets):
        seen.append(len(hidden))
        return chunk_loss_sum(head, hidden, targets)

    labels = torch.full((2, 50), -100)
    labels.view(-1)[torch.tensor([3, 4, 40, 41, 42, 90, 99])] = 1
    hidden = torch.randn(2, 50, 5, requires_grad=True)
    head = nn.Linear(5, 11)
    chunked_loss(head, hidden, labels, scored_positions(labels), 3, watch).backward()
    assert seen == [3, 3, 1]
    assert hidden.grad is not None
    assert hidden.grad.flatten(0, 1).any(-1).nonzero()[:, 0].tolist() == [3, 4, 40, 41, 42, 90, 99]


def test_frozen_heads_and_inputs():
    head = nn.Linear(5, 11).requires_grad_(False)
    hidden = torch.randn(1, 4, 5, requires_grad=True)
    labels = torch.tensor([[1, -100, 3, 4]])
    positions = scored_positions(labels)
    chunked_loss(head, hidden, labels, positions, 2).backward()
    (wanted,) = torch.autograd.grad(OBJECTIVES["clm"].loss(head(hidden), labels), hidden)
    torch.testing.assert_close(hidden.grad, wanted)
    head.requires_grad_(True)
    chunked_loss(head, hidden.detach(), labels, positions, 2).backward()
    assert head.weight.grad.any()


PAIRS = [("bert", "mlm"), ("roberta", "mlm"), ("modernbert", "mlm"), ("gpt2", "clm"), ("llama", "clm")]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("architecture", "objective"), PAIRS)
def test_a_model_has_the_same_loss_and_gradients(architecture, objective, autocast):
    torch.manual_seed(0)
    model = build_model(architecture, objective, 11, 12, 16, 2, 2, pad_token_id=0)
    ids = torch.randint(11, (2, 12))
    batch = {"input_ids": ids, "labels": labels_of((2, 12), 0.4, 1)}
    found = []
    for chunk in (None, 4):
        module = LongspanModule(model, OBJECTIVES[objective], AdamW(), loss_chunk=chunk)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = module.loss(batch)
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)])
    tolerance = 2e-2 if autocast else 1e-5
    for left, right in zip(*found, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            torch.testing.assert_close(left, right, atol=tolerance, rtol=tolerance)


class Text(pl.LightningDataModule):
    """A few batches of a masked objective, without a corpus."""

    def train_dataloader(self):
        return DataLoader(
            [
                {
                    "input_ids": torch.randint(11, (2, 12), generator=torch.Generator().manual_seed(seed)),
                    "labels": labels_of((2, 12), 0.4, seed),
                    "num_bytes": torch.ones(2),
                }
                for seed in range(6)
            ],
            batch_size=None,
        )

    val_dataloader = train_dataloader


def test_a_run_ends_where_it_ends_without_chunks(tmp_path):
    ends = []
    for chunk in (None, 3):
        torch.manual_seed(3)
        model = build_model("bert", "mlm", 11, 12, 16, 1, 2, pad_token_id=0)
        module = LongspanModule(model, OBJECTIVES["mlm"], AdamW(lr=1e-2), loss_chunk=chunk)
        trainer = make_trainer(str(tmp_path), max_steps=6, val_check_interval=6, accelerator="cpu")
        trainer.fit(module, datamodule=Text())
        ends.append((float(trainer.callback_metrics["val/loss"]), set(module.state_dict())))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-4)
    assert ends[0][1] == ends[1][1]


def test_compile_takes_the_backbone_and_the_chunk(monkeypatch):
    model = build_model("bert", "mlm", 11, 12, 16, 1, 2, pad_token_id=0)
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: compiled.append(function) or function)
    LongspanModule(model, OBJECTIVES["mlm"], AdamW(), compile=True, loss_chunk=4).configure_model()
    assert compiled == [model.bert, chunk_loss_sum]


def test_what_is_refused(make_model):
    model = build_model("bert", "mlm", 11, 12, 16, 1, 2, pad_token_id=0)
    with pytest.raises(ValueError, match="loss_chunk must be at least 1, or None for no chunks, got 0"):
        LongspanModule(model, OBJECTIVES["mlm"], AdamW(), loss_chunk=0)
    with pytest.raises(ValueError, match="head of TinyModel is not known"):
        LongspanModule(make_model(), OBJECTIVES["mlm"], AdamW(), loss_chunk=4)
