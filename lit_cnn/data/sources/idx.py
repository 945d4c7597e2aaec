"""IDX, the format of LeCun's MNIST page: four files, images and labels of train and test."""

import gzip
import struct
import urllib.error
import zlib
from pathlib import Path

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import default_cache_file
from lit_cnn.data.image_set import ImageSet, from_arrays

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


def load_fashion_mnist(root: Path | None = None) -> ImageSet:
    """Reads Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 gray images of 28x28 px, ten classes.

    Args:
        root: Folder with the four IDX files, plain or .gz; by default where Debian's package
            dataset-fashion-mnist puts them, and failing that torchvision's download.

    Raises:
        UsageError: If a file is missing or is not IDX, or the download cannot be reached.
    """
    folder = _fashion_mnist_folder() if root is None else root
    array, labels, splits = _read_four(folder)
    if labels.max() >= len(FASHION_MNIST_CLASSES):
        raise UsageError("root", folder, f"a label is {labels.max()}, Fashion-MNIST has 0 to 9")
    return from_arrays("fashion_mnist", str(folder), array, labels, FASHION_MNIST_CLASSES, splits)


def load_idx(root: Path) -> ImageSet:
    """Reads a folder of four IDX files, as MNIST (LeCun et al. 1998), KMNIST, EMNIST and QMNIST have them.

    The files are `[PREFIX-]train-images-idx3-ubyte`, `…-labels-idx1-ubyte`, and the same with `t10k` or `test`, plain
    or .gz. Classes are called by their numbers; those of train count. EMNIST keeps its images with x and y exchanged:
    they are given as they are stored.

    Args:
        root: The folder; it becomes the set's name.

    Raises:
        UsageError: If a file is missing, is there twice, or is not IDX.
    """
    if not root.is_dir():
        raise UsageError("root", root, "no such folder", "give the folder of the four IDX files")
    array, labels, splits = _read_four(root)
    numbers = np.unique(labels[splits["train"]])
    if unknown := sorted(set(labels.tolist()) - set(numbers.tolist())):
        raise UsageError("root", root, f"test has label {unknown[0]}, which train lacks")
    class_names = tuple(str(number) for number in numbers)
    places = np.searchsorted(numbers, labels)
    return from_arrays(root.resolve().name, str(root.resolve()), array, places, class_names, splits)


def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """Reads a file of unsigned bytes in IDX, the format of LeCun's MNIST page; a name ending in .gz is unpacked.

    Raises:
        UsageError: If the file is not such a file or is cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError("root", None, f"{path} cannot be read ({error})", "put a whole copy there") from error
    header = 4 + 4 * num_dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, num_dimensions)):
        raise UsageError("root", None, f"{path} is not an IDX file of {num_dimensions}-dimensional bytes")
    shape = struct.unpack(f">{num_dimensions}I", content[4:header])
    if len(content) - header != int(np.prod(shape, dtype=np.int64)):
        raise UsageError(
            "root", None, f"{path} holds {len(content) - header} bytes of data but its header says {shape}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _fashion_mnist_folder() -> Path:
    if FASHION_MNIST_FOLDER.is_dir():
        return FASHION_MNIST_FOLDER
    from torchvision.datasets import FashionMNIST

    cache = default_cache_file().parent
    try:
        FashionMNIST(str(cache), download=True)
    except (RuntimeError, urllib.error.URLError, OSError) as error:
        raise UsageError(
            "root",
            None,
            f"Fashion-MNIST is not in {FASHION_MNIST_FOLDER} and cannot be downloaded",
            "install Debian's package dataset-fashion-mnist or give the folder of the four IDX files",
        ) from error
    return cache / "FashionMNIST" / "raw"


def _read_four(folder: Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Returns images `(N, H, W, 1)` uint8, labels `(N,)` uint8 and the two prescribed splits."""
    parts = []
    for split, names in (("train", ("train",)), ("test", ("t10k", "test"))):
        images = read_idx(_find(folder, names, "images-idx3-ubyte"), num_dimensions=3)
        labels = read_idx(_find(folder, names, "labels-idx1-ubyte"), num_dimensions=1)
        if len(images) != len(labels):
            raise UsageError("root", folder, f"{split} has {len(images)} images but {len(labels)} labels")
        if not len(images):
            raise UsageError("root", folder, f"{split} has no images")
        parts.append((images, labels))
    (train_images, train_labels), (test_images, test_labels) = parts
    if train_images.shape[1:] != test_images.shape[1:]:
        sizes = f"{train_images.shape[1:]} px, those of test {test_images.shape[1:]}"
        raise UsageError("root", folder, f"images of train have {sizes}", "give one set's four files")
    num_train, total = len(train_labels), len(train_labels) + len(test_labels)
    splits = {"train": np.arange(num_train), "test": np.arange(num_train, total)}
    array = np.concatenate([train_images, test_images])[..., None]
    return array, np.concatenate([train_labels, test_labels]), splits


def _find(folder: Path, splits: tuple[str, ...], kind: str) -> Path:
    wanted = [f"{split}-{kind}{packed}" for split in splits for packed in ("", ".gz")]
    exact = [folder / name for name in wanted if (folder / name).is_file()]
    found = exact or sorted(path for name in wanted for path in folder.glob(f"*-{name}"))
    if not found:
        raise UsageError(
            "root",
            folder,
            f"holds neither {splits[0]}-{kind} nor {splits[0]}-{kind}.gz",
            "give the folder of the four IDX files",
        )
    # A file and its packed copy are one; two sets in one folder are a choice that is not ours.
    if len({path.name.removesuffix(".gz") for path in found}) > 1:
        raise UsageError("root", folder, f"holds {found[0].name} and {found[1].name}", "keep one set in a folder")
    return found[0]
