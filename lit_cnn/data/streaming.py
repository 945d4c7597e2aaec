"""The order of an epoch that reads shards one after the other: a function of (seed, epoch), asked for at any place.

The shards are shuffled, then the images of each block of them among each other. So a machine has two blocks of shards
at a time, the one that is read and the next. What is held in memory is the order of the shards and of one block: it
does not grow with the number of images, and neither does the time until the first batch.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import size_in_words
from lit_cnn.core.randomness import generator
from lit_cnn.data.image_set import ImageSet, SomeImages, SpanImages
from lit_cnn.data.remote.shards import ShardImages
from lit_cnn.data.splits import Splits

BLOCK_BYTES = 4e9
"""Of the shards whose images are shuffled among each other. The order is a function of the shards, not of the machine:
a run that is resumed where there is more room goes on in the same order."""


class StreamedOrder:
    """An epoch's order of n positions, as an array that is made where it is looked at: `order[start:end]`.

    Args:
        seed: The training seed.
        epoch: The epoch.
        starts: `(S + 1,)` int64: the images of shard s are `starts[s]` to `starts[s + 1]`, shard by shard.
        block: Shards whose images are shuffled among each other.
        members: `(n,)` the position of each of these images; by default they are in order already.
    """

    def __init__(
        self, seed: int, epoch: int, starts: np.ndarray, block: int, members: np.ndarray | None = None
    ) -> None:
        self.seed = seed
        self.epoch = epoch
        self.starts = starts
        self.block = block
        self.members = members
        self.shards = generator("shards", seed, epoch).permutation(len(starts) - 1)
        sizes = np.diff(starts)[self.shards]
        self._ends = np.cumsum(np.add.reduceat(sizes, np.arange(0, len(sizes), block)))
        self._kept: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, which: slice) -> np.ndarray:
        """Returns a part of the order, `(m,)` int64."""
        start, end, step = which.indices(len(self))
        first, last = np.searchsorted(self._ends, [start, max(start, end - 1)], side="right")
        parts = [self._block(number) for number in range(int(first), min(int(last) + 1, len(self._ends)))]
        before = int(self._ends[first - 1]) if first else 0
        found = np.concatenate(parts) if parts else np.empty(0, np.int64)
        return found[start - before : end - before : step]

    def block_at(self, place: int) -> int:
        """Returns in which block a place of the order is."""
        return int(np.searchsorted(self._ends, place, side="right"))

    def shards_of(self, block: int) -> np.ndarray:
        """Returns the shards of a block, in no order; none of a block that there is not."""
        return self.shards[block * self.block : (block + 1) * self.block]

    def _block(self, number: int) -> np.ndarray:
        if self._kept[0] != number:
            ranges = [np.arange(self.starts[shard], self.starts[shard + 1]) for shard in self.shards_of(number)]
            drawn = generator("block", self.seed, self.epoch, number).permutation(np.concatenate(ranges))
            self._kept = number, drawn if self.members is None else np.asarray(self.members[drawn], np.int64)
        return self._kept[1]


@dataclass(frozen=True)
class Stream:
    """How training reads shards, whatever the seed and the epoch.

    Attributes:
        starts: As for `StreamedOrder`.
        members: As for `StreamedOrder`.
        block: As for `StreamedOrder`.
        fetch_ahead: Brings shards here before they are needed; None where they are on disk.
    """

    starts: np.ndarray
    members: np.ndarray
    block: int
    fetch_ahead: Callable[[Sequence[int]], None] | None = None

    def order(self, seed: int, epoch: int) -> StreamedOrder:
        """Returns the order of an epoch."""
        return StreamedOrder(seed, epoch, self.starts, self.block, self.members)

    def prepare(self, order: StreamedOrder, block: int) -> None:
        """Brings the shards of a block here, and then those of the next, while training goes on."""
        if self.fetch_ahead is not None:
            following = order.shards_of(block + 1)
            if not len(following):
                following = self.order(order.seed, order.epoch + 1).shards_of(0)
            self.fetch_ahead([*order.shards_of(block).tolist(), *following.tolist()])


def stream_of(image_set: ImageSet, splits: Splits, is_streamed: bool) -> Stream | None:
    """Returns how training reads its shards one after the other; None if it does not.

    Of shards at an address, it is also said which are brought here as a whole.

    Args:
        image_set: The images.
        splits: Who is in train, val and test.
        is_streamed: Whether training is to read them so.

    Raises:
        UsageError: If it is, and the images are in no shards, or the cache has no room for two blocks of them.
    """
    images: Sequence[np.ndarray] = image_set.images
    own = np.arange(len(image_set.labels))
    while isinstance(images, SomeImages):
        own, images = images.indices[own], images.images
    if not isinstance(images, SpanImages) or len(images.file_sizes) < 2:
        if is_streamed:
            reason = "reads tar shards one after the other, and these images are in none or in a single one"
            raise UsageError("sampler", "streamed", reason, "give `sampler=shuffled`, or several shards")
        return None
    if isinstance(images, ShardImages):
        for part in (splits.val, splits.test, *([splits.train] if is_streamed else [])):
            images.want(own[part])
        if not is_streamed and not images.fit:
            print(
                f"lit-cnn: warning: {images.in_words()}: each image is asked for by itself; `sampler=streamed` reads "
                "whole shards, one after the other",
                file=sys.stderr,
            )
    if not is_streamed:
        return None
    sizes = images.file_sizes
    block = min(len(sizes), max(2, int(BLOCK_BYTES / np.mean(sizes))))
    if isinstance(images, ShardImages) and not images.fit:
        needed = sum(sorted(sizes)[-2 * block :])
        if needed > images.shards.cache.max_bytes:
            reason = f"has two times {block} shards here at a time, {size_in_words(needed)}: {images.in_words()}"
            raise UsageError("sampler", "streamed", reason, f"give `cache_gb={needed / 1e9:.3g}` or more")
    shard_of = images.places[own[splits.train], 0]
    ahead = images.fetch_ahead if isinstance(images, ShardImages) else None
    return Stream(*grouped(shard_of, len(sizes)), block, ahead)


def grouped(shard_of: np.ndarray, num_shards: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `starts` and `members` of a `StreamedOrder`.

    Args:
        shard_of: `(n,)` the shard of each position.
        num_shards: How many there are.
    """
    starts = np.concatenate([[0], np.cumsum(np.bincount(shard_of, minlength=num_shards))])
    return starts.astype(np.int64), np.argsort(shard_of, kind="stable")
