"""Synthetic tasks that separate patterns: copying, a needle, associative recall, ListOps."""

from longspan.data.tasks.base import Task, TaskText
from longspan.data.tasks.copying import Copy
from longspan.data.tasks.listops import ListOps
from longspan.data.tasks.needle import Needle
from longspan.data.tasks.recall import Recall
from longspan.data.tasks.sequences import TaskSequences, split_of
from longspan.data.tasks.tokenizer import TaskTokenizer, tokenizer_of

__all__ = [
    "Copy",
    "ListOps",
    "Needle",
    "Recall",
    "Task",
    "TaskSequences",
    "TaskText",
    "TaskTokenizer",
    "split_of",
    "tokenizer_of",
]
