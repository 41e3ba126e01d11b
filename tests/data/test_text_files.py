import json

import pytest
from datasets import Dataset

from longspan.data import TextFiles


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def texts(tmp_path):
    for i in range(12):
        path = tmp_path / "texts" / f"part{i % 3}" / f"{i:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"document {i}\n\n  with naïve lines\nand an end" + "\n" * (i % 2))
    return tmp_path / "texts"


def contents(documents):
    return sorted(document.text.decode() for document in documents)


def test_a_text_file_is_a_document(texts):
    splits = TextFiles([f"{texts}/**/*.txt"], validation_fraction=0.2).load()
    expected = sorted(path.read_text() for path in texts.rglob("*.txt"))
    assert contents([*splits.train, *splits.validation]) == expected
    assert len(splits.validation) == 2
    assert splits.info.train.documents == 10


def test_files_matched_twice_are_read_once(texts):
    splits = TextFiles([f"{texts}/**/*.txt", f"{texts}/part0/*.txt"]).load()
    assert len(splits.train) + len(splits.validation) == 12


def test_the_account_does_not_depend_on_the_folder(texts, tmp_path):
    first = TextFiles([f"{texts}/**/*.txt"]).load().info
    texts.rename(tmp_path / "elsewhere")
    second = TextFiles([f"{tmp_path}/elsewhere/**/*.txt"]).load().info
    assert (first.train, first.validation) == (second.train, second.validation)


def test_validation_files(texts):
    splits = TextFiles([f"{texts}/part[01]/*"], validation_files=[f"{texts}/part2/*"]).load()
    assert contents(splits.validation) == sorted(path.read_text() for path in texts.glob("part2/*"))
    assert len(splits.train) == 8


@pytest.mark.parametrize("format", ["auto", "json"])
def test_json_lines(tmp_path, format):
    rows = [{"body": f"row {i}", "number": i} for i in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = TextFiles([str(path)], format=format, text_column="body", validation_fraction=0.2).load()
    assert contents([*splits.train, *splits.validation]) == sorted(row["body"] for row in rows)


def test_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    Dataset.from_dict({"text": [f"row {i}" for i in range(20)]}).to_parquet(path)
    splits = TextFiles([str(path)]).load()
    assert contents([*splits.train, *splits.validation]) == sorted(f"row {i}" for i in range(20))


def test_missing_column(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "a"}\n{"body": "b"}\n')
    with pytest.raises(ValueError, match=r"text_column='text' is not in .*its columns are \['body'\]"):
        TextFiles([str(path)]).load()


def test_column_without_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": 1}\n{"text": 2}\n')
    with pytest.raises(ValueError, match="holds int, not text"):
        TextFiles([str(path)]).load()


def test_glob_without_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"files: '.*\*\.txt' matches no file"):
        TextFiles([f"{tmp_path}/*.txt"]).load()


def test_one_document_cannot_be_split(texts):
    with pytest.raises(ValueError, match=r"holds 1 document\(s\).*name validation_files"):
        TextFiles([f"{texts}/part0/00.txt"]).load()


def test_a_file_on_both_sides(texts):
    with pytest.raises(ValueError, match="both hold"):
        TextFiles([f"{texts}/**/*.txt"], validation_files=[f"{texts}/part0/*.txt"]).load()


def test_files_of_several_formats(texts):
    (texts / "rows.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"several|formats \['json', 'text'\]"):
        TextFiles([f"{texts}/**/*.txt", f"{texts}/*.jsonl"]).load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"files": []}, "at least one path or glob"),
        ({"files": "a.txt"}, "must be lists"),
        ({"files": ["a"], "format": "csv"}, "format='csv'"),
        ({"files": ["a"], "validation_fraction": 0.0}, "validation_fraction=0.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TextFiles(**arguments)
