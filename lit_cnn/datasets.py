"""Where images come from: an `ImageSet` gives images as (H, W, C) uint8 arrays, labels, class names and a digest.

`load_image_set` is the door. Three sources for now: scikit-learn's digits (embedded in a dependency), Fashion-MNIST's
IDX files, and a folder of images with one sub-folder per class.
"""

import gzip
import hashlib
import struct
import urllib.error
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lit_cnn.errors import UsageError
from lit_cnn.file_hashes import default_cache_file, hash_files

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".pgm", ".ppm", ".gif"})
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


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

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the sorted (relative path, class name, SHA-256 of the image's bytes)."""
        return self.digest_of(np.arange(len(self.labels)))

    def digest_of(self, indices: np.ndarray) -> str:
        """Returns the digest of a part of the images; it does not depend on their order."""
        rows = (f"{self.paths[i]}\t{self.class_names[self.labels[i]]}\t{self.hashes[i]}\n" for i in indices)
        return hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()


def load_image_set(name: str, root: Path | None = None, in_channels: int | None = None) -> ImageSet:
    """Reads an image set.

    Args:
        name: `digits`, `fashion_mnist` or `image_folder`.
        root: The folder to read; needed by `image_folder`, optional for `fashion_mnist`, refused by `digits`.
        in_channels: 1 or 3: what images are converted to; by default what the source has (3 for `image_folder`).

    Raises:
        UsageError: If the source is not there or holds nothing to train on.
    """
    if name == "digits":
        if root is not None:
            raise UsageError(f"--data.root {root}: digits are part of scikit-learn and take no folder; leave it out")
        image_set = load_digits()
    elif name == "fashion_mnist":
        image_set = load_fashion_mnist(root)
    elif name == "image_folder":
        if root is None:
            raise UsageError("--data.root: image_folder needs a folder with one sub-folder of images per class")
        return load_image_folder(root, in_channels or 3)
    else:
        raise UsageError(f"--data.dataset {name}: choose digits, fashion_mnist or image_folder")
    return _gray_to_rgb(image_set) if in_channels == 3 else image_set


def load_digits() -> ImageSet:
    """Returns the 1,797 handwritten digits inside scikit-learn: 8x8 px, gray, ten classes, no prescribed split."""
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    array = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return _from_arrays("digits", "sklearn.datasets.load_digits", array, digits.target, tuple("0123456789"), {})


def load_fashion_mnist(root: Path | None = None) -> ImageSet:
    """Reads Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 gray images of 28x28 px, ten classes.

    Args:
        root: Folder with the four IDX files, plain or .gz; by default where Debian's package
            dataset-fashion-mnist puts them, and failing that torchvision's download.

    Raises:
        UsageError: If a file is missing or is not IDX, or the download cannot be reached.
    """
    folder = _fashion_mnist_folder() if root is None else root
    parts = []
    for prefix in ("train", "t10k"):
        images = read_idx(_plain_or_gz(folder, f"{prefix}-images-idx3-ubyte"), num_dimensions=3)
        labels = read_idx(_plain_or_gz(folder, f"{prefix}-labels-idx1-ubyte"), num_dimensions=1)
        if len(images) != len(labels):
            raise UsageError(f"--data.root {folder}: {prefix} has {len(images)} images but {len(labels)} labels")
        parts.append((images, labels))
    (train_images, train_labels), (test_images, test_labels) = parts
    array = np.concatenate([train_images, test_images])[..., None]
    labels = np.concatenate([train_labels, test_labels])
    if labels.max() >= len(FASHION_MNIST_CLASSES):
        raise UsageError(f"--data.root {folder}: a label is {labels.max()}, Fashion-MNIST has 0 to 9")
    num_train = len(train_labels)
    splits = {"train": np.arange(num_train), "test": np.arange(num_train, len(labels))}
    return _from_arrays("fashion_mnist", str(folder), array, labels, FASHION_MNIST_CLASSES, splits)


def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """Reads a file of unsigned bytes in IDX, the format of LeCun's MNIST page; a name ending in .gz is unpacked.

    Raises:
        UsageError: If the file is not such a file or is cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"--data.root: {path} cannot be read ({error}); put a whole copy there") from error
    header = 4 + 4 * num_dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, num_dimensions)):
        raise UsageError(f"--data.root: {path} is not an IDX file of {num_dimensions}-dimensional bytes")
    shape = struct.unpack(f">{num_dimensions}I", content[4:header])
    if len(content) - header != int(np.prod(shape, dtype=np.int64)):
        raise UsageError(f"--data.root: {path} holds {len(content) - header} bytes of data but its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_image_folder(root: Path, in_channels: int = 3) -> ImageSet:
    """Reads a folder of images: `root/CLASS/…`, or `root/{train,val,test}/CLASS/…` where the split is given.

    The class order is that of the sorted names in train (or in `root`). Hidden files and folders are passed over.

    Raises:
        UsageError: If the folder is missing or empty, has a single class, a class without images, or a class in val or
            test that train lacks.
    """
    if not root.is_dir():
        raise UsageError(f"--data.root {root}: no such folder; give a folder with one sub-folder of images per class")
    split_folders = _split_folders(root)
    class_names = _class_names(split_folders.get("train", root), root)
    files: list[Path] = []
    labels: list[int] = []
    splits: dict[str, np.ndarray] = {}
    for split, folder in (split_folders or {"": root}).items():
        start = len(files)
        _refuse_unknown_classes(folder, class_names)
        for label, class_name in enumerate(class_names):
            found = _image_files(folder / class_name)
            if not found and split in ("", "train"):
                raise UsageError(f"--data.root {root}: class folder {folder / class_name} holds no images")
            files += found
            labels += [label] * len(found)
        if split and start == len(files):
            raise UsageError(f"--data.root {root}: {folder} holds no images; fill it, or take it away to have it drawn")
        if split:
            splits[split] = np.arange(start, len(files))
    return ImageSet(
        name=root.resolve().name,
        source=str(root.resolve()),
        images=FileImages(files, in_channels),
        labels=np.array(labels, np.int64),
        class_names=class_names,
        paths=[file.relative_to(root).as_posix() for file in files],
        hashes=hash_files(files),
        in_channels=in_channels,
        splits=splits,
    )


def read_image(path: Path, in_channels: int) -> np.ndarray:
    """Decodes one image file, turned upright by its EXIF orientation.

    Args:
        path: Any file that Pillow reads; 16-bit gray is scaled to 8 bits, not clipped.
        in_channels: 1 (gray) or 3 (RGB).

    Returns:
        `(H, W, in_channels)` uint8.

    Raises:
        UsageError: If the file is truncated or no image; the message names it.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image).astype(np.uint32) // 257).clip(0, 255).astype(np.uint8))
            array = np.asarray(image.convert("L" if in_channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: this image cannot be decoded ({error}); mend it or take it away") from error
    return array[..., None] if array.ndim == 2 else array


def list_images(folder: Path) -> list[Path]:
    """Returns all image files at and below a folder, sorted.

    Raises:
        UsageError: If there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UsageError(f"--folder {folder}: no such folder; give a folder of images")
    files = _image_files(folder)
    if not files:
        raise UsageError(f"--folder {folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def _from_arrays(
    name: str,
    source: str,
    array: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    splits: dict[str, np.ndarray],
) -> ImageSet:
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


def _gray_to_rgb(image_set: ImageSet) -> ImageSet:
    from dataclasses import replace

    array = np.repeat(image_set.images.array, 3, axis=-1)  # type: ignore[attr-defined]
    return replace(image_set, images=ArrayImages(array), in_channels=3)


def _fashion_mnist_folder() -> Path:
    if FASHION_MNIST_FOLDER.is_dir():
        return FASHION_MNIST_FOLDER
    from torchvision.datasets import FashionMNIST

    cache = default_cache_file().parent
    try:
        FashionMNIST(str(cache), download=True)
    except (RuntimeError, urllib.error.URLError, OSError) as error:
        raise UsageError(
            f"--data.root: Fashion-MNIST is not in {FASHION_MNIST_FOLDER} and cannot be downloaded; install Debian's "
            "package dataset-fashion-mnist or give the folder of the four IDX files"
        ) from error
    return cache / "FashionMNIST" / "raw"


def _plain_or_gz(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise UsageError(f"--data.root {folder}: holds neither {name} nor {name}.gz; give the folder of the four IDX files")


def _split_folders(root: Path) -> dict[str, Path]:
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        folders = [root / name for name in names if (root / name).is_dir()]
        if len(folders) > 1:
            raise UsageError(
                f"--data.root {root}: {folders[0].name}/ and {folders[1].name}/ both say {split}; keep one"
            )
        if folders:
            found[split] = folders[0]
    return found if "train" in found else {}


def _class_names(folder: Path, root: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not names:
        raise UsageError(f"--data.root {root}: {folder} is empty; it needs one sub-folder of images per class")
    if len(names) == 1:
        raise UsageError(f"--data.root {root}: a single class ({names[0]}); a classifier needs two or more sub-folders")
    return names


def _refuse_unknown_classes(folder: Path, class_names: tuple[str, ...]) -> None:
    here = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if unknown := sorted(here - set(class_names)):
        raise UsageError(f"--data.root: {folder / unknown[0]} is a class that train lacks; add it there or remove it")


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
