"""Which images a step trains on: a pure function of (seed, epoch, step).

A training item is asked for as (epoch, index): the epoch travels with the index because a persistent worker never sees
an attribute that is set on its copy of the data set later.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.randomness import balanced_order, epoch_permutation
from lit_cnn.data.streaming import Stream, StreamedOrder

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Sampler = Literal["shuffled", "balanced", "streamed"]
Key = tuple[int, int]

_EVAL_BATCH_SIZE = 256


def eval_batches(items: Any) -> list[Any]:
    """Returns a list or an array in slices of 256, as evaluations take their images."""
    return [items[start : start + _EVAL_BATCH_SIZE] for start in range(0, len(items), _EVAL_BATCH_SIZE)]


def next_batch(trainer: "Trainer | None", batches_per_epoch: int) -> tuple[int, int]:
    """Returns (epoch, batch) at which training goes on, from Lightning's restored counters."""
    if trainer is None:
        return 0, 0
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    if epochs.started == epochs.processed:  # between two epochs
        return epochs.processed, 0
    if batches.processed >= batches_per_epoch:
        return epochs.processed + 1, 0
    return epochs.processed, batches.processed


def share_of(indices: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Returns what one of several devices evaluates."""
    return indices[rank::world_size]


def check_shared_out(batch_size: int, devices: int) -> None:
    """Refuses a batch size of which devices have no equal shares."""
    if batch_size % devices:
        raise UsageError("batch_size", batch_size, f"give a multiple of the {devices} devices")


class TrainBatches:
    """Batch sampler: the batches of an epoch as lists of (epoch, position), from any batch on.

    With several devices the global batch is fixed first and then shared out evenly, so the images of a step do not
    depend on how many devices there are; only an epoch's last, smaller batch loses what cannot be shared, fewer images
    than there are devices.

    Args:
        num_images: Images in an epoch.
        batch_size: Global batch size; the last, smaller batch of an epoch is kept.
        seed: The training seed.
        first_epoch: The epoch that the first pass is for.
        first_batch: The batch at which that first pass starts: those before it were trained on before a resume.
        rank: This process's number.
        world_size: The number of processes.
        labels: `(num_images,)`: give every class its equal share of an epoch; see `balanced_order`.
        views: Cycle through that many views of each image: the epoch of a key is the epoch modulo this number,
            and an image that comes again in an epoch is the same view of it.
        merges_last: Whether the last, smaller batch of an epoch joins the one before it.
        stream: Read shards one after the other; see `StreamedOrder`.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        first_epoch: int = 0,
        first_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        labels: np.ndarray | None = None,
        views: int | None = None,
        merges_last: bool = False,
        stream: Stream | None = None,
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = first_epoch
        self._start = (first_epoch, first_batch)
        self.rank = rank
        self.world_size = world_size
        self.labels = labels
        self.views = views
        self.merges_last = merges_last
        self.stream = stream
        self._num_used = num_images - num_images % batch_size % world_size
        # Lightning announces the epoch to `batch_sampler.sampler`, not to the batch sampler.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next pass; Lightning calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self._num_used, self.batch_size)
        return whole + (rest > 0 and not (self.merges_last and whole))

    @property
    def sizes(self) -> list[int]:
        """The images that this process gets in each batch of an epoch."""
        starts = [batch * self.batch_size for batch in range(len(self))]
        return [(end - start) // self.world_size for start, end in pairwise([*starts, self._num_used])]

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        order: np.ndarray | StreamedOrder
        if self.stream is not None:
            order, block = self.stream.order(self.seed, epoch), -1
        elif self.labels is None:
            order = epoch_permutation(self.seed, epoch, self.num_images)
        else:
            order = balanced_order(self.seed, epoch, self.labels)
        first = self._start[1] if epoch == self._start[0] else 0
        for batch in range(first, len(self)):
            start = batch * self.batch_size
            positions = order[start : self._num_used if batch == len(self) - 1 else start + self.batch_size]
            if isinstance(order, StreamedOrder) and self.stream and (now := order.block_at(start)) != block:
                self.stream.prepare(order, block := now)
            own = positions[self.rank :: self.world_size].tolist()
            if self.views is None:
                yield [(epoch, position) for position in own]
            else:
                yield [(epoch % self.views, position % self.num_images) for position in own]
