"""A tiny model, a tiny corpus and a run of both, which the tests of training share."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from longspan.config.compose import compose
from longspan.training.callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from longspan.training.module import LongspanModule
from longspan.training.optim import AdamW, Cosine
from longspan.training.trainer import make_trainer

VOCABULARY, LENGTH, BATCH = 11, 8, 2


class TinyModel(nn.Module):
    """Embedding, dropout, two layers; a `fail_at` call raises, to break a run in the middle of a step."""

    def __init__(self, dropout=0.3):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, VOCABULARY)
        self.calls = 0
        self.fail_at = None
        self.seen = []

    def forward(self, input_ids, position_ids=None, document_ids=None):
        if self.training:
            self.calls += 1
            if self.calls == self.fail_at:
                raise RuntimeError("broken on purpose")
            self.seen.append(input_ids.clone())
        hidden = torch.relu(self.hidden(self.dropout(self.norm(self.embedding(input_ids)))))
        return SimpleNamespace(logits=self.head(hidden))


class TinyObjective:
    name, attention, causal, scored_share = "clm", "unidirectional", True, 1.0

    def loss(self, logits, labels):
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def _sample(index):
    generator = torch.Generator().manual_seed(index)
    return torch.randint(VOCABULARY, (LENGTH + 1,), generator=generator)


def collate(samples):
    tokens = torch.stack(samples)
    return {
        "input_ids": tokens[:, :-1],
        "labels": tokens[:, 1:],
        "num_bytes": torch.full((len(samples),), LENGTH),
    }


class Sequences(Dataset):
    def __init__(self, first, size):
        self.first, self.size = first, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return _sample(self.first + index)


class Stream(IterableDataset):
    """Endless, without a length, with a state."""

    def __init__(self, end=10**6):
        self.position, self.end = 0, end

    def __iter__(self):
        while self.position < self.end:
            self.position += 1
            yield _sample(self.position)
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class TinyData(pl.LightningDataModule):
    """Shuffled sequences, or a stream. Shuffling draws from torch's global generator: the hard case."""

    def __init__(self, stream=False, workers=0, sequences=20, stream_end=10**6):
        super().__init__()
        self.stream, self.workers, self.sequences, self.stream_end = stream, workers, sequences, stream_end

    def train_dataloader(self):
        options = {"batch_size": BATCH, "collate_fn": collate, "num_workers": self.workers}
        if self.stream:
            return StatefulDataLoader(Stream(self.stream_end), **options)
        return StatefulDataLoader(Sequences(0, self.sequences), shuffle=True, **options)

    def val_dataloader(self):
        return StatefulDataLoader(Sequences(1000, 6), batch_size=BATCH, collate_fn=collate)


class Run:
    """One run of the tiny model in its own directory."""

    def __init__(self, directory, data=None, callbacks=(), loggers=(), checkpoints=True, **trainer):
        self.directory = directory
        self.data = data or TinyData()
        kept = [BestCheckpoint(f"{directory}/checkpoints"), LastCheckpoint(f"{directory}/checkpoints")]
        torch.manual_seed(7)
        self.model = TinyModel()
        self.module = LongspanModule(self.model, TinyObjective(), AdamW(lr=1e-2), Cosine())
        options = {"max_steps": 12, "val_check_interval": 5, "accelerator": "cpu", "log_every_n_steps": 1}
        self.trainer = make_trainer(
            str(directory), [*callbacks, *(kept if checkpoints else [])], loggers, **{**options, **trainer}
        )

    def fit(self, ckpt_path=None):
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=ckpt_path)
        return self

    @property
    def last(self):
        return str(self.directory / "checkpoints" / "last.ckpt")

    @property
    def val_loss(self):
        return float(self.trainer.callback_metrics["val/loss"])

    @property
    def weights(self):
        return {name: value.clone() for name, value in self.model.state_dict().items()}


@pytest.fixture
def make_run():
    return Run


@pytest.fixture
def make_data():
    return TinyData


@pytest.fixture
def make_model():
    return TinyModel


@pytest.fixture
def same_end():
    def check(left, right):
        assert left.trainer.global_step == right.trainer.global_step
        assert left.module.tokens_seen == right.module.tokens_seen
        for name, value in left.weights.items():
            assert torch.equal(value, right.weights[name]), name
        assert left.val_loss == right.val_loss

    return check


@pytest.fixture
def composed(tmp_path):
    """composed('sparsity=fixed', …) -> the configuration of a small run on a small text."""
    for index in range(8):
        text = "".join(f"def function_{i}(x):\n    return x * {i + index}\n\n" for i in range(150))
        (tmp_path / f"{index}.txt").write_text(text)

    def make(*overrides):
        return compose(
            [
                "experiment=smoke",
                "data=text_files",
                f"data.corpus.files=['{tmp_path}/*.txt']",
                "data.corpus.validation_fraction=0.2",
                "data.seq_len=128",
                "model.num_layers=4",
                "trainer.accelerator=cpu",
                "trainer.max_steps=2",
                f"output_dir={tmp_path / 'run'}",
                *overrides,
            ]
        )

    return make
