"""What networks say of the images of a split, a few images at a time: however many there are, few are in memory."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.words import counted
from lit_cnn.evaluation.combining import Outputs
from lit_cnn.evaluation.multi_crop import average_probabilities
from lit_cnn.evaluation.predict import Member, progress_bar
from lit_cnn.evaluation.view_logits import ViewLogits

Reader = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
"""From a range of images to one network's probabilities and logits of them, `(n, K)` float64 each; see `outputs_of`."""

_MOST_OUTPUTS = 32 << 20  # bytes of the probabilities of all networks that are looked at at once
_MOST_LOGITS = 64 << 20  # bytes of the logits of all views of one network
_MOST_KEPT = 512 << 20  # bytes of probabilities that stay in memory between several looks


def outputs_of(member: Member, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities and logits of a member, `(N, K)` float64: the means over its views.

    Args:
        member: The network of a tracked run.
        logits: `(V, N, K)`, its logits.

    Raises:
        UsageError: If a logit is not finite; the message names the run.
    """
    try:
        return average_probabilities(logits), logits.mean(axis=0, dtype=np.float64)
    except UsageError as error:
        assert member.run is not None
        raise UsageError("runs", member.run.run_id, f"{member.run.name}: {error.reason}", error.remedy) from error


def reader_of(member: Member, logits: ViewLogits, num_views: int, places: np.ndarray | None = None) -> Reader:
    """Returns what reads a member's outputs.

    Args:
        member: The network of a tracked run.
        logits: Its logits.
        num_views: V.
        places: `(n,)` int, ascending: the images that count, where not all do.
    """

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        if places is None:
            return outputs_of(member, logits.read(num_views, start, stop))
        alone = [logits.read(num_views, place, place + 1) for place in places[start:stop]]
        return outputs_of(member, np.concatenate(alone, axis=1))

    return read


@dataclass(frozen=True, eq=False)
class SplitOutputs:
    """What M networks say of N images with the same number of views.

    Attributes:
        targets: `(N,)` int labels in [0, K).
        readers: Of each network.
        num_views: V.
        num_classes: K.
    """

    targets: np.ndarray
    readers: Sequence[Reader]
    num_views: int
    num_classes: int

    def blocks(self) -> Iterator[Outputs]:
        """Yields what they say of a few images, then of the next few, to the last."""
        most = _MOST_OUTPUTS // (8 * len(self.readers)), _MOST_LOGITS // (4 * self.num_views)
        step = max(1, min(most) // self.num_classes)
        with progress_bar(len(self.targets), f"combining, {counted(self.num_views, 'crop')}") as bar:
            for start in range(0, len(self.targets), step):
                stop = min(start + step, len(self.targets))
                found = [read(start, stop) for read in self.readers]
                yield Outputs(self.targets[start:stop], *map(np.stack, zip(*found, strict=True)))
                bar.update(stop - start)


class KeptOutputs:
    """The same for several looks: computed once, then in memory or, where that would take much, in a file.

    Args:
        outputs: What is kept; it is read to its end.
        folder: Where the file goes; it has no name there, and goes with this object. It has float32.
        has_logits: Whether logits are kept too.
    """

    def __init__(self, outputs: SplitOutputs, folder: Path, has_logits: bool) -> None:
        self.targets, self.num_classes = outputs.targets, outputs.num_classes
        self._shape = (len(outputs.readers), outputs.num_classes)
        self._has_logits = has_logits
        self._blocks: list[Outputs] = []
        self._sizes: list[int] = []
        self._file: IO[bytes] | None = None
        if 8 * len(self.targets) * outputs.num_classes * len(outputs.readers) > _MOST_KEPT:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".", suffix=".tmp")  # noqa: SIM115
        for block in outputs.blocks():
            self._keep(block)

    def __enter__(self) -> "KeptOutputs":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def blocks(self) -> Iterator[Outputs]:
        """Yields what they say of a few images, then of the next few, to the last."""
        if self._file is None:
            yield from self._blocks
            return
        self._file.seek(0)
        start = 0
        for size in self._sizes:
            targets = self.targets[start : start + size]
            yield Outputs(targets, self._read(size), self._read(size) if self._has_logits else None)
            start += size

    def _keep(self, block: Outputs) -> None:
        if self._file is None:
            self._blocks.append(block if self._has_logits else replace(block, logits=None))
            return
        self._sizes.append(len(block.targets))
        for values in (block.probabilities, block.logits if self._has_logits else None):
            if values is not None:
                self._file.write(values.astype(np.float32).data)

    def _read(self, size: int) -> np.ndarray:
        assert self._file is not None
        values = np.empty((self._shape[0], size, self._shape[1]), np.float32)
        self._file.readinto(values.data.cast("B"))  # type: ignore[attr-defined]  # BufferedRandom has it
        return values.astype(np.float64)
