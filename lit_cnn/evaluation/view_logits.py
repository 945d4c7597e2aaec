"""Logits of views: computed once, written part by part as they come, and read a few images at a time."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_cnn.evaluation.logits_file import SMALL, LogitsFile, open_logits, write_logits
from lit_cnn.evaluation.multi_crop import VIEWS, Block
from lit_cnn.evaluation.predict import (
    LOADING,
    Loading,
    Member,
    ViewImages,
    forward_batches,
    logits_of,
    store_key,
)
from lit_cnn.evaluation.stored_logits import find_stored

_MOST_IN_A_PART = 64 << 20  # bytes of float32: what an interruption costs, and what is in memory


@dataclass(frozen=True)
class ViewLogits:
    """A member's stored logits of N images; none of them is in memory.

    Attributes:
        parts: Of each block of views: the first image of each file and the file, ascending.
    """

    parts: Mapping[Block, Sequence[tuple[int, LogitsFile]]]

    def read(self, num_views: int, start: int, stop: int) -> np.ndarray:
        """Returns the logits of some images with so many views, `(V, stop - start, K)` float32.

        A row may be less a constant, which softmax does not see; see `logits_file.Halves`.
        """
        return np.concatenate([self._block(block, start, stop) for block in VIEWS[num_views]])

    def _block(self, block: Block, start: int, stop: int) -> np.ndarray:
        found = [
            file.read(max(start - first, 0), min(stop - first, file.shape[1]))
            for first, file in self.parts[block]
            if first < stop and start < first + file.shape[1]
        ]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)


@dataclass
class _Part:
    """Images `start` to `stop` of a block of views: their file, and their logits as they come."""

    block: Block
    start: int
    stop: int
    file: Path
    exact: bool
    logits: np.ndarray | None = None
    num_done: int = 0

    def add(self, positions: np.ndarray, rows: np.ndarray) -> bool:
        """Takes in those of some images `(n, V, K)` that are its own; returns whether it is complete."""
        own = (positions >= self.start) & (positions < self.stop)
        if not own.any():
            return False
        if self.logits is None:
            self.logits = np.empty((rows.shape[1], self.stop - self.start, rows.shape[2]), np.float32)
        self.logits[:, positions[own] - self.start] = rows[own].transpose(1, 0, 2)
        self.num_done += int(own.sum())
        return self.num_done == self.stop - self.start

    def write(self) -> LogitsFile:
        """Writes it, and forgets it here."""
        assert self.logits is not None
        write_logits(self.file, self.logits, self.exact)
        num_views, num_images, num_classes = self.logits.shape
        self.logits = None
        return LogitsFile(self.file, (num_views, num_images, num_classes))


def view_logits(
    member: Member,
    indices: np.ndarray,
    view_counts: Sequence[int],
    folder: Path,
    loading: Loading = LOADING,
    label: str = "",
) -> ViewLogits:
    """Returns a member's logits for each number of views, computed only where they are not stored.

    They are stored by blocks of views: 1 and 2 share the first view, 5 and 10 the first five. More than 64 MiB are
    several files, each of which is written as soon as its images have gone through the network: of an evaluation that
    was interrupted the next one finds them.

    Args:
        member: The network.
        indices: `(N,)` which images of the member's data, in the order wanted.
        view_counts: Known numbers of views, such as 1 and 10.
        folder: Where logits are stored.
        loading: How many views at a time, and how images are read.
        label: Of the progress bar.
    """
    wanted = _wanted(member, indices, view_counts, folder)
    found: dict[Block, dict[int, LogitsFile]] = {block: {} for block in wanted}
    missing: list[_Part] = []
    for block, (whole, parts) in wanted.items():
        # What earlier versions wrote is one file, however large.
        stored = find_stored(whole, open_logits, member.run_logits) if len(parts) > 1 else None
        if stored is not None:
            found[block][0] = stored
            continue
        for part in parts:
            stored = find_stored(part.file, open_logits, member.run_logits)
            if stored is None:
                missing.append(part)
            else:
                found[block][part.start] = stored
    for part in _compute(member, indices, missing, loading, label):
        found[part.block][part.start] = part.write()
        if member.run_logits is not None:
            member.run_logits.put([part.file])
    if not missing and member.run_logits is not None:
        member.run_logits.put([])
    return ViewLogits({block: sorted(files.items()) for block, files in found.items()})


def predict_views(
    member: Member,
    indices: np.ndarray,
    view_counts: Sequence[int],
    folder: Path,
    loading: Loading = LOADING,
    label: str = "",
) -> dict[int, np.ndarray]:
    """Returns a member's logits `(V, N, num_classes)` float32 for each number of views, all in memory.

    The arguments are those of `view_logits`.
    """
    found = view_logits(member, indices, view_counts, folder, loading, label)
    return {count: found.read(count, 0, len(indices)) for count in view_counts}


def are_stored(member: Member, indices: np.ndarray, num_views: int, folder: Path) -> bool:
    """Whether `view_logits` would find the logits of these images with so many views."""

    def is_there(file: Path) -> bool:
        return file.is_file() or (member.run_logits is not None and file.name in member.run_logits.names)

    wanted = _wanted(member, indices, [num_views], folder).values()
    return all(is_there(whole) or all(is_there(part.file) for part in parts) for whole, parts in wanted)


def _wanted(
    member: Member, indices: np.ndarray, view_counts: Sequence[int], folder: Path
) -> dict[Block, tuple[Path, list[_Part]]]:
    """Returns for each block of views the file that might hold all images, and the parts that do."""
    image_set, num_images = member.data.image_set, len(indices)
    listed = "\n".join(f"{image_set.paths[index]}\t{image_set.hashes[index]}" for index in indices)
    image_digest = hashlib.sha256(listed.encode()).hexdigest()
    wanted: dict[Block, tuple[Path, list[_Part]]] = {}
    for block in dict.fromkeys(block for count in view_counts for block in VIEWS[count]):
        key = store_key(member, image_digest, block)
        of_image = 4 * block.num_views * len(member.record.class_names)
        step = max(1, _MOST_IN_A_PART // of_image)
        whole = folder / f"{key}.safetensors"
        parts = [
            _Part(
                block,
                start,
                min(start + step, num_images),
                whole if step >= num_images else folder / f"{key}-{start}.safetensors",
                num_images * of_image <= SMALL,
            )
            for start in range(0, num_images, step)
        ]
        wanted[block] = whole, parts
    return wanted


def _compute(
    member: Member, indices: np.ndarray, missing: Sequence[_Part], loading: Loading, label: str
) -> Iterator[_Part]:
    """Runs the network over the images of parts; yields each part as soon as it is complete."""
    lacking: dict[int, list[Block]] = {}
    for part in missing:
        for position in range(part.start, part.stop):
            lacking.setdefault(position, []).append(part.block)
    # Images that lack the same blocks are cut and classified together.
    alike: dict[tuple[Block, ...], list[int]] = {}
    for position in sorted(lacking):
        alike.setdefault(tuple(lacking[position]), []).append(position)
    for blocks, of_blocks in alike.items():
        positions = np.array(of_blocks)
        views = ViewImages(member.data.image_set.images, indices[positions], member.record.preprocessing, blocks)
        starts, done = np.cumsum([block.num_views for block in blocks[:-1]], dtype=int), 0
        for batch in forward_batches(logits_of(member.model), views, loading, label):
            rows = batch.numpy()
            of_rows = positions[done : done + len(rows)]
            done += len(rows)
            for block, own in zip(blocks, np.split(rows, starts, axis=1), strict=True):
                yield from [part for part in missing if part.block == block and part.add(of_rows, own)]
