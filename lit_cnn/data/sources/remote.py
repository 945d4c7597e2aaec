"""Folders of classes and manifests at an address: read by the code that reads them from disk."""

import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np

from lit_cnn.core.bars import Bar
from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import sha256_of_file, size_in_words
from lit_cnn.core.words import counted
from lit_cnn.data.decoding import PathElsewhere
from lit_cnn.data.findings import Finding
from lit_cnn.data.image_set import EncodedImages, ImageSet, OpenFiles
from lit_cnn.data.index_cache import hexadecimal, remembered
from lit_cnn.data.remote.cache import ByteCache
from lit_cnn.data.remote.images import RemoteImages, Tree, hash_remote_files, tree_of
from lit_cnn.data.remote.place import Place, RemoteFile
from lit_cnn.data.remote.shards import ShardImages, Shards
from lit_cnn.data.sources.folders import find_images, load_image_folder
from lit_cnn.data.sources.manifest import MANIFEST_SUFFIXES, listed_names, load_manifest
from lit_cnn.data.sources.shards import (
    combined,
    expanded,
    index_shard,
    sample_paths,
    set_of_samples,
    splits_of_shards,
)

_SHARDS_AT_ONCE = 4

REMOTE_SOURCES = ("image_folder", "manifest", "webdataset")
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


def load_remote_shards(place: Place, cache: ByteCache, in_channels: int = 3) -> ImageSet:
    """Reads tar shards at an address, as `load_webdataset` does those on disk: the same set, to the bit.

    Each shard is brought here once to list what is in it; that is remembered until the shard changes.

    Args:
        place: A folder of .tar files, one such file, or several with braces.
        cache: Keeps the shards here.
        in_channels: 1 (gray) or 3 (RGB): what images are converted to.

    Raises:
        UsageError: As `load_webdataset`, if the place cannot be read, or if a shard does not fit into the cache.
    """
    given = place.address
    is_folder = not given.endswith(".tar") and "{" not in given
    folder = Place(given if is_folder else os.path.commonpath([each.rpartition("/")[0] for each in expanded(given)]))
    if is_folder:
        folder.contact()
        files = [file for file in _listed(folder) if file.path.endswith(".tar")]
        if not files:
            raise UsageError("root", place, "holds no .tar files", "give the folder of the shards")
    else:
        folder = Place(given.partition("{")[0].rpartition("/")[0])
        wanted = [each[len(folder.address) + 1 :] for each in expanded(given)]
        folder.contact()
        files = folder.described([(path, folder.name_of(path)) for path in wanted])
        if missing := [path for path in wanted if path not in {file.path for file in files}]:
            raise UsageError("root", place, f"{folder}/{missing[0]} is not there", "check the address")
    top = PurePosixPath("/", folder.address.partition("://")[2])
    names = [top / file.path for file in files]
    common = top if is_folder else PurePosixPath(os.path.commonpath([name.parent for name in names]))
    splits = splits_of_shards(place, is_folder, common, names)
    shards = Shards(folder, files, cache)
    parts = _indexes(shards)
    found = combined([f"{folder}/{file.path}" for file in files], parts)
    hashes = hexadecimal(found["digests"])
    of_shards = [part["sha256"].item() for part in parts]
    opened = ShardImages(shards, found["places"], sample_paths(found, common, names), in_channels, hashes, of_shards)
    relative = [name.relative_to(common).as_posix() for name in names]
    return set_of_samples((common.name, str(place)), found, relative, splits, opened)


def _indexes(shards: Shards) -> list[dict[str, np.ndarray]]:
    """Returns what is in each shard; brings those here of which that is not remembered."""
    folder = shards.cache.folder / "indexes"
    bar, started = Bar(len(shards.files), "shards", delay=0.5), time.monotonic()
    unknown = [number for number, key in enumerate(shards.keys) if not (folder / f"{key}.npz").exists()]
    if unknown:
        total = size_in_words(sum(shards.files[number].size for number in unknown))
        print(
            f"reading {counted(len(unknown), 'shard')}, {total}, from {shards.place} to list what is in them; they are "
            f"kept in {shards.cache.folder}, up to {size_in_words(shards.cache.max_bytes)}",
            file=sys.stderr,
        )

    def index(number: int) -> dict[str, np.ndarray]:
        name = f"{shards.place}/{shards.files[number].path}"

        def compute() -> dict[str, np.ndarray]:
            shards.fetch(number)
            shard = shards.open(number)
            if shard is None:
                size = size_in_words(shards.files[number].size)
                reason = f"has {size}, for which there is no room in {shards.cache.folder}"
                raise UsageError(None, name, reason, "give a larger `cache_gb`, or write smaller shards")
            # By what is open: another process may take the name away meanwhile.
            with shard:
                held = Path(f"/proc/self/fd/{shard.fileno()}")
                try:
                    return {**index_shard(held), "sha256": np.array([sha256_of_file(held)])}
                except UsageError as error:
                    reason = error.reason.replace(str(held), name)
                    raise UsageError(error.option, name, reason, error.remedy) from error

        return remembered(folder / f"{shards.keys[number]}.npz", compute)

    parts, num_bytes = [], 0
    at_once = shards.cache.max_bytes // (2 * max(file.size for file in shards.files) + 1)
    with ThreadPoolExecutor(max(1, min(_SHARDS_AT_ONCE, at_once))) as pool:
        for number, part in enumerate(pool.map(index, range(len(shards.files)))):
            parts.append(part)
            num_bytes += shards.files[number].size
            rate = num_bytes / max(time.monotonic() - started, 1e-3)
            bar.show("indexing", number + 1, (f"{size_in_words(rate)}/s",))
    bar.close()
    return parts


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
    addresses = [f"{place}/{file.path}" for file in found]
    known = cache.remembered([(address, file.state) for address, file in zip(addresses, found, strict=True)])
    images = RemoteImages(place, found, [known.get(address, "") for address in addresses], cache, 3)
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
        raise UsageError("root", place, reason, f"copy it here; from an address {', '.join(REMOTE_SOURCES)} are read")
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
