"""Tasks through the data module: workers, processes, resumption, and what it refuses."""

from types import SimpleNamespace

import pytest

from longspan.data import ByteTokenizer, CausalLanguageModeling, MaskedLanguageModeling
from longspan.data.tasks import Copy, ListOps, Needle, Recall
from longspan.training.data_module import DataModule

TASKS = {
    "copy": Copy([8, 12], 4, 4, 4, 4),
    "needle": Needle([0.0, 1.0], [16, 32], 2, 4, 4, 4, 4),
    "recall": Recall([2, 4], 1.0, 8, 8, 4, 1.0, 4),
    "listops": ListOps(5, 30, 4, 4),
}


def make(task="recall", objective=None, **options):
    task = TASKS[task]
    options = {"seq_len": 32, "batch_size": 4, "validation_sequences": 10, **options}
    return DataModule(task, task.tokenizer, objective or CausalLanguageModeling(), **options)


def batches(loader, count=None):
    found = []
    for batch in loader:
        found.append({name: tensor.tolist() for name, tensor in batch.items()})
        if len(found) == count:
            break
    return found


@pytest.mark.parametrize("objective", [CausalLanguageModeling(), MaskedLanguageModeling()])
@pytest.mark.parametrize("task", TASKS)
def test_workers_and_the_seed(task, objective):
    alone, helped = make(task, objective), make(task, objective, num_workers=1)
    expected = batches(alone.train_dataloader(), 3)
    assert expected == batches(helped.train_dataloader(), 3)
    assert expected == batches(make(task, objective).train_dataloader(), 3)
    other = make(task, objective, seed=1)
    assert expected != batches(other.train_dataloader(), 3)
    validation = batches(alone.val_dataloader())
    assert validation == batches(other.val_dataloader())
    assert sum(len(batch["input_ids"]) for batch in validation) == 10
    assert alone.byte_entropy is None
    assert alone.vocab_size == TASKS[task].tokenizer.vocab_size
    assert alone.corpus_info.to_dict()["details"]["generated"] is True


@pytest.mark.parametrize("side", ["train_dataloader", "val_dataloader"])
def test_processes_share_the_sequences(side):
    def rows(rank, world_size, batch_size):
        data = make(batch_size=batch_size, validation_sequences=8)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        return [batch["input_ids"] for batch in batches(getattr(data, side)(), 1)]

    (whole,), (first,), (second,) = rows(0, 1, 8), rows(0, 2, 4), rows(1, 2, 4)
    assert sorted(first + second) == sorted(whole)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_loader_resumes(workers, stop):
    loader = make(num_workers=workers).train_dataloader()
    iterator = iter(loader)
    for _ in range(stop):
        next(iterator)
    state = loader.state_dict()
    expected = [next(iterator)["input_ids"].tolist() for _ in range(3)]
    again = make(num_workers=workers).train_dataloader()
    again.load_state_dict(state)
    assert [batch["input_ids"] for batch in batches(again, 3)] == expected


def test_no_epoch_repeats_another(monkeypatch):
    monkeypatch.setattr("longspan.training.data_module.TaskSequences.__len__", lambda self: 8)
    loader = make().train_dataloader()
    first = batches(loader)
    loader.sampler.set_epoch(1)
    rows = [tuple(row) for batch in first + batches(loader) for row in batch["input_ids"]]
    assert len(rows) == len(set(rows)) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 16}, "need 20 tokens, and a sequence has 17"),
        ({"document_mask": True}, r"data\.document_mask=True: the task recall has no documents"),
        ({"validation_sequences": None}, r"data\.validation_sequences=None must be a number"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_another_tokenizer_is_refused():
    with pytest.raises(ValueError, match="tokenizer=task; got ByteTokenizer with 260 ids"):
        DataModule(TASKS["copy"], ByteTokenizer(), CausalLanguageModeling(), validation_sequences=4)


def test_a_longest_text_that_leaves_most_of_the_sequence_empty_is_refused():
    with pytest.raises(
        ValueError, match=r"lengths=\[16, 32\]: the longest text must fill the sequence of 129"
    ):
        make("needle", seq_len=128)
    assert make("needle", seq_len=31).seq_len == 31
    assert make("needle", MaskedLanguageModeling()).seq_len == 32
