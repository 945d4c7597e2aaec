"""`ImageSet`: what every source of images gives, and its classes put into the order asked for."""

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import hash_files
from lit_cnn.core.file_names import as_text
from lit_cnn.core.words import and_more
from lit_cnn.data.decoding import decode_file, open_file
from lit_cnn.data.findings import ABSENT, Finding
from lit_cnn.data.pixel_values import AS_IS, PixelOptions


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


class EncodedImages(Sequence[np.ndarray], ABC):
    """Images decoded when asked for, from the bytes of image files wherever these lie.

    Args:
        in_channels: 1 (gray) or 3 (RGB): what every image is converted to.
        pixels: What values of more than 8 bits, and transparent pixels, become.
    """

    def __init__(self, in_channels: int, pixels: PixelOptions = AS_IS) -> None:
        self.in_channels = in_channels
        self.pixels = pixels

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's overloads: an int or a slice
        return self.decode(int(index))

    def decode(self, index: int, reduction: Callable[[int, int], int] | None = None) -> np.ndarray:
        """Returns an image as `(H, W, in_channels)` uint8; see `decode_file`."""
        with self.open(index) as file:
            return decode_file(file, self.in_channels, self.name(index), reduction, self.pixels)

    @abstractmethod
    def open(self, index: int) -> BinaryIO:
        """Opens an image's file, wherever it lies, for reading.

        Raises:
            UsageError: If it cannot be read; the message names it.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """Returns what an error calls an image."""


class FileImages(EncodedImages):
    """Images in files of their own.

    Args:
        files: One file per image.
        in_channels: 1 (gray) or 3 (RGB): what every image is converted to.
        pixels: What values of more than 8 bits, and transparent pixels, become.
    """

    def __init__(self, files: Sequence[Path | str], in_channels: int, pixels: PixelOptions = AS_IS) -> None:
        super().__init__(in_channels, pixels)
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int) -> BinaryIO:
        """Opens an image's file."""
        return open_file(self.files[index])

    def name(self, index: int) -> str:
        """Returns the path of an image's file."""
        return as_text(str(self.files[index]))


OpenFiles = Callable[[Sequence[Path | str], int], tuple[EncodedImages, list[str]]]
"""From files and `in_channels` to the images in them and the SHA-256 of each."""


def files_on_disk(files: Sequence[Path | str], in_channels: int) -> tuple[EncodedImages, list[str]]:
    """Returns the images in files, and the SHA-256 of each; see `hash_files`."""
    return FileImages(files, in_channels), hash_files(files)


class SpanImages(EncodedImages):
    """Images in spans of bytes inside large files.

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
        super().__init__(in_channels)
        self.source = source
        self.files = files
        self.places = places
        self.paths = paths

    def __len__(self) -> int:
        return len(self.places)

    @property
    def file_sizes(self) -> list[int]:
        """Bytes of each large file."""
        return [os.path.getsize(file) for file in self.files]

    def open(self, index: int) -> BinaryIO:
        """Returns a span's bytes as a file."""
        number, offset, size = (int(value) for value in self.places[index])
        # Opened anew each time, a tenth of a millisecond at most: no handle is shared between worker processes.
        with open_file(self.files[number]) as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

    def name(self, index: int) -> str:
        """Returns the whole's name and the image's in it."""
        return f"{self.source}, {self.paths[index]}"


