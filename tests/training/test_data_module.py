from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from datasets import Dataset

from longspan.data import (
    ByteTokenizer,
    CausalLanguageModeling,
    Corpus,
    CorpusInfo,
    Document,
    MaskedLanguageModeling,
    SplitInfo,
    Splits,
)
from longspan.data.entropy import byte_entropy
from longspan.data.rows import RowStream, text_of
from longspan.training.callbacks.budget import SecondsBudget
from longspan.training.data_module import DataModule

TEXTS = [f"document {i} " + "abcdefgh"[i % 8] * (i * 13 % 70) for i in range(60)]
VALIDATION = [Document(f"v{i}", f"held out {i} ".encode() * 5) for i in range(8)]


class Memory(Corpus):
    """Sixty documents in memory."""

    def load(self):
        train = [Document(str(i), text.encode()) for i, text in enumerate(TEXTS)]
        return Splits(
            train, VALIDATION, CorpusInfo("memory", SplitInfo.of(train), SplitInfo.of(VALIDATION), {})
        )


class Streamed(Corpus):
    """The same documents as a stream."""

    def load(self):
        rows = Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(num_shards=4)
        unknown = SplitInfo(None, None, None, None)
        info = CorpusInfo("streamed", unknown, SplitInfo.of(VALIDATION), {})
        return Splits(RowStream(rows, text_of("text", ["text"], "rows"), shuffle_block=16), VALIDATION, info)


CORPORA = {"memory": Memory, "streamed": Streamed}


def make(corpus="memory", objective=None, **options):
    options = {"seq_len": 32, "batch_size": 4, **options}
    return DataModule(CORPORA[corpus](), ByteTokenizer(), objective or MaskedLanguageModeling(0.3), **options)


def batches(loader, count=None):
    found = []
    for batch in loader:
        found.append({name: tensor.tolist() for name, tensor in batch.items()})
        if len(found) == count:
            break
    return found


def attach(data, rank=0, world_size=1, **options):
    """A trainer that says which process this is."""
    defaults = {"accumulate_grad_batches": 1, "max_steps": 20, "limit_train_batches": 1.0, "callbacks": []}
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, **{**defaults, **options})
    return data


def test_what_a_batch_is():
    data = make(document_mask=True)
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"input_ids", "labels", "num_bytes", "document_ids", "position_ids"}
    assert batch["input_ids"].shape == batch["labels"].shape == batch["document_ids"].shape == (4, 32)
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    scored = batch["labels"]
    assert batch["num_bytes"].tolist() == ((scored >= 0) & (scored < 256)).sum(1).tolist()
    assert data.tokens_per_step == 128
    assert data.vocab_size == 260


def test_account():
    data = make()
    assert data.corpus_info.train.documents == 60
    assert data.byte_entropy == byte_entropy(document.text for document in VALIDATION)
    assert data.corpus_info.to_dict()["validation"]["bytes"] == sum(len(d.text) for d in VALIDATION)


@pytest.mark.parametrize(("corpus", "workers"), [("memory", 2), ("streamed", 1)])
@pytest.mark.parametrize("objective", [MaskedLanguageModeling(), CausalLanguageModeling()])
def test_workers_change_nothing(corpus, workers, objective):
    alone = make(corpus, objective)
    helped = make(corpus, objective, num_workers=workers)
    count = 12
    assert batches(alone.train_dataloader(), count) == batches(helped.train_dataloader(), count)
    assert batches(alone.val_dataloader()) == batches(helped.val_dataloader())


@pytest.mark.parametrize("corpus", CORPORA)
def test_the_seed_changes_training_and_not_validation(corpus):
    first, again, other = make(corpus, seed=1), make(corpus, seed=1), make(corpus, seed=2)
    expected = batches(first.train_dataloader(), 5)
    assert expected == batches(again.train_dataloader(), 5)
    assert expected != batches(other.train_dataloader(), 5)
    assert batches(first.val_dataloader()) == batches(other.val_dataloader())


def test_an_epoch_reads_the_corpus_once():
    data = make(objective=CausalLanguageModeling())
    loader = data.train_dataloader()
    tokens = sum(len(text.encode()) + 1 for text in TEXTS)
    assert len(loader) == (tokens - 1) // 32 // 4
    assert len(batches(loader)) == len(loader)


def test_epochs_differ():
    loader = make().train_dataloader()
    first = batches(loader)
    loader.sampler.set_epoch(1)
    second = batches(loader)
    loader.sampler.set_epoch(0)
    assert batches(loader) == first != second


def test_validation_batches_hold_every_sequence_once():
    data = make(objective=CausalLanguageModeling(), validation_batch_size=3)
    found = [row for batch in batches(data.val_dataloader()) for row in batch["input_ids"]]
    tokens = sum(len(document.text) + 1 for document in VALIDATION)
    assert len(found) == (tokens - 1) // 32
    assert len({tuple(row) for row in found}) == len(found)
    fewer = make(objective=CausalLanguageModeling(), validation_sequences=5, validation_batch_size=3)
    assert [row for batch in batches(fewer.val_dataloader()) for row in batch["input_ids"]] == found[:5]


