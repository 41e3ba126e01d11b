"""Validation by position, distance and cell, against loops over the tokens."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from longspan.data import ByteTokenizer, CausalLanguageModeling, MaskedLanguageModeling, Sample
from longspan.data.tasks import ListOps, Needle
from longspan.models import build_model
from longspan.training.callbacks.evaluation import Evaluation, distances_of
from longspan.training.chunked_loss import scored_positions, token_scores
from longspan.training.data_module import DataModule
from longspan.training.module import LongspanModule
from longspan.training.optim import AdamW
from longspan.training.trainer import make_trainer


class Bigrams(nn.Module):
    """Logits that depend on the token alone."""

    def __init__(self, vocabulary):
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(vocabulary, vocabulary)

    def forward(self, input_ids, **others):
        return SimpleNamespace(logits=self.table(input_ids) * 2)


class Texts(nn.Module):
    """Stands for a data module of byte sequences, in batches of unequal size."""

    def __init__(self, objective, document_mask=False, lengths=(3, 2)):
        super().__init__()
        draws = np.random.default_rng(0)
        tokens = 24 + objective.lookahead
        self.batches = []
        for size in lengths:
            samples = []
            for index in range(size):
                ids = draws.integers(97, 100, size=tokens)  # three letters: n-grams come again
                documents = np.repeat([0, 1], [9, tokens - 9])
                samples.append(Sample(0, index, ids, np.ones(tokens, dtype=int), documents))
            self.batches.append(objective.collate(samples, ByteTokenizer(), document_mask=document_mask))


def loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


def brute_force(batches, model, place_of):
    """{place: [nats, right, scored]}, a token at a time; `place_of(batch, row, column)` may be None."""
    sums = {}
    for batch in batches:
        logits = model(batch["input_ids"]).logits.double()
        for row, column in (batch["labels"] != -100).nonzero().tolist():
            label, found = int(batch["labels"][row, column]), logits[row, column].tolist()
            place = place_of(batch, row, column)
            if place is None:
                continue
            own = sums.setdefault(place, [0.0, 0, 0])
            own[0] += math.log(sum(math.exp(x) for x in found)) - found[label]
            own[1] += found.index(max(found)) == label
            own[2] += 1
    return sums


def check(found, sums, bucket_of):
    """The buckets of the file are the brute-force sums, put together by `bucket_of`."""
    expected = {}
    for place, figures in sums.items():
        own = expected.setdefault(bucket_of(place), [0.0, 0, 0])
        for number, value in enumerate(figures):
            own[number] += value
    assert [(one["from"], one["to"]) for one in found] == sorted(expected)
    for one in found:
        nats, right, scored = expected[one["from"], one["to"]]
        assert one["scored"] == scored
        assert one["loss"] == pytest.approx(nats / scored, rel=1e-5)
        assert one["accuracy"] == pytest.approx(right / scored)


def distance_bucket(distance):
    if distance == 0:
        return 0, 1
    power = 2 ** int(math.log2(distance))
    return power, 2 * power


def evaluated(tmp_path, objective, batches, model, **options):
    callback = Evaluation(str(tmp_path / "run"), **options)
    trainer = make_trainer(str(tmp_path), [callback], accelerator="cpu", max_steps=1)
    module = LongspanModule(model, objective, AdamW())
    trainer.validate(module, dataloaders=loader(batches), verbose=False)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return json.loads((tmp_path / "run" / "evaluation.json").read_text()), metrics


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("objective", [CausalLanguageModeling(), MaskedLanguageModeling(0.5)])
def test_language_modelling(tmp_path, objective, document_mask):
    batches, model = Texts(objective, document_mask).batches, Bigrams(260)
    found, metrics = evaluated(tmp_path, objective, batches, model, position_buckets=5, ngram=2)
    positions = brute_force(batches, model, lambda batch, row, column: column)
    check(found["by_position"], positions, lambda place: (place // 5 * 5, min(place // 5 * 5 + 5, 24)))
    total = [sum(column) for column in zip(*positions.values(), strict=True)]
    assert metrics["val/loss"] == pytest.approx(total[0] / total[2], rel=1e-5)
    assert metrics["val/accuracy"] == pytest.approx(total[1] / total[2])

    def distance(batch, row, column):
        """Look for the same two tokens, the predicted one last, from the nearest back."""
        ids, labels = batch["input_ids"][row].tolist(), batch["labels"][row].tolist()
        shift = objective.name == "clm"
        text = (
            [ids[0], *labels] if shift else [i if x == -100 else x for i, x in zip(ids, labels, strict=True)]
        )
        documents = batch["document_ids"][row].tolist() if document_mask else [0] * 24
        documents += [documents[-1]] * shift
        end = column + shift
        if end < 1 or documents[end] != documents[end - 1]:
            return None
        for earlier in range(end - 1, 0, -1):
            same = text[earlier - 1 : earlier + 1] == text[end - 1 : end + 1]
            if same and documents[earlier - 1] == documents[earlier] == documents[end]:
                return column - earlier
        return None

    if document_mask and objective.name == "clm":
        # The labels lack the token that begins the second document: take it from the inputs.
        for batch in batches:
            batch["labels"][:, 8] = batch["input_ids"][:, 9]
        found, _ = evaluated(tmp_path, objective, batches, model, ngram=2)
    sums = brute_force(batches, model, distance)
    assert sums
    check(found["by_distance"], sums, distance_bucket)
    assert found["ngram"] == 2
    assert "by_cell" not in found


def test_tasks_have_their_own_distances_and_cells(tmp_path):
    task = Needle([0.0, 1.0], [16, 32], 2, 4, 4, 4, 4)
    data = DataModule(
        task, task.tokenizer, CausalLanguageModeling(), 32, validation_batch_size=5, validation_sequences=23
    )
    batches, model = list(data.val_dataloader()), Bigrams(task.tokenizer.vocab_size)
    callback = Evaluation(str(tmp_path))
    trainer = make_trainer(str(tmp_path), [callback], accelerator="cpu", max_steps=1)
    trainer.validate(LongspanModule(model, data.objective, AdamW()), datamodule=data, verbose=False)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    sums = brute_force(batches, model, lambda batch, row, column: int(batch["distances"][row, column]))
    check(found["by_distance"], sums, distance_bucket)
    cells = brute_force(batches, model, lambda batch, row, column: int(batch["cells"][row]))
    assert len(found["by_cell"]) == len(cells) == 4
    for cell, one in zip(task.cells(), found["by_cell"], strict=True):
        assert {key: one[key] for key in cell} == cell
        assert one["scored"] == cells[task.cells().index(cell)][2]
        assert one["loss"] * one["scored"] == pytest.approx(cells[task.cells().index(cell)][0], rel=1e-5)
    assert "val/bits_per_byte" not in trainer.callback_metrics


def test_an_answer_that_no_token_holds_has_no_distance():
    task = ListOps(4, 20, 3, 3)
    data = DataModule(task, task.tokenizer, CausalLanguageModeling(), 32, validation_sequences=2)
    batch = next(iter(data.val_dataloader()))
    assert (distances_of(batch, True, 8) == -1).all()


@pytest.mark.parametrize("chunk", [None, 3, 100])
def test_scores_in_chunks(chunk):
    model = build_model("llama", "clm", 16, 12, 8, 1, 2)
    module = LongspanModule(model, CausalLanguageModeling(), AdamW(), loss_chunk=chunk).eval()
    ids = torch.randint(16, (3, 12))
    labels = torch.where(torch.rand(3, 12) < 0.5, torch.randint(16, (3, 12)), -100)
    scores = module.scores({"input_ids": ids, "labels": labels})
    logits = model(input_ids=ids).logits.flatten(0, 1)
    places = (labels.flatten() != -100).nonzero()[:, 0]
    assert torch.equal(scores.positions, places)
    expected = nn.functional.cross_entropy(logits, labels.flatten(), reduction="none")[places]
    torch.testing.assert_close(scores.nats, expected.detach())
    assert torch.equal(scores.correct, logits.argmax(-1)[places] == labels.flatten()[places])


def test_nothing_scored():
    labels = torch.full((2, 3), -100)
    scores = token_scores(nn.Identity(), torch.zeros(2, 3, 4), labels, scored_positions(labels))
    assert [len(part) for part in scores] == [0, 0, 0]


@pytest.mark.parametrize("argument", ["position_buckets", "ngram"])
def test_bad_numbers(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        Evaluation("run", **{argument: 0})


def test_a_loss_that_is_not_finite_is_written_as_null(tmp_path):
    evaluation = Evaluation(str(tmp_path))
    evaluation._sums = {
        "position": torch.tensor([[math.nan, 2.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64),
        "distance": torch.zeros(3, 0, dtype=torch.float64),
    }
    trainer = SimpleNamespace(
        sanity_checking=False, is_global_zero=True, world_size=1, global_step=1, datamodule=None
    )
    evaluation.on_validation_epoch_end(trainer, None)
    text = (tmp_path / "evaluation.json").read_text()
    assert "NaN" not in text
    assert [bucket["loss"] for bucket in json.loads(text)["by_position"]] == [None, 2.0]
