"""Samples of tasks: functions of seed, split and number; splits without a common text; their vocabulary."""

import numpy as np
import pytest

from longspan.data import ByteTokenizer, CausalLanguageModeling, MaskedLanguageModeling
from longspan.data.tasks import (
    Copy,
    ListOps,
    Needle,
    Recall,
    TaskSequences,
    TaskText,
    TaskTokenizer,
    split_of,
    tokenizer_of,
)

TASKS = {
    "copy": Copy([8, 12], 4, 4, 4, 4),
    "needle": Needle([0.0, 1.0], [16, 32], 2, 4, 4, 4, 4),
    "recall": Recall([2, 4], 1.0, 8, 8, 4, 1.0, 4),
    "listops": ListOps(5, 30, 4, 4),
}


def sample(task, split="train", seed=0, key=(0, 0), **options):
    return TaskSequences(task, split, 32, 1, seed, **options)[key]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_sample_is_a_function_of_seed_split_and_number(task):
    first = sample(task, key=(1, 3), size=10)
    again = sample(task, key=(0, 13), size=100)
    for one, other in zip(first[2:], again[2:], strict=True):
        np.testing.assert_array_equal(one, other)
    others = [sample(task, key=(0, 14)), sample(task, seed=1, key=(0, 13)), sample(task, "validation")]
    assert all((other.input_ids != first.input_ids).any() for other in others)
    assert first.input_ids.shape == (33,)
    assert max(first.input_ids) < task.tokenizer.vocab_size


class Few:
    """A task of sixteen texts."""

    name = "few"

    def check_length(self, tokens):
        pass

    def text(self, draws, tokens):
        ids = draws.integers(2, size=4)
        return TaskText(ids, np.full(4, -1), np.ones(4, dtype=bool))


def test_training_and_validation_share_no_text():
    # So few texts that two splits drawn alike would share nearly all of them.
    found = {
        split: {
            tuple(TaskSequences(Few(), split, 4, seed=seed)[0, i].input_ids)
            for i in range(100)
            for seed in (0, 7)
        }
        for split in ("train", "validation")
    }
    assert not found["train"] & found["validation"]
    assert len(found["train"]) + len(found["validation"]) == 16
    assert len(found["validation"]) >= 1


def test_a_task_with_too_few_texts_says_so():
    class One(Few):
        def text(self, draws, tokens):
            return TaskText(np.zeros(4), np.full(4, -1), np.ones(4, dtype=bool))

    own = split_of(One().text(None, 4))
    other = "train" if own == "validation" else "validation"
    assert TaskSequences(One(), own, 4)[0, 0].input_ids.tolist() == [0] * 4
    with pytest.raises(ValueError, match=f"too few different texts for a {other} split"):
        TaskSequences(One(), other, 4)[0, 0]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_causal_batch_scores_the_answers_alone(task):
    samples = [sample(task, key=(0, index)) for index in range(5)]
    batch = CausalLanguageModeling().collate(samples, task.tokenizer)
    assert set(batch) == {"input_ids", "labels", "distances", "cells"}
    assert batch["cells"].tolist() == [one.cell for one in samples]
    for row, one in enumerate(samples):
        assert batch["input_ids"][row].tolist() == one.input_ids[:32].tolist()
        for place in range(32):
            answer = one.answers[place + 1]
            label, distance = int(batch["labels"][row, place]), int(batch["distances"][row, place])
            assert label == (one.input_ids[place + 1] if answer else -100)
            source = one.sources[place + 1]
            assert distance == (place - source if source >= 0 else -1)
            if source >= 0:
                assert batch["input_ids"][row, place - distance] == label


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_masked_batch_hides_the_answers_alone(task):
    samples = [TaskSequences(task, "train", 32)[0, index] for index in range(5)]
    batch = MaskedLanguageModeling().collate(samples, task.tokenizer)
    for row, one in enumerate(samples):
        for place in range(32):
            shown, label = int(batch["input_ids"][row, place]), int(batch["labels"][row, place])
            expected = (1, one.input_ids[place]) if one.answers[place] else (one.input_ids[place], -100)
            assert (shown, label) == expected
            source = one.sources[place]
            assert int(batch["distances"][row, place]) == (abs(place - source) if source >= 0 else -1)


def test_the_vocabulary_of_a_task():
    tokenizer = tokenizer_of(Recall([2], num_keys=2, num_values=2, num_fillers=1))
    assert tokenizer.vocab_size == 9
    assert tokenizer.ids("<pad>", "<mask>", "<s>", "</s>", "k0", "v1", "f0").tolist() == [0, 1, 2, 3, 4, 7, 8]
    encoding = tokenizer.encode_with_bytes("k0 v1\n f0 ")
    assert encoding.ids.tolist() == [4, 7, 8]
    assert encoding.byte_lengths.tolist() == [2, 3, 5]
    assert len(tokenizer.encode("")) == 0
    assert tokenizer.decode([4, 7, 1, 8]) == "k0 v1 f0"
    assert tokenizer.to_hugging_face()("k0 v1 f0")["input_ids"] == [4, 7, 8]
    assert tokenizer.to_hugging_face().mask_token_id == 1
    with pytest.raises(ValueError, match="the word 'k2' is not in the vocabulary of 9 words"):
        tokenizer.encode("k0 k2")
    with pytest.raises(ValueError, match="words must be distinct"):
        TaskTokenizer(["a", "a"])
    with pytest.raises(ValueError, match="words must be distinct"):
        TaskTokenizer(["a b"])


def test_only_the_tasks_own_vocabulary_will_do():
    task = TASKS["recall"]
    task.check_tokenizer(tokenizer_of(Recall([3], 1.0, 8, 8, 4)))
    for other in (ByteTokenizer(), tokenizer_of(TASKS["copy"])):
        with pytest.raises(ValueError, match="the task recall has a vocabulary of its own, tokenizer=task"):
            task.check_tokenizer(other)
    with pytest.raises(ValueError, match="tokenizer=task is the vocabulary of a synthetic task"):
        tokenizer_of(object())
