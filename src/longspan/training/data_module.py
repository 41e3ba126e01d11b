"""The data of a run: batches made from a corpus, a tokenizer and an objective."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from longspan.data.corpus import Corpus, CorpusInfo, Document, DocumentStream, SplitInfo
from longspan.data.entropy import byte_entropy
from longspan.data.objective import Objective
from longspan.data.packing import PackedDocuments, encode_document
from longspan.data.sampler import SequenceSampler
from longspan.data.stream import PackedStream
from longspan.data.tasks import Task, TaskSequences
from longspan.data.tokenizer import Tokenizer
from longspan.training.callbacks.budget import find_budget

# Validation is the same in every run: its order and its masks do not depend on the seed of the training.
_VALIDATION_SEED = 0


class DataModule(LightningDataModule):
    """Batches for training and validation; see `Objective.collate` for what a batch holds.

    The batches of a training are a function of the corpus, the tokenizer, the objective, `seq_len`, the batch
    size times the number of processes, and `seed`; workers change nothing. Checkpoints hold the position of
    the training loader, so that a resumed run sees the batches of the uninterrupted one.

    Args:
        corpus: the source of documents; or a task, which generates its texts.
        tokenizer: turns documents into tokens; a task brings one.
        objective: turns packed sequences into batches.
        seq_len: tokens a sequence.
        batch_size: sequences a batch, on each process.
        validation_batch_size: sequences a validation batch, on each process; None: as `batch_size`.
        validation_sequences: the most sequences of the validation documents, over all processes; None: all.
            A task has no end: it needs a number.
        document_mask: keep attention inside documents; see `Objective.collate`.
        seed: of the order of the data and of the masks.
        num_workers: processes that make batches; 0: the training process. A streamed corpus is read in order
            by one process: 0 or 1.
        pin_memory: have batches in page-locked memory, for GPUs.

    Raises:
        ValueError: if a number is out of range, the objective cannot work with the tokenizer, or the task not
            with the tokenizer, the length or the other arguments.

    """

    supplied_by_run = ("tokenizer", "objective")

    def __init__(
        self,
        corpus: Corpus | Task,
        tokenizer: Tokenizer,
        objective: Objective,
        seq_len: int = 1024,
        batch_size: int = 8,
        validation_batch_size: int | None = None,
        validation_sequences: int | None = None,
        document_mask: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        lowest = {
            "seq_len": (seq_len, 1),
            "batch_size": (batch_size, 1),
            "validation_batch_size": (validation_batch_size, 1),
            "validation_sequences": (validation_sequences, 1),
            "seed": (seed, 0),
            "num_workers": (num_workers, 0),
        }
        for argument, (value, least) in lowest.items():
            if value is not None and value < least:
                raise ValueError(f"data.{argument}={value!r} must be at least {least}")
        objective.check(tokenizer)
        if isinstance(corpus, Task):
            corpus.check_tokenizer(tokenizer)
            corpus.check_length(seq_len + objective.lookahead)
            if document_mask:
                raise ValueError(f"data.document_mask=True: the task {corpus.name} has no documents")
            if validation_sequences is None:
                raise ValueError(
                    f"data.validation_sequences=None must be a number: the task {corpus.name} has no end"
                )
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.objective = objective
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.validation_batch_size = batch_size if validation_batch_size is None else validation_batch_size
        self.validation_sequences = validation_sequences
        self.document_mask = document_mask
        self.seed = seed
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._train: PackedDocuments | TaskSequences | DocumentStream | None = None
        self._validation: PackedDocuments | TaskSequences
        self._byte_entropy: float | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenize the corpus; a second call does nothing.

        Raises:
            ValueError: if a side of the corpus does not fill one sequence, or a stream has several workers.

        """
        if self._train is not None:
            return
        if isinstance(self.corpus, Task):
            self._set_up_task(self.corpus)
            return
        splits = self.corpus.load()
        self._corpus_info = splits.info
        self._byte_entropy = byte_entropy(document.text for document in splits.validation)
        self._validation = self._pack(splits.validation, "validation", _VALIDATION_SEED)
        if isinstance(splits.train, Sequence):
            self._train = self._pack(splits.train, "training", self.seed)
        elif self.num_workers > 1:
            raise ValueError(
                f"data.num_workers={self.num_workers} must be 0 or 1: a streamed corpus is read in order "
                "by one process"
            )
        else:
            self._train = splits.train.reseeded(self.seed)

    def _set_up_task(self, task: Task) -> None:
        assert self.validation_sequences is not None
        unknown = SplitInfo(None, None, None, None)
        details = {"generated": True, "seed": self.seed, **task.arguments}
        self._corpus_info = CorpusInfo(task.name, unknown, unknown, details)
        lookahead = self.objective.lookahead
        self._validation = TaskSequences(
            task, "validation", self.seq_len, lookahead, _VALIDATION_SEED, self.validation_sequences
        )
        self._train = TaskSequences(task, "train", self.seq_len, lookahead, self.seed)

    def _pack(self, documents: Sequence[Document], side: str, seed: int) -> PackedDocuments:
        encodings = [encode_document(document.text, self.tokenizer) for document in documents]
        try:
            return PackedDocuments(encodings, self.seq_len, self.objective.lookahead, seed)
        except ValueError as error:
            raise ValueError(f"{side} data: {error}") from error

    def train_dataloader(self) -> StatefulDataLoader:
        """Batches of training; with state_dict and load_state_dict for exact resumption.

        Raises:
            ValueError: if an epoch has no complete batch, or a stream meets a trainer without max_steps.

        """
        self.setup()
        if isinstance(self._train, PackedDocuments | TaskSequences):
            sampler = SequenceSampler(self._train, self._rank, self._world_size, multiple=self.batch_size)
            dataset = self._train
        else:
            assert self._train is not None
            sampler = None
            dataset = PackedStream(
                self._train.shard(self._rank, self._world_size),
                self.tokenizer,
                self.seq_len,
                self.objective.lookahead,
                rank=self._rank,
                world_size=self._world_size,
                num_samples=self._stream_length(),
            )
        return StatefulDataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=self._collate(self.seed),
            drop_last=True,
            pin_memory=self.pin_memory,
        )

    def val_dataloader(self) -> DataLoader:
        """Batches of validation, the same in every epoch and in every run."""
        self.setup()
        sampler = SequenceSampler(
            self._validation, self._rank, self._world_size, limit=self.validation_sequences, advancing=False
        )
        return DataLoader(
            self._validation,
            batch_size=self.validation_batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=self._collate(_VALIDATION_SEED),
            pin_memory=self.pin_memory,
        )

    def _collate(self, seed: int) -> Callable[[list[Any]], dict[str, Tensor]]:
        return partial(
            self.objective.collate, tokenizer=self.tokenizer, document_mask=self.document_mask, seed=seed
        )

    def _stream_length(self) -> int | None:
        """Return the samples that the whole training reads from a stream; None without a trainer.

        The loader needs a length: without one Lightning reads a batch ahead, which a checkpoint would skip.
        """
        if self.trainer is None:
            return None
        batches = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        if self.trainer.max_steps < 0:
            if find_budget(self.trainer) is None:
                raise ValueError("a streamed corpus has no epochs: set trainer.max_steps, or a budget")
            # More than any run reads within its budget.
            batches = 2**40
        limit = self.trainer.limit_train_batches
        if limit != 1.0 and limit < batches:
            raise ValueError(
                f"trainer.limit_train_batches={limit!r} would read the beginning of a streamed corpus again "
                "and again: set trainer.max_steps alone"
            )
        return batches * self.batch_size

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special ones included."""
        return self.tokenizer.vocab_size

    @property
    def cells(self) -> tuple[dict[str, float], ...]:
        """The cells of a task, in the order of the numbers in a batch's `cells`; empty for a corpus."""
        return self.corpus.cells() if isinstance(self.corpus, Task) else ()

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all processes and accumulated batches."""
        accumulated = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        return self.seq_len * self.batch_size * self._world_size * accumulated

    @property
    def corpus_info(self) -> CorpusInfo:
        """Account of the corpus: documents, bytes and sha256 of both sides."""
        self.setup()
        return self._corpus_info

    @property
    def byte_entropy(self) -> float | None:
        """Entropy of the byte frequencies of the validation documents, in nats a byte; None for a task."""
        self.setup()
        return self._byte_entropy
