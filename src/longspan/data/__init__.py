"""Corpora, tokenizers, packing into long sequences, and objectives."""

from longspan.data.corpus import Corpus, CorpusInfo, Document, DocumentStream, SplitInfo, Splits
from longspan.data.hub import Hub
from longspan.data.objective import IGNORE, CausalLanguageModeling, MaskedLanguageModeling, Objective
from longspan.data.packing import PackedDocuments, Sample
from longspan.data.python_source import PythonSource
from longspan.data.state_of_the_union import StateOfTheUnion
from longspan.data.stream import PackedStream
from longspan.data.text_files import TextFiles
from longspan.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer

__all__ = [
    "IGNORE",
    "ByteTokenizer",
    "CausalLanguageModeling",
    "Corpus",
    "CorpusInfo",
    "Document",
    "DocumentStream",
    "Hub",
    "HuggingFaceTokenizer",
    "MaskedLanguageModeling",
    "Objective",
    "PackedDocuments",
    "PackedStream",
    "PythonSource",
    "Sample",
    "SplitInfo",
    "Splits",
    "StateOfTheUnion",
    "TextFiles",
    "Tokenizer",
]
