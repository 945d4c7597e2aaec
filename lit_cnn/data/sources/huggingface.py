"""Data sets that Hugging Face's `datasets` saved on disk: Arrow files, mapped into memory and not read into it."""

import errno
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import with_progress
from lit_cnn.core.words import and_more
from lit_cnn.data.findings import Finding
from lit_cnn.data.image_set import EncodedImages, ImageSet, class_order, split_ranges, without_unlabelled
from lit_cnn.data.index_cache import hexadecimal, index_file, remembered, sha256_row
from lit_cnn.data.sources.walk import is_inside
from lit_cnn.data.split_names import SPLIT_FOLDERS, split_of_name

_NO_IMAGE = "holds no image and refers to none that is there"


class ArrowImages(EncodedImages):
    """Images in rows of Arrow files.

    Args:
        parts: Data sets of one column each, undecoded images, one part after the other.
        column: The name of that column.
        paths: What an error calls each image.
        in_channels: 1 (gray) or 3 (RGB): what every image is converted to.
        folder: Where files must lie that a row refers to instead of holding them; None: anywhere.
    """

    def __init__(
        self, parts: Sequence[Any], column: str, paths: Sequence[str], in_channels: int, folder: Path | None
    ) -> None:
        super().__init__(in_channels)
        self.parts = parts
        self.column = column
        self.paths = paths
        self.folder = folder
        self.has_read_files = False  # whether a row referred to one
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> BinaryIO:
        """Returns an image's file.

        Raises:
            UsageError: If the row is empty, or refers to a file that is not there or lies elsewhere.
        """
        return io.BytesIO(self.content(index))

    def name(self, index: int) -> str:
        """Returns the split and the row of an image."""
        return self.paths[index]

    def content(self, index: int) -> bytes:
        """Returns an image's file as bytes; see `open`."""
        content = self.content_if_there(index)
        if content is None:
            # All such rows share the digest of no bytes, and what is said of it: so the cause is without their names.
            cause = FileNotFoundError(errno.ENOENT, _NO_IMAGE)
            raise UsageError("root", None, f"{self.paths[index]} {_NO_IMAGE}") from cause
        return content

    def content_if_there(self, index: int) -> bytes | None:
        """Returns an image's file as bytes; None if the row is empty, or refers to a file that is not there.

        Raises:
            UsageError: If it lies elsewhere.
        """
        part = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[part]) + len(self.parts[part])
        cell = self.parts[part][row][self.column] or {}
        if cell.get("bytes"):
            return bytes(cell["bytes"])
        self.has_read_files |= bool(cell.get("path"))
        if self.folder is not None and cell.get("path"):
            self._require_inside(index, cell["path"], self.folder)
        try:
            return Path(cell["path"]).read_bytes()
        except (KeyError, TypeError, OSError):
            return None

    def _require_inside(self, index: int, path: str, folder: Path) -> None:
        if not is_inside(os.path.realpath(path), os.path.realpath(folder)):
            raise UsageError(
                "root",
                None,
                f"{self.paths[index]} refers to {path}, a file outside of {folder}",
                "save the data set with its images inside, or say `outside_root=True` if you trust it",
            )


def load_hf_disk(
    root: Path, in_channels: int = 3, columns: Mapping[str, str] | None = None, outside_root: bool = False
) -> ImageSet:
    """Reads a `Dataset` or `DatasetDict` that `save_to_disk` wrote; nothing of it is unpickled.

    It needs one column of the feature `Image`, or of the bytes of image files, and one of `ClassLabel`, whose names are
    the classes, in its order, or of text or whole numbers, whose classes are in the order of `class_order`. A
    `DatasetDict` prescribes the splits that it has; its names may be those of `split_of_name`. Rows without a label are
    left out, and are a finding; so are those without an image.

    Args:
        root: The folder; it becomes the set's name.
        in_channels: 1 (gray) or 3 (RGB): what images are converted to.
        columns: Which column is the `image` or the `label`, where there are several.
        outside_root: Whether rows may refer to files outside of the folder; see `load_manifest`.

    Raises:
        UsageError: If the package `datasets` is not installed, or the folder holds no such data set.
    """
    parts = _parts(root)
    image_column, label_column = _columns(root, next(iter(parts.values())).features, columns or {})
    class_names, known = _labels(root, parts, label_column)
    paths: list[str] = []
    for split, part in parts.items():
        paths += [f"{split}/{row:08d}" if split else f"{row:08d}" for row in range(len(part))]
    folder = None if outside_root else root
    images = ArrowImages(_undecoded(parts, image_column), image_column, paths, in_channels, folder)
    files = [Path(file["filename"]) for part in parts.values() for file in part.cache_files]
    index = index_file(f"hf_disk 2 {image_column}", files)
    digests = remembered(index, lambda: {"digests": _digests(images)})["digests"]
    findings = tuple(_without_image(paths, digests))
    if findings or images.has_read_files:  # a file that a row refers to may be there, or be another, tomorrow
        index.unlink(missing_ok=True)
    image_set = ImageSet(
        name=root.resolve().name,
        source=str(root.resolve()),
        images=images,
        labels=known.clip(0),
        class_names=class_names,
        paths=paths,
        hashes=hexadecimal(digests),
        in_channels=in_channels,
        splits=split_ranges({split: len(part) for split, part in parts.items()}),
        findings=findings,
    )
    return without_unlabelled(image_set, np.flatnonzero(known < 0), f"give it a {label_column}, or take its row away")


