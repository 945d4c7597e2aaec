"""Folders of classes and manifests at an address: read by the code that reads them from disk."""

import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from lit_cnn.core.errors import UsageError
from lit_cnn.data.decoding import PathElsewhere
from lit_cnn.data.findings import Finding
from lit_cnn.data.image_set import EncodedImages, ImageSet, OpenFiles
from lit_cnn.data.remote.cache import ByteCache
from lit_cnn.data.remote.images import RemoteImages, Tree, hash_remote_files, tree_of
from lit_cnn.data.remote.place import Place, RemoteFile
from lit_cnn.data.sources.folders import find_images, load_image_folder
from lit_cnn.data.sources.manifest import MANIFEST_SUFFIXES, listed_names, load_manifest

REMOTE_SOURCES = ("image_folder", "manifest")
"""What can be read from an address."""


def load_remote_folder(
    place: Place, cache: ByteCache, in_channels: int = 3, class_names: Collection[str] = ()
) -> ImageSet:
    """Reads a folder of images at an address, as `load_image_folder` does one on disk: the same set, to the bit.

    Args:
        place: Where.
        cache: Keeps the images here.
        in_channels: 1 (gray) or 3 (RGB): what images are converted to.
        class_names: As for `load_image_folder`.

    Raises:
        UsageError: As `load_image_folder`, and if the place cannot be read.
    """
    if not place.contact() and not place.is_web:
        raise UsageError("root", place, "is one file", "give a folder with one sub-folder of images per class")
    files = _listed(place)
    with tree_of(place, files, cache) as tree:
        return tree.told(load_image_folder(tree.folder, in_channels, class_names, _opener(tree, cache)))


def load_remote_manifest(
    place: Place, cache: ByteCache, in_channels: int = 3, columns: Mapping[str, str] | None = None
) -> ImageSet:
    """Reads the images that a manifest at an address lists, as `load_manifest` does from disk: the same, to the bit.

    The manifest is read anew at each start. Its folder is listed; of a web server that lists none, each image is asked
    for by itself.

    Args:
        place: The manifest.
        cache: Keeps the images here.
        in_channels: 1 (gray) or 3 (RGB): what images are converted to.
        columns: As for `load_manifest`. The bytes of images in Parquet are not read from afar.

    Raises:
        UsageError: As `load_manifest`, and if the place cannot be read.
    """
    address, _, name = place.address.rpartition("/")
    if not name.lower().endswith(MANIFEST_SUFFIXES):
        raise UsageError("root", place, f"a manifest is a file that ends in {', '.join(MANIFEST_SUFFIXES)}")
    if place.contact() and not place.is_web:
        raise UsageError("root", place, "is a folder", "give the manifest in it")
    folder = Place(address)
    own = RemoteFile(name, folder.name_of(name), -1, "", "")
    content = folder.read(own)
    files: Sequence[RemoteFile] = []
    with suppress(UsageError):
        files = _listed(folder)
    if place.is_web and len(files) < 2:
        files = folder.described([(path, folder.name_of(path)) for path in _paths_in(name, content, columns)])
    with tree_of(folder, [file for file in files if file.path != name] + [own], cache) as tree:
        file = tree.folder / name
        file.write_bytes(content)
        return tree.told(load_manifest(file, in_channels, columns, open_files=_opener(tree, cache)))


def find_remote_images(address: str) -> tuple[list[PathElsewhere], tuple[Finding, ...]]:
    """Returns all images at and below an address, as `find_images` does those of a folder; or the one that it is of.

    Each path is relative to the address. An image is read when it is opened.

    Raises:
        UsageError: If the place cannot be read, or holds no image.
    """
    place, cache = Place(address, "folder"), ByteCache()
    is_folder = place.contact()
    files = _listed(place) if is_folder or place.is_web else []
    findings: tuple[Finding, ...] = ()
    if not files:
        folder, _, name = place.address.rpartition("/")
        place = Place(folder, "folder")
        found = place.described([(name, place.name_of(name))])
    else:
        with tree_of(place, files, cache) as tree:
            paths, findings = find_images(tree.folder)
            found = [tree.file_of(path) for path in paths]
            findings = (*findings, *tree.findings)
    images = RemoteImages(place, found, [""] * len(found), cache, 3)
    elsewhere = [PathElsewhere(file.path) for file in found]
    for index, path in enumerate(elsewhere):
        path.open_there = partial(images.open, index)
    return elsewhere, findings


def check_remote(name: str, place: Place, outside_root: bool) -> None:
    """Refuses what cannot be read from an address.

    Raises:
        UsageError: If the source is read from disk only, or files outside of the place are asked for.
    """
    if name not in REMOTE_SOURCES:
        reason = f"`dataset={name}` is read from this machine's disk"
        raise UsageError(
            "root", place, reason, f"copy it here; from an address {' and '.join(REMOTE_SOURCES)} are read"
        )
    if outside_root:
        raise UsageError("outside_root", True, "from an address no other files are read", "leave it out")


def _listed(place: Place) -> list[RemoteFile]:
    print(f"listing {place} …", file=sys.stderr)
    return place.files()


def _opener(tree: Tree, cache: ByteCache) -> OpenFiles:
    def open_files(files: Sequence[Path | str], in_channels: int) -> tuple[EncodedImages, list[str]]:
        there = [tree.file_of(file) for file in files]
        hashes = hash_remote_files(tree.place, there, cache)
        return RemoteImages(tree.place, there, hashes, cache, in_channels), hashes

    return open_files


def _paths_in(name: str, content: bytes, columns: Mapping[str, str] | None) -> list[str]:
    """Returns the paths that a manifest lists, in the two ways in which they may be meant."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        names = [cell.strip() for cell in listed_names(file, columns)]
    return [*dict.fromkeys(path for cell in names for path in (cell, cell.replace("\\", "/")) if path)]
