import numpy as np
import pytest
import torch
import torch.nn.functional as F

from longspan.data import (
    ByteTokenizer,
    CausalLanguageModeling,
    MaskedLanguageModeling,
    PackedDocuments,
    Sample,
)
from longspan.data.objective import positions_in_documents
from longspan.data.packing import encode_document

TOKENIZER = ByteTokenizer()


def sample(ids, documents=None, epoch=0, index=0):
    ids = np.array(ids, dtype=np.int64)
    documents = np.zeros(len(ids), dtype=np.int64) if documents is None else np.array(documents)
    return Sample(epoch, index, ids, (ids < 256).astype(np.int64), documents)


def long_samples(count=4, length=20_000):
    draws = np.random.default_rng(0)
    return [sample(draws.integers(0, 256, length), index=index) for index in range(count)]


def test_masking_rates():
    samples = long_samples()
    batch = MaskedLanguageModeling(0.3).collate(samples, TOKENIZER)
    original = torch.tensor(np.stack([s.input_ids for s in samples]))
    scored = batch["labels"] != -100
    assert (batch["labels"][scored] == original[scored]).all()
    assert (batch["input_ids"][~scored] == original[~scored]).all()
    assert scored.float().mean().item() == pytest.approx(0.3, abs=0.01)
    inputs = batch["input_ids"][scored]
    masked = inputs == TOKENIZER.mask_token_id
    kept = inputs == original[scored]
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.01)
    # A random token is the original one once in 256.
    assert kept.float().mean().item() == pytest.approx(0.1 + 0.1 / 256, abs=0.01)
    assert inputs[~masked].max() < 256
    assert inputs[~masked & ~kept].unique().numel() == 256


def test_masking_shares_follow_the_arguments():
    batch = MaskedLanguageModeling(1.0, mask_token_probability=0.0, random_token_probability=0.0).collate(
        long_samples(1), TOKENIZER
    )
    assert (batch["input_ids"] == batch["labels"]).all()
    batch = MaskedLanguageModeling(1.0, mask_token_probability=1.0, random_token_probability=0.0).collate(
        long_samples(1), TOKENIZER
    )
    assert (batch["input_ids"] == TOKENIZER.mask_token_id).all()


def test_special_tokens_are_never_masked():
    batch = MaskedLanguageModeling(1.0, 1.0, 0.0).collate([sample([65, 259, 258, 256, 66])], TOKENIZER)
    assert batch["labels"].tolist() == [[65, -100, -100, -100, 66]]
    assert batch["input_ids"].tolist() == [[257, 259, 258, 256, 257]]
    assert batch["num_bytes"].tolist() == [2]


def test_masks_depend_on_seed_epoch_and_index_alone():
    objective = MaskedLanguageModeling(0.5)
    ids = list(range(200))

    def labels(epoch, index, seed, company=()):
        return objective.collate([*company, sample(ids, epoch=epoch, index=index)], TOKENIZER, seed=seed)[
            "labels"
        ][-1].tolist()

    first = labels(1, 2, 3)
    assert first == labels(1, 2, 3, company=[sample(ids, index=9)])
    assert first not in (labels(0, 2, 3), labels(1, 0, 3), labels(1, 2, 0))


def test_causal_labels_are_the_next_tokens():
    batch = CausalLanguageModeling().collate([sample([1, 2, 259, 3, 4], [0, 0, 0, 1, 1])], TOKENIZER)
    assert batch["input_ids"].tolist() == [[1, 2, 259, 3]]
    assert batch["labels"].tolist() == [[2, 259, 3, 4]]
    assert batch["num_bytes"].tolist() == [3]
    assert set(batch) == {"input_ids", "labels", "num_bytes"}


def test_causal_labels_do_not_cross_into_the_next_document():
    samples = [sample([1, 2, 259, 3, 4], [5, 5, 5, 1, 1])]
    batch = CausalLanguageModeling().collate(samples, TOKENIZER, document_mask=True)
    assert batch["labels"].tolist() == [[2, 259, -100, 4]]
    assert batch["num_bytes"].tolist() == [2]
    assert batch["document_ids"].tolist() == [[5, 5, 5, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0]]


def test_masked_batch_with_documents():
    samples = [sample([1, 2, 3, 4], [0, 1, 1, 0]), sample([1, 2, 3, 4], [7, 7, 7, 7])]
    batch = MaskedLanguageModeling().collate(samples, TOKENIZER, document_mask=True)
    assert batch["position_ids"].tolist() == [[0, 0, 1, 0], [0, 1, 2, 3]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert "document_ids" not in MaskedLanguageModeling().collate(samples, TOKENIZER)


def test_positions_restart_at_each_document_of_packed_text():
    packed = PackedDocuments([encode_document(b"x" * n, TOKENIZER) for n in (3, 9, 2, 30)], 8)
    rows = np.stack([packed[0, i].document_ids for i in range(len(packed))])
    positions = positions_in_documents(rows)
    for row, place in zip(rows, positions, strict=True):
        for i in range(len(row)):
            start = i
            while start and row[start - 1] == row[i]:
                start -= 1
            assert place[i] == i - start


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_is_the_mean_over_scored_labels_in_float32(dtype):
    logits = torch.randn(2, 5, 260, dtype=dtype)
    labels = torch.randint(0, 256, (2, 5))
    labels[0, :3] = -100
    loss = CausalLanguageModeling().loss(logits, labels)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(logits.double().flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


def test_loss_of_nothing_is_zero_and_has_zero_gradients():
    logits = torch.randn(1, 3, 260, requires_grad=True)
    loss = MaskedLanguageModeling().loss(logits, torch.full((1, 3), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("probability", [0.0, 1.1, -0.5])
def test_bad_mask_probability(probability):
    with pytest.raises(ValueError, match="mask_probability="):
        MaskedLanguageModeling(probability)


@pytest.mark.parametrize("shares", [(0.8, 0.3), (-0.1, 0.1), (0.5, -0.1)])
def test_bad_shares(shares):
    with pytest.raises(ValueError, match="mask_token_probability="):
        MaskedLanguageModeling(0.15, *shares)


def test_attention_is_checked():
    assert MaskedLanguageModeling().attention == "bidirectional"
    assert MaskedLanguageModeling(attention="unidirectional").attention == "unidirectional"
    assert CausalLanguageModeling().attention == "unidirectional"
    with pytest.raises(ValueError, match="attention='sideways'"):
        MaskedLanguageModeling(attention="sideways")
    with pytest.raises(ValueError, match="attention='bidirectional'"):
        CausalLanguageModeling(attention="bidirectional")


def test_masking_needs_a_mask_token():
    tokenizer = ByteTokenizer()
    tokenizer.mask_token_id = None
    CausalLanguageModeling().check(tokenizer)
    with pytest.raises(ValueError, match="mask token"):
        MaskedLanguageModeling().check(tokenizer)