def _parts(root: Path) -> dict[str, Any]:
    """Returns the data sets by split, or a single one by the empty name."""
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        raise UsageError("dataset", "hf_disk", "needs the package datasets: pip install datasets") from error
    if not root.is_dir():
        raise UsageError("root", root, "no such folder", "give one that save_to_disk wrote")
    try:
        loaded = load_from_disk(str(root))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError("root", root, f"holds no data set of save_to_disk ({error})") from error
    if not isinstance(loaded, DatasetDict):
        return {"": loaded}
    parts = {split_of_name(name) or name: part for name, part in loaded.items()}
    if len(parts) < len(loaded) or "train" not in parts or not set(parts) <= set(SPLIT_FOLDERS):
        raise UsageError("root", root, f"has the splits {', '.join(loaded)}", "keep train, and one val and one test")
    return parts


def _columns(root: Path, features: Mapping[str, Any], given: Mapping[str, str]) -> tuple[str, str]:
    """Returns the columns of images and of labels: those given, else the only ones that can be.

    Raises:
        UsageError: If there is none, or there are several.
    """
    from datasets import ClassLabel, Image

    if unknown := sorted(set(given) - {"image", "label"}):
        raise UsageError("columns", unknown[0], "name the columns of image and label")
    images = {name: isinstance(feature, Image) for name, feature in features.items() if _holds_images(feature)}
    labels = {name: isinstance(feature, ClassLabel) for name, feature in features.items() if _holds_labels(feature)}
    return (
        _column(root, "image", ("image",), images, "of images", given),
        _column(root, "label", ("label", "class"), labels, "of classes, text or whole numbers", given),
    )


def _labels(root: Path, parts: Mapping[str, Any], column: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the classes, and the label of every row over all parts, `(N,)` int64, -1 for none."""
    feature = next(iter(parts.values())).features[column]
    cells: list[Any] = []
    for split, part in parts.items():
        if part.features.get(column) != feature:
            raise UsageError("root", root, f"{split} has other classes in {column} than the first split")
        cells += part[column][:]
    if hasattr(feature, "names"):
        return tuple(feature.names), np.array([-1 if cell is None else cell for cell in cells], np.int64)
    # A number below 0 stands for no label, as it does in a ClassLabel.
    texts = ["" if cell is None or (isinstance(cell, int) and cell < 0) else str(cell) for cell in cells]
    class_names = class_order([text for text in texts if text.strip()])
    place = {name: label for label, name in enumerate(class_names)}
    return class_names, np.array([place.get(text, -1) for text in texts], np.int64)


def _column(
    root: Path, role: str, usual: Sequence[str], there: Mapping[str, bool], kind: str, given: Mapping[str, str]
) -> str:
    """Returns the column given; else the one of its own feature, else the one of a usual name, else the only one.

    Args:
        root: For the error.
        role: `image` or `label`.
        usual: What it may be called.
        there: The columns that it can be -> whether they have the feature for it.
        kind: What these are.
        given: The columns given, by role.

    Raises:
        UsageError: If there is none, or there are several.
    """
    own = [name for name, has_feature in there.items() if has_feature]
    found = own or [name for name in usual if name in there][:1] or list(there)
    if role in given:
        found = [name for name in there if name == given[role]]
    if len(found) != 1:
        listed = ", ".join(found or there) or "none"
        raise UsageError("root", root, f"columns {kind}: {listed}", f"there must be one; say `columns.{role}=NAME`")
    return found[0]


def _holds_images(feature: Any) -> bool:
    """Whether a column is of the feature `Image`, or of bytes, alone or in a struct, which can be."""
    from datasets import Image, Value

    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, Image) or (isinstance(feature, Value) and "binary" in feature.dtype)


def _holds_labels(feature: Any) -> bool:
    from datasets import ClassLabel, Value

    is_name = isinstance(feature, Value) and ("string" in feature.dtype or "int" in feature.dtype)
    return isinstance(feature, ClassLabel) or is_name


def _undecoded(parts: Mapping[str, Any], column: str) -> list[Any]:
    from datasets import Image

    return [
        part.with_format(None).select_columns([column]).cast_column(column, Image(decode=False))
        for part in parts.values()
    ]


def _digests(images: ArrowImages) -> np.ndarray:
    """Returns the SHA-256 of each image, `(N, 32)` uint8; where there is none, that of no bytes."""
    contents = (images.content_if_there(index) or b"" for index in range(len(images)))
    return np.stack(
        [sha256_row(content) for content in with_progress(contents, len(images), "hashing images", "image")]
    )


def _without_image(paths: Sequence[str], digests: np.ndarray) -> Iterator[Finding]:
    rows = np.flatnonzero((digests == sha256_row(b"")).all(1)).tolist()
    if rows:
        message = f"{paths[rows[0]]} {_NO_IMAGE}{and_more(len(rows))}; take its row away"
        yield Finding("no_image", "error", message, tuple((paths[row],) for row in rows))
