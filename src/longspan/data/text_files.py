"""Local text, JSON lines or parquet files, by glob."""

from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

from longspan.data.corpus import (
    Corpus,
    CorpusInfo,
    Document,
    SplitInfo,
    Splits,
    check_fraction,
    split_documents,
)
from longspan.data.rows import documents_of, text_of

# Suffix -> format; compression suffixes are looked through, every other suffix is text.
_FORMATS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
_COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}


class TextFiles(Corpus):
    """Local files, read through Hugging Face `datasets`.

    A text file is a document; of JSON lines and parquet files each row is one. Validation is held out by
    document, or has files of its own.

    Args:
        files: paths or globs, `**` included.
        validation_files: paths or globs; empty: validation is held out from `files`.
        format: "text", "json", "parquet", or "auto" to tell by the suffix.
        text_column: column of the text in JSON lines and parquet files.
        validation_fraction: part of the bytes held out at most, in (0, 1).
        split_seed: chooses what is held out; apart from the seed of the training, so that runs compare.

    Raises:
        ValueError: if `files` is empty, the format unknown or the fraction out of range.

    """

    def __init__(
        self,
        files: Sequence[str],
        validation_files: Sequence[str] = (),
        format: str = "auto",
        text_column: str = "text",
        validation_fraction: float = 0.05,
        split_seed: int = 0,
    ) -> None:
        if isinstance(files, str) or isinstance(validation_files, str):
            raise ValueError(
                f"files={files!r}, validation_files={validation_files!r} must be lists of paths or globs"
            )
        if not files:
            raise ValueError("files=[] must name at least one path or glob")
        if format not in ("auto", "text", "json", "parquet"):
            raise ValueError(f"format={format!r} must be one of 'auto', 'text', 'json', 'parquet'")
        check_fraction(validation_fraction)
        self.files = tuple(files)
        self.validation_files = tuple(validation_files)
        self.format = format
        self.text_column = text_column
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed

    def load(self) -> Splits:
        """Read all files.

        Raises:
            FileNotFoundError: if a glob matches no file.
            ValueError: if the files are of several formats, a file is in both splits, the text column is
                missing, or there is one document alone and no validation file.

        """
        paths = _expand("files", self.files)
        documents = self._read(paths)
        if self.validation_files:
            held_out = _expand("validation_files", self.validation_files)
            if both := sorted(set(paths) & set(held_out)):
                raise ValueError(
                    f"files and validation_files both hold {both[0]!r}; a document must be on one side"
                )
            train, validation = documents, self._read(held_out)
        else:
            if len(documents) < 2:
                raise ValueError(
                    f"files={list(self.files)!r} holds {len(documents)} document(s): none can be held out; "
                    "name validation_files"
                )
            train, validation = split_documents(documents, self.validation_fraction, self.split_seed)
        info = CorpusInfo(
            "text_files", SplitInfo.of(train), SplitInfo.of(validation), {"files": list(self.files)}
        )
        return Splits(train, validation, info)

    def _read(self, paths: Sequence[str]) -> list[Document]:
        from datasets import load_dataset

        kind = self._format_of(paths)
        # Rows are read in the order of the files, and a text file is kept as it is.
        options: dict[str, Any] = {"sample_by": "document"} if kind == "text" else {}
        rows: Any = load_dataset(kind, data_files={"train": list(paths)}, split="train", **options)
        text = text_of("text" if kind == "text" else self.text_column, rows.column_names, str(paths[0]))
        return documents_of(rows, text)

    def _format_of(self, paths: Sequence[str]) -> str:
        if self.format != "auto":
            return self.format
        formats = {_FORMATS.get(_suffix(path), "text") for path in paths}
        if len(formats) > 1:
            raise ValueError(
                f"format='auto' found files of the formats {sorted(formats)}; narrow the globs to one, "
                "or say which with `format`"
            )
        return formats.pop()


def _suffix(path: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    while suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _expand(argument: str, patterns: Sequence[str]) -> list[str]:
    """Absolute paths of the files that the globs match, each once, in the order of their names."""
    paths: set[str] = set()
    for pattern in patterns:
        found = [path for path in glob(pattern, recursive=True) if Path(path).is_file()]
        if not found:
            raise FileNotFoundError(f"{argument}: {pattern!r} matches no file (from {Path.cwd()})")
        paths.update(str(Path(path).resolve()) for path in found)
    return sorted(paths)