@pytest.mark.parametrize("side", ["train_dataloader", "val_dataloader"])
def test_processes_share_the_sequences(side):
    parts = [batches(getattr(attach(make(), rank, 2), side)()) for rank in range(2)]
    rows = [[tuple(row) for batch in part for row in batch["input_ids"]] for part in parts]
    assert len(rows[0]) == len(rows[1]) > 0
    # One process with twice the batch reads the same sequences, step by step.
    whole = batches(getattr(attach(make(batch_size=8)), side)())
    for step, batch in enumerate(whole[: len(parts[0]) - 1]):
        together = [tuple(row) for part in parts for row in part[step]["input_ids"]]
        assert sorted(together) == sorted(map(tuple, batch["input_ids"]))


def test_processes_share_a_stream():
    documents = [
        {
            tuple(row)
            for b in batches(attach(make("streamed"), rank, 2).train_dataloader(), 5)
            for row in b["labels"]
        }
        for rank in range(2)
    ]
    assert not documents[0] & documents[1]


@pytest.mark.parametrize(
    ("corpus", "workers"), [("memory", 0), ("memory", 2), ("streamed", 0), ("streamed", 1)]
)
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_loader_resumes(corpus, workers, stop):
    loader = make(corpus, num_workers=workers).train_dataloader()
    iterator = iter(loader)
    for _ in range(stop):
        next(iterator)
    state = loader.state_dict()
    expected = [next(iterator)["input_ids"].tolist() for _ in range(4)]
    again = make(corpus, num_workers=workers).train_dataloader()
    again.load_state_dict(state)
    assert [batch["input_ids"] for batch in batches(again, 4)] == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("position", [1, 2])
def test_a_loader_resumes_in_a_later_epoch(workers, position):
    loader = make(num_workers=workers).train_dataloader()
    loader.sampler.set_epoch(3)
    iterator = iter(loader)
    # The last position is the end of the epoch: resumption goes on with the next one.
    taken = position * len(loader) // 2
    for _ in range(taken):
        next(iterator)
    state = loader.state_dict()
    expected = [batch["input_ids"].tolist() for batch in iterator]
    if not expected:
        loader.sampler.set_epoch(4)
        expected = [batch["input_ids"].tolist() for batch in loader]
    again = make(num_workers=workers).train_dataloader()
    again.load_state_dict(state)
    assert [batch["input_ids"] for batch in batches(again)] == expected


class Recorder(pl.LightningModule):
    """Remembers the batches that it was trained on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((batch["input_ids"].tolist(), batch["labels"].tolist()))
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, corpus, workers, steps, checkpoint=None, every=None):
    saver = pl.callbacks.ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=every)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[saver] if every else [],
        enable_checkpointing=bool(every),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    module = Recorder()
    trainer.fit(module, datamodule=make(corpus, num_workers=workers), ckpt_path=checkpoint)
    return module.seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("corpus", "workers"), [("memory", 0), ("memory", 2), ("streamed", 0), ("streamed", 1)]
)
def test_a_training_resumes(tmp_path, corpus, workers):
    per_epoch = len(make().train_dataloader())
    # In the first epoch, at its end (where there are epochs), and in the second.
    every = per_epoch // 2 if per_epoch % 2 == 0 else per_epoch
    steps = 2 * per_epoch + 3
    whole = fit(tmp_path, corpus, workers, steps, every=every)
    assert len(whole) == steps
    assert np.unique([str(batch) for batch in whole]).size == steps
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert {every, per_epoch, 2 * per_epoch} <= {int(path.stem.partition("=")[2]) for path in checkpoints}
    for path in checkpoints:
        done = int(path.stem.partition("=")[2])
        assert fit(tmp_path / "again", corpus, workers, steps, str(path)) == whole[done:], path.stem


def test_stream_needs_a_number_of_steps():
    with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
        attach(make("streamed"), max_steps=-1).train_dataloader()
    with pytest.raises(ValueError, match=r"limit_train_batches=5 .* again and again"):
        attach(make("streamed"), limit_train_batches=5).train_dataloader()
    assert len(attach(make("streamed"), accumulate_grad_batches=3).train_dataloader()) == 60
    # Time ends such a run: it never comes to the end of what its loader says it has.
    timed = attach(make("streamed"), max_steps=-1, callbacks=[SecondsBudget(1)])
    assert len(timed.train_dataloader()) > 10**9


def test_stream_takes_one_worker():
    with pytest.raises(ValueError, match=r"data\.num_workers=2 must be 0 or 1"):
        make("streamed", num_workers=2).setup()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("seq_len", 0),
        ("batch_size", 0),
        ("validation_batch_size", 0),
        ("validation_sequences", 0),
        ("num_workers", -1),
        ("seed", -1),
    ],
)
def test_bad_numbers(argument, value):
    with pytest.raises(ValueError, match=rf"data\.{argument}={value} must be at least"):
        make(**{argument: value})


def test_too_little_data():
    with pytest.raises(ValueError, match=r"validation data: the documents hold \d+ tokens .*seq_len=2000"):
        make(seq_len=2000).setup()
    with pytest.raises(ValueError, match=r"too few for 1 process\(es\) of 1000 each"):
        make(batch_size=1000).train_dataloader()


def test_objective_and_tokenizer_must_fit():
    tokenizer = ByteTokenizer()
    tokenizer.mask_token_id = None
    with pytest.raises(ValueError, match="mask token"):
        DataModule(Memory(), tokenizer, MaskedLanguageModeling())


def test_tokens_per_step_counts_processes_and_accumulation():
    assert attach(make(), world_size=2, accumulate_grad_batches=3).tokens_per_step == 32 * 4 * 2 * 3
