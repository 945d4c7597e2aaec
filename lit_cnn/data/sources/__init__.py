"""Where images come from: an `ImageSet` gives images as (H, W, C) uint8 arrays, labels, class names and a digest.

`load_image_set` is the door; behind it is a module for each family of sources. What is encoded in files is decoded when
an item is asked for, in the worker process that asked.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lit_cnn.core.addresses import is_address
from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_names import name_there
from lit_cnn.data.decoding import MAX_PIXELS, decode_image, limit_pixels, read_image
from lit_cnn.data.file_kinds import IMAGE_SUFFIXES
from lit_cnn.data.findings import Finding
from lit_cnn.data.image_set import (
    ArrayImages,
    EncodedImages,
    FileImages,
    ImageSet,
    SpanImages,
    check_image_set,
    class_findings,
    gray_to_rgb,
    with_class_names,
    without_images,
)
from lit_cnn.data.pixel_values import AS_IS, PixelOptions
from lit_cnn.data.remote.cache import ByteCache
from lit_cnn.data.remote.place import Place
from lit_cnn.data.sources.digits import load_digits
from lit_cnn.data.sources.folders import find_images, list_images, load_image_folder
from lit_cnn.data.sources.huggingface import load_hf_disk
from lit_cnn.data.sources.idx import (
    FASHION_MNIST_CLASSES,
    FASHION_MNIST_FOLDER,
    load_fashion_mnist,
    load_idx,
    read_idx,
)
from lit_cnn.data.sources.manifest import load_manifest
from lit_cnn.data.sources.remote import (
    check_remote,
    find_remote_images,
    load_remote_folder,
    load_remote_manifest,
    load_remote_shards,
)
from lit_cnn.data.sources.shards import load_webdataset
from lit_cnn.data.sources.torchvision_sets import PREFIX, load_torchvision
from lit_cnn.data.split_names import SPLIT_FOLDERS
from lit_cnn.data.text_names import with_text_names

__all__ = [
    "FASHION_MNIST_CLASSES",
    "FASHION_MNIST_FOLDER",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "NAMES_AS_TEXT",
    "SPLIT_FOLDERS",
    "ArrayImages",
    "EncodedImages",
    "FileImages",
    "Finding",
    "ImageSet",
    "SpanImages",
    "check_image_set",
    "check_source",
    "class_findings",
    "decode_image",
    "find_images",
    "find_remote_images",
    "list_images",
    "load_digits",
    "load_fashion_mnist",
    "load_hf_disk",
    "load_idx",
    "load_image_folder",
    "load_image_set",
    "load_manifest",
    "load_torchvision",
    "load_webdataset",
    "place_of",
    "read_idx",
    "read_image",
    "without_images",
]

_NEEDS_ROOT = {
    "image_folder": "a folder with one sub-folder of images per class",
    "manifest": "a .csv, .tsv or .parquet file that lists the images",
    "idx": "a folder of four IDX files",
    "hf_disk": "a folder that Hugging Face's save_to_disk wrote",
    "webdataset": "a folder of .tar shards, or their names with braces",
}
SOURCES = ("digits", "fashion_mnist", *_NEEDS_ROOT)
"""What `dataset` may be, besides `torchvision/NAME`."""
NAMES_AS_TEXT = ("image_folder", "manifest", "hf_disk", "webdataset")
"""Those whose classes are called what somebody typed."""


def check_source(name: str) -> None:
    """Refuses the name of a source that there is not.

    Raises:
        UsageError: If it is none of `SOURCES` and does not start with `torchvision/`.
    """
    if name not in SOURCES and not name.startswith(PREFIX):
        raise UsageError("dataset", name, f"choose one of {', '.join(SOURCES)}, {PREFIX}NAME")


def place_of(root: str | Path) -> Path | Place:
    """Returns where the images are: a path on this machine's disk, or a place behind an address.

    Raises:
        UsageError: If the address is none of a folder.
    """
    if is_address(root):
        return Place(str(root))
    return Path(name_there(str(Path(root).expanduser())))


def load_image_set(
    name: str,
    root: Path | Place | None = None,
    in_channels: int | None = None,
    class_names: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    max_pixels: int = MAX_PIXELS,
    checked: bool = True,
    outside_root: bool = False,
    pixels: PixelOptions = AS_IS,
    cache_gb: float | None = None,
) -> ImageSet:
    """Reads an image set.

    Args:
        name: One of `SOURCES`, or `torchvision/NAME`.
        root: The folder or file to read, or the `Place` where it is; optional for `fashion_mnist`, refused by
            `digits`, needed by all others.
        in_channels: 1 or 3: what images are converted to; by default what the source has (3 for files of images).
        class_names: The order of the classes; by default the source's own. See `with_class_names`.
        columns: What the columns of a `manifest` or of `hf_disk` are called; see `load_manifest`.
        max_pixels: How many pixels an image may have; see `limit_pixels`.
        checked: Whether to refuse what `check_image_set` refuses.
        outside_root: Whether a `manifest` or `hf_disk` may refer to files outside of its folder.
        pixels: What values of more than 8 bits, and transparent pixels, become; of image files only.
        cache_gb: Gigabytes that this disk keeps of files at a `Place`; see `ByteCache`.

    Raises:
        UsageError: If the source is not there or holds nothing to train on.
    """
    check_source(name)
    if root is None and name not in ("digits", "fashion_mnist"):
        needed = _NEEDS_ROOT.get(name, "the folder where torchvision keeps it")
        raise UsageError("root", None, f"{name} needs {needed}")
    if columns and name not in ("manifest", "hf_disk"):
        raise UsageError("columns", None, f"{name} has no columns", "leave it out")
    limit_pixels(max_pixels)
    if isinstance(root, Place):
        check_remote(name, root, outside_root)
        cache = ByteCache(cache_gb if cache_gb is None else cache_gb * 1e9)
        if name == "webdataset":
            found = load_remote_shards(root, cache, in_channels or 3)
        elif name == "manifest":
            found = load_remote_manifest(root, cache, in_channels or 3, columns)
        else:
            found = load_remote_folder(root, cache, in_channels or 3, class_names or ())
    else:
        found = _load(name, root, in_channels, columns, outside_root, class_names or ())
    image_set = with_text_names(found)
    if pixels != AS_IS:
        if not isinstance(image_set.images, EncodedImages):
            option = "background" if pixels.pixel_range is None else "pixel_range"
            value = getattr(pixels, option)
            raise UsageError(option, value, "these images are decoded already", "leave it out")
        image_set.images.pixels = pixels
    if in_channels == 3 and image_set.in_channels == 1:
        image_set = gray_to_rgb(image_set)
    if class_names is not None:
        image_set = with_class_names(image_set, class_names)
    if checked:
        check_image_set(image_set)
    return image_set


def _load(
    name: str,
    root: Path | None,
    in_channels: int | None,
    columns: Mapping[str, str] | None,
    outside_root: bool,
    class_names: Sequence[str],
) -> ImageSet:
    if name == "digits":
        if root is not None:
            raise UsageError("root", root, "digits are part of scikit-learn and take no folder", "leave it out")
        return load_digits()
    if name == "fashion_mnist":
        return load_fashion_mnist(root)
    assert root is not None
    if name.startswith(PREFIX):
        return load_torchvision(name, root, in_channels)
    if name == "idx":
        return load_idx(root)
    if name == "manifest":
        return load_manifest(root, in_channels or 3, columns, outside_root)
    if name == "hf_disk":
        return load_hf_disk(root, in_channels or 3, columns, outside_root)
    if name == "webdataset":
        return load_webdataset(root, in_channels or 3)
    return load_image_folder(root, in_channels or 3, class_names)
