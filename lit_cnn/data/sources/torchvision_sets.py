"""torchvision's data sets of labelled images, by name."""

import contextlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import with_progress
from lit_cnn.data.decoding import DECODING_ERRORS, TOO_MANY_PIXELS, pixel_limit, to_array
from lit_cnn.data.image_set import ImageSet, split_ranges
from lit_cnn.data.index_cache import hexadecimal, index_file, remembered, sha256_row

PREFIX = "torchvision/"
_SPLITS = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}


class TorchvisionImages(Sequence[np.ndarray]):
    """Images that torchvision's data sets give when asked for, one set after the other.

    Args:
        parts: Data sets of (PIL image, int).
        paths: What an error calls each image.
        in_channels: 1 (gray) or 3 (RGB): what every image is converted to.
    """

    def __init__(self, parts: Sequence[Any], paths: Sequence[str], in_channels: int) -> None:
        self.parts = parts
        self.paths = paths
        self.in_channels = in_channels
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's overloads: an int or a slice
        return to_array(self.pair(int(index))[0], self.in_channels)

    def pair(self, index: int) -> tuple[Image.Image, int]:
        """Returns an image as torchvision gives it, and its label.

        Raises:
            UsageError: If the image cannot be decoded, or it is no pair of a PIL image and a whole number.
        """
        part = int(np.searchsorted(self._ends, index, side="right"))
        try:
            pair = self.parts[part][index - int(self._ends[part]) + len(self.parts[part])]
        except DECODING_ERRORS as error:
            is_bomb = isinstance(error, TOO_MANY_PIXELS)
            reason = f"it has more pixels than `max_pixels={pixel_limit()}`" if is_bomb else error
            raise UsageError("root", None, f"{self.paths[index]} cannot be decoded ({reason})", "mend it") from error
        if not (isinstance(pair[0], Image.Image) and isinstance(pair[1], int | np.integer)):
            raise UsageError("dataset", f"{PREFIX}{self.paths[index]}", "is no pair of an image and a class's number")
        return pair[0], int(pair[1])


def load_torchvision(name: str, root: Path, in_channels: int | None = None) -> ImageSet:
    """Reads one of torchvision's data sets; downloads it into `root` where it is not there.

    The splits train (or trainval), val and test are those that torchvision has for it. It decodes the images too, so
    EXIF and 16 bits are its affair. An image's hash is that of its decoded pixels; the first reading decodes all of
    them once for it, later ones remember. CIFAR's files are pickles, which torchvision unpickles after it has compared
    their MD5 with the published one.

    Args:
        name: `torchvision/` and the name of a class of `torchvision.datasets`, such as `torchvision/CIFAR10`.
        root: The folder that torchvision is given.
        in_channels: 1 (gray) or 3 (RGB); by default what the first image has.

    Raises:
        UsageError: If there is no such data set of labelled images, or it is neither there nor can be downloaded.
    """
    parts = _open_splits(name, _builder(name), root)
    paths = [
        f"{name.removeprefix(PREFIX)}/{split or 'all'}/{row:06d}"
        for split, part in parts.items()
        for row in range(len(part))
    ]
    if not all(len(part) for part in parts.values()):
        raise UsageError("root", root, f"{name} has no images there", "give the folder that has them")
    images = TorchvisionImages(list(parts.values()), paths, in_channels or 3)
    if in_channels is None and images.pair(0)[0].mode in ("1", "L"):
        images.in_channels = 1
    files = sorted(path for path in root.rglob("*") if path.is_file())
    found = remembered(index_file(f"{name} {list(parts)}", files), lambda: _scan(images))
    return ImageSet(
        name=name.removeprefix(PREFIX).lower(),
        source=f"torchvision.datasets.{name.removeprefix(PREFIX)} in {root.resolve()}",
        images=images,
        labels=found["labels"],
        class_names=_class_names(next(iter(parts.values())), int(found["labels"].max()) + 1),
        paths=paths,
        hashes=hexadecimal(found["digests"]),
        in_channels=images.in_channels,
        splits=split_ranges({split: len(part) for split, part in parts.items()}),
    )


def _builder(name: str) -> Callable[..., Any]:
    from torchvision import datasets

    builder: Any = getattr(datasets, name.removeprefix(PREFIX), None)
    base = datasets.VisionDataset
    is_one = inspect.isclass(builder) and issubclass(builder, base) and builder is not base
    if not is_one or "root" not in inspect.signature(builder).parameters:
        raise UsageError(
            "dataset", name, "torchvision has no such set of labelled images", f"give one such as {PREFIX}CIFAR10"
        )
    return builder


def _open_splits(name: str, builder: Callable[..., Any], root: Path) -> dict[str, Any]:
    """Returns the data sets by split; by the empty name, where torchvision prescribes no split."""
    parameters = inspect.signature(builder).parameters
    if "train" in parameters:
        return {split: _open(name, builder, root, train=split == "train") for split in ("train", "test")}
    if "split" not in parameters:
        return {"": _open(name, builder, root)}
    parts = {}
    for split, names in _SPLITS.items():
        for candidate in names:
            try:
                parts[split] = _open(name, builder, root, split=candidate)
                break
            except _NoSuchSplit:
                continue
    if "train" not in parts:
        raise UsageError("dataset", name, "torchvision has no split train of it", "give another set")
    return parts


class _NoSuchSplit(Exception):
    """torchvision knows no split of that name."""


def _open(name: str, builder: Callable[..., Any], root: Path, **options: Any) -> Any:
    try:
        return builder(root, **options)
    except ValueError as error:
        if "Unknown value" in str(error):
            raise _NoSuchSplit from error
        reason = str(error)
    except (RuntimeError, OSError, ImportError, TypeError) as error:
        reason = str(error)
    if "download" not in inspect.signature(builder).parameters:
        raise UsageError("root", root, f"holds no {name} ({reason})", "torchvision does not download it")
    try:
        # What it prints belongs to the progress, not to the result.
        with contextlib.redirect_stdout(sys.stderr):
            return builder(root, download=True, **options)
    except (RuntimeError, OSError, ValueError, ImportError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            "root", root, f"holds no {name} and it cannot be downloaded ({reason})", "give the folder that has it"
        ) from error


def _scan(images: TorchvisionImages) -> dict[str, np.ndarray]:
    labels, digests = [], []
    for index in with_progress(range(len(images)), len(images), "hashing images", "image"):
        image, label = images.pair(index)
        labels.append(label)
        digests.append(sha256_row(np.asarray(image).tobytes()))
    return {"labels": np.array(labels, np.int64), "digests": np.stack(digests)}


def _class_names(part: Any, num_classes: int) -> tuple[str, ...]:
    names = getattr(part, "classes", None) or getattr(part, "categories", None) or ()
    if len(names) < num_classes:
        return tuple(str(label) for label in range(num_classes))
    # ImageNet gives several words for a class, and two classes of one word.
    words = [name if isinstance(name, str) else ", ".join(name) for name in names]
    unique = len(set(words)) == len(words)
    return tuple(words if unique else (f"{label} {word}" for label, word in enumerate(words)))
