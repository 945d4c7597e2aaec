"""`ImageSet`: what every source of images gives, and its classes put into the order asked for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from lit_cnn.datasets.decoding import decode_image, read_image
from lit_cnn.errors import UsageError


class ArrayImages(Sequence[np.ndarray]):
    """Images in memory.

    Args:
        array: `(N, H, W, C)` uint8.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's overloads: an int or a slice
        return self.array[index]


class FileImages(Sequence[np.ndarray]):
    """Images decoded from files when asked for.

    Args:
        files: One file per image.
        in_channels: 1 (gray) or 3 (RGB): what every image is converted to.
    """

    def __init__(self, files: Sequence[Path], in_channels: int) -> None:
        self.files = files
        self.in_channels = in_channels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's overloads: an int or a slice
        return read_image(self.files[index], self.in_channels)


class SpanImages(Sequence[np.ndarray]):
    """Images decoded, when asked for, from spans of bytes inside large files.

    Args:
        source: What an error calls the whole.
        files: The large files.
        places: `(N, 3)` int64: of each image the index of its file, its offset there and its size, in bytes.
        paths: What an error calls each image.
        in_channels: 1 (gray) or 3 (RGB): what every image is converted to.
    """

    def __init__(
        self, source: str, files: Sequence[Path], places: np.ndarray, paths: Sequence[str], in_channels: int
    ) -> None:
        self.source = source
        self.files = files
        self.places = places
        self.paths = paths
        self.in_channels = in_channels

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's overloads: an int or a slice
        number, offset, size = (int(value) for value in self.places[index])
        # Opened anew each time, a tenth of a millisecond at most: no handle is shared between worker processes.
        with self.files[number].open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        return decode_image(content, self.in_channels, f"{self.source}, {self.paths[index]}")


@dataclass(frozen=True)
class ImageSet:
    """A labelled set of images.

    Attributes:
        name: What runs call it, for example `digits`.
        source: Where it was read from, for the run's record.
        images: `images[i]` is an `(H, W, C)` uint8 array.
        labels: `(N,)` int64, indices into `class_names`.
        class_names: In label order.
        paths: One relative path per image; unique.
        hashes: SHA-256 of each image's bytes (of its file, where it has one).
        splits: Indices of the splits that the source itself prescribes, by `train`, `val`, `test`; may be empty.
        in_channels: 1 (gray) or 3 (RGB).
        groups: Of each image the name of what it must stay with when a split is drawn (a patient, a scene), empty if it
            stands alone; None if the source knows no groups.
    """

    name: str
    source: str
    images: Sequence[np.ndarray]
    labels: np.ndarray
    class_names: tuple[str, ...]
    paths: Sequence[str]
    hashes: Sequence[str]
    in_channels: int
    splits: dict[str, np.ndarray] = field(default_factory=dict)
    groups: Sequence[str] | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the sorted (relative path, class name, SHA-256 of the image's bytes)."""
        return self.digest_of(np.arange(len(self.labels)))

    def digest_of(self, indices: np.ndarray) -> str:
        """Returns the digest of a part of the images; it does not depend on their order."""
        rows = (f"{self.paths[i]}\t{self.class_names[self.labels[i]]}\t{self.hashes[i]}\n" for i in indices)
        return hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()


def from_arrays(
    name: str,
    source: str,
    array: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    splits: dict[str, np.ndarray],
) -> ImageSet:
    """Returns the image set of `(N, H, W, C)` uint8 images in memory and `(N,)` labels."""
    return ImageSet(
        name=name,
        source=source,
        images=ArrayImages(np.ascontiguousarray(array)),
        labels=labels.astype(np.int64),
        class_names=class_names,
        paths=[f"{index:05d}" for index in range(len(array))],
        hashes=[hashlib.sha256(image.tobytes()).hexdigest() for image in array],
        in_channels=array.shape[-1],
        splits=splits,
    )


def gray_to_rgb(image_set: ImageSet) -> ImageSet:
    """Repeats the one channel of gray images in memory three times."""
    array = np.repeat(image_set.images.array, 3, axis=-1)  # type: ignore[attr-defined]
    return replace(image_set, images=ArrayImages(array), in_channels=3)


def class_order(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the distinct names in the order that labels take: by number if all are whole numbers, else sorted."""
    distinct = set(names)
    if all(name.isascii() and name.isdigit() for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def with_class_names(image_set: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """Puts the classes into a given order.

    Names that hold all of the source's own, in any order and perhaps with more, are the new order. Where the source has
    numbers only (0, 1, 2, …), other names are taken as those of 0, 1, 2 and so on.

    Raises:
        UsageError: If a name comes twice, or a class of the source is not among the names.
    """
    given, own = list(class_names), list(image_set.class_names)
    shown = ", ".join(given[:5]) + (", …" if len(given) > 5 else "")
    if len(set(given)) < len(given):
        raise UsageError(f"--data.class_names [{shown}]: a name comes twice; give each class once")
    missing = [name for name in own if name not in given]
    if not missing:
        place = {name: label for label, name in enumerate(given)}
        labels = np.array([place[name] for name in own], np.int64)[image_set.labels]
        return replace(image_set, labels=labels, class_names=tuple(given))
    if own == [str(label) for label in range(len(own))] and len(given) >= len(own):
        return replace(image_set, class_names=tuple(given))
    raise UsageError(f"--data.class_names [{shown}]: lacks {missing[0]}, a class of the data; name all {len(own)}")


def check_classes(image_set: ImageSet) -> None:
    """Refuses what no classifier can learn from.

    Raises:
        UsageError: If there is a single class, or a prescribed val or test has a class that the prescribed train lacks.
    """
    names, labels = image_set.class_names, image_set.labels
    if len(names) < 2:
        raise UsageError(f"--data.root: a single class ({''.join(names)}); a classifier needs two or more")
    for split in ("val", "test"):
        if "train" not in image_set.splits or split not in image_set.splits:
            continue
        unknown = np.setdiff1d(labels[image_set.splits[split]], labels[image_set.splits["train"]])
        if len(unknown):
            raise UsageError(
                f"--data.root: {split} has {names[unknown[0]]}, a class that train lacks; add it there or remove it"
            )