class SomeImages(EncodedImages):
    """Some of the images of a larger sequence.

    Args:
        images: All of them.
        indices: `(N,)` which.
    """

    def __init__(self, images: EncodedImages, indices: np.ndarray) -> None:
        super().__init__(images.in_channels, images.pixels)
        self.images = images
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def open(self, index: int) -> BinaryIO:
        """Opens an image's file."""
        return self.images.open(int(self.indices[index]))

    def name(self, index: int) -> str:
        """Returns what the larger sequence calls an image."""
        return self.images.name(int(self.indices[index]))


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
        findings: What was odd or wrong while it was read.
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
    findings: tuple[Finding, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the sorted (relative path, class name, SHA-256 of the image's bytes)."""
        return self.digest_of(np.arange(len(self.labels)))

    def digest_of(self, indices: np.ndarray) -> str:
        """Returns the digest of a part of the images; it does not depend on their order."""
        return digest_of_rows((self.paths[i], self.class_names[self.labels[i]], self.hashes[i]) for i in indices)


def digest_of_rows(rows: Iterable[tuple[str, str, str]]) -> str:
    """Returns the digest of images, in any order, by path, class name and SHA-256; see `ImageSet.digest`."""
    lines = (f"{path}\t{class_name}\t{sha256}\n" for path, class_name, sha256 in rows)
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


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


def split_ranges(sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Returns the indices of each split, where one follows the other; a part with an empty name is no split."""
    ends = np.cumsum([0, *sizes.values()])
    ranges = zip(sizes, ends[:-1], ends[1:], strict=True)
    return {split: np.arange(start, end) for split, start, end in ranges if split}


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
        UsageError: If a name comes twice or is no text, or a class of the source is not among the names.
    """
    given, own = [_class_name(name) for name in class_names], list(image_set.class_names)
    shown = ", ".join(given[:5]) + (", …" if len(given) > 5 else "")
    if len(set(given)) < len(given):
        raise UsageError("class_names", f"[{shown}]", "a name comes twice", "give each class once")
    missing = [name for name in own if name not in given]
    if not missing:
        place = {name: label for label, name in enumerate(given)}
        labels = np.array([place[name] for name in own], np.int64)[image_set.labels]
        return replace(image_set, labels=labels, class_names=tuple(given))
    if own == [str(label) for label in range(len(own))] and len(given) >= len(own):
        return replace(image_set, class_names=tuple(given))
    raise UsageError("class_names", f"[{shown}]", f"lacks {missing[0]}, a class of the data", f"name all {len(own)}")


def _class_name(name: Any) -> str:
    if isinstance(name, str):
        return as_text(name)
    if isinstance(name, Integral) and not isinstance(name, bool):
        return str(name)
    raise UsageError("class_names", f"[{name}]", f"{name} is {type(name).__name__} and no text", f"quote it: '{name}'")


def without_images(image_set: ImageSet, unwanted: np.ndarray) -> ImageSet:
    """Returns the set without some of its images, and without the findings that none but them are not there.

    Args:
        image_set: All images, encoded.
        unwanted: `(n,)` their indices.
    """
    assert isinstance(image_set.images, EncodedImages)
    kept = np.setdiff1d(np.arange(len(image_set.labels)), unwanted)
    groups = image_set.groups
    gone = {image_set.paths[index] for index in unwanted}
    return replace(
        image_set,
        images=SomeImages(image_set.images, kept),
        labels=image_set.labels[kept],
        paths=[image_set.paths[index] for index in kept],
        hashes=[image_set.hashes[index] for index in kept],
        splits={split: np.flatnonzero(np.isin(kept, members)) for split, members in image_set.splits.items()},
        groups=None if groups is None else [groups[index] for index in kept],
        findings=tuple(
            finding
            for finding in image_set.findings
            if finding.kind not in ABSENT or not all(gone.issuperset(case) for case in finding.cases)
        ),
    )


def without_unlabelled(image_set: ImageSet, unlabelled: np.ndarray, way_out: str) -> ImageSet:
    """Returns the set without the images that have no label; a finding names them.

    Args:
        image_set: All images, encoded, those without a label under any.
        unlabelled: `(n,)` indices of those; may be empty.
        way_out: What is to be done about them.

    Raises:
        UsageError: If no image has a label.
    """
    if not len(unlabelled):
        return image_set
    message = f"{image_set.paths[unlabelled[0]]} has no label{and_more(len(unlabelled))}; {way_out}"
    if len(unlabelled) == len(image_set.labels):
        raise UsageError("root", image_set.source, message)
    left = without_images(image_set, unlabelled)
    cases = tuple((image_set.paths[index],) for index in unlabelled)
    return replace(left, findings=(*left.findings, Finding("no_label", "error", message, cases)))


def check_image_set(image_set: ImageSet) -> None:
    """Refuses what no classifier can learn from, or be judged by.

    Raises:
        UsageError: If reading found an error, there is a single class, or a prescribed split has a class that the
            prescribed train lacks or tears a group apart.
    """
    for finding in (*image_set.findings, *class_findings(image_set)):
        if finding.severity == "error":
            way_out = "; lit-cnn check-data lists all" if len(finding.cases) > 1 else ""
            raise UsageError("root", image_set.source, f"{finding.message}{way_out}")


def class_findings(image_set: ImageSet) -> Iterator[Finding]:
    """Yields what is wrong with the classes and their splits: a single one, classes that train lacks, torn groups."""
    names, labels, splits = image_set.class_names, image_set.labels, image_set.splits
    if len(names) < 2:
        yield Finding(
            "single_class", "error", f"a single class ({''.join(names)}); a classifier needs two or more", (names,)
        )
    for split in ("val", "test"):
        if "train" in splits and split in splits:
            unknown = np.setdiff1d(labels[splits[split]], labels[splits["train"]])
            for name in (names[label] for label in unknown):
                message = f"{split} has {name}, a class that train lacks; add it there or remove it"
                yield Finding("class_not_in_train", "error", message, ((name,),))
    if image_set.groups is not None:
        split_of: dict[str, tuple[str, int]] = {}
        torn = set()
        for split, members in splits.items():
            for index in members:
                group = image_set.groups[index]
                first_split, first = split_of.setdefault(group, (split, int(index)))
                if group and first_split != split and group not in torn:
                    torn.add(group)
                    message = (
                        f"group {group} is in {first_split} and in {split} ({image_set.paths[index]}); move it into "
                        "one, or leave the split out to have it drawn"
                    )
                    yield Finding(
                        "group_leakage", "error", message, ((image_set.paths[first], image_set.paths[index]),)
                    )
