from itertools import islice

import pytest
from datasets import Dataset, load_dataset

from longspan.data import Hub

TEXTS = [f"document {i}" for i in range(40)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def local(tmp_path):
    """A data set folder as the hub has them: two splits, one of them in two files."""
    folder = tmp_path / "folder" / "data"
    folder.mkdir(parents=True)
    for i, part in enumerate((TEXTS[:20], TEXTS[20:])):
        Dataset.from_dict({"text": part}).to_parquet(folder / f"train-{i:05}-of-00002.parquet")
    Dataset.from_dict({"text": ["held out"] * 3}).to_parquet(folder / "test-00000-of-00001.parquet")
    return str(folder.parent)


@pytest.fixture
def calls(monkeypatch):
    """Calls of load_dataset, answered with rows in memory."""
    recorded = []

    def answer(path, **options):
        recorded.append((path, options))
        rows = Dataset.from_dict({"text": TEXTS})
        return rows.to_iterable_dataset(num_shards=2) if options["streaming"] else rows

    monkeypatch.setattr("datasets.load_dataset", answer)
    return recorded


def contents(documents):
    return [document.text.decode() for document in documents]


def test_whole(local):
    splits = Hub(local, validation_fraction=0.1).load()
    assert sorted(contents([*splits.train, *splits.validation])) == sorted(TEXTS)
    assert 1 <= len(splits.validation) <= 4
    assert splits.info.train.documents == len(splits.train)
    assert splits.info.details["path"] == local


def test_validation_split(local):
    splits = Hub(local, validation_split="test").load()
    assert contents(splits.train) == TEXTS
    assert contents(splits.validation) == ["held out"] * 3


def test_streamed(local):
    splits = Hub(local, streaming=True, validation_documents=5, shuffle_block=4).load()
    train = contents(splits.train)
    assert contents(splits.validation) == TEXTS[:5]
    assert sorted(train) == sorted(TEXTS[5:])
    assert train != TEXTS[5:]
    info = splits.info
    assert (info.train.bytes, info.train.sha256) == (None, None)
    assert info.validation.documents == 5
    assert info.validation.sha256


def test_streamed_with_a_validation_split(local):
    splits = Hub(local, streaming=True, validation_split="test", validation_documents=2).load()
    assert contents(splits.validation) == ["held out"] * 2
    assert sorted(contents(splits.train)) == sorted(TEXTS)


@pytest.mark.parametrize("stop", [3, 4, 15, 22])
def test_streamed_training_data_resumes(local, stop):
    def stream():
        return Hub(local, streaming=True, validation_documents=5, shuffle_block=4).load().train

    first = stream()
    documents = iter(first)
    list(islice(documents, stop))
    state, rest = first.state_dict(), list(documents)
    again = stream()
    again.load_state_dict(state)
    assert list(again) == rest
    assert len(rest) == 35 - stop


@pytest.mark.parametrize("streaming", [False, True])
def test_arguments_reach_datasets(calls, streaming):
    hub = Hub("org/name", name="en", revision="abc", validation_split="validation", streaming=streaming)
    splits = hub.load()
    options = {"name": "en", "revision": "abc", "streaming": streaming}
    assert calls == [
        ("org/name", {**options, "split": "train"}),
        ("org/name", {**options, "split": "validation"}),
    ]
    assert splits.info.details["revision"] == "abc"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("argument", ["split", "validation_split"])
def test_unknown_split(local, streaming, argument):
    with pytest.raises(ValueError, match=r"cannot read split='dev' of path=.*test"):
        Hub(local, streaming=streaming, **{argument: "dev"}).load()


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_column(local, streaming):
    with pytest.raises(ValueError, match=r"text_column='body' is not in .*\['text'\]"):
        Hub(local, text_column="body", streaming=streaming).load()


def test_missing_data_set(tmp_path):
    with pytest.raises(FileNotFoundError):
        Hub(str(tmp_path / "nowhere")).load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation_fraction": 1.5}, "validation_fraction=1.5"),
        ({"validation_documents": 0}, "validation_documents=0"),
        ({"shuffle_block": 0}, "shuffle_block=0"),
        ({"validation_split": "train"}, "validation_split='train'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Hub("org/name", **arguments)


def test_the_local_folder_is_what_datasets_reads(local):
    assert load_dataset(local, split="train").num_rows == 40
