"""Which samples a process reads, in which order, and where it stands."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from longspan.data.packing import Sample


class SequenceSampler(DistributedSampler):
    """Keys (epoch, index) of packed sequences for one process of a distributed training.

    The dataset itself draws the order of an epoch, so that the keys simply count: process `rank` of
    `world_size` reads `rank`, `rank + world_size`, and so on. All processes read equally many, so that none
    waits for another; the few sequences beyond that are left out of the epoch.

    It is a `DistributedSampler` so that trainers leave it in place.

    Args:
        dataset: the packed sequences, for `len`.
        rank, world_size: this process.
        multiple: the number of samples a process is a multiple of this: its batch size where incomplete
            batches are left out.
        limit: at most so many sequences over all processes; None: all.
        advancing: whether epochs differ: True for training; validation always reads epoch 0.

    Raises:
        ValueError: if there are too few sequences for one of `multiple` a process.

    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        rank: int = 0,
        world_size: int = 1,
        multiple: int = 1,
        limit: int | None = None,
        advancing: bool = True,
    ) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)
        sequences = len(dataset)  # pyright: ignore[reportArgumentType]
        available = sequences if limit is None else min(limit, sequences)
        self.num_samples = available // (world_size * multiple) * multiple
        self.total_size = self.num_samples * world_size
        self.advancing = advancing
        if self.num_samples == 0:
            raise ValueError(
                f"{available} packed sequences are too few for {world_size} process(es) of {multiple} each; "
                "choose a smaller seq_len or batch_size, or more data"
            )

    def set_epoch(self, epoch: int) -> None:
        """Order of the next iteration; of no effect where epochs do not differ."""
        if self.advancing:
            self.epoch = epoch

    def __iter__(self) -> "SequenceIterator":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Keys of one epoch."""
        return SequenceIterator(self)


class SequenceIterator(Iterator[tuple[int, int]]):
    """One epoch's keys; its state resumes it, in a fresh process too."""

    def __init__(self, sampler: SequenceSampler) -> None:
        self.sampler = sampler
        self.yielded = 0
        # Trainers make the iterator first and tell the epoch afterwards: it counts from the first key on.
        self.epoch: int | None = None

    def __next__(self) -> tuple[int, int]:
        if self.yielded >= self.sampler.num_samples:
            raise StopIteration
        if self.epoch is None:
            self.epoch = self.sampler.epoch
        key = (self.epoch, self.sampler.rank + self.yielded * self.sampler.num_replicas)
        self.yielded += 1
        return key

    def state_dict(self) -> dict[str, Any]:
        """The epoch and how many of its keys were given out."""
        epoch = self.sampler.epoch if self.epoch is None else self.epoch
        return {"epoch": epoch, "yielded": self.yielded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there; from the end of an epoch, at the beginning of the next."""
        epoch, yielded = state["epoch"], state["yielded"]
        if yielded >= self.sampler.num_samples:
            epoch, yielded = epoch + 1, 0
        self.epoch, self.yielded = epoch, yielded
        self.sampler.set_epoch(epoch)
