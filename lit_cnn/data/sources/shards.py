"""WebDataset: tar files in which the files of a sample stand side by side, `KEY.jpg` and `KEY.cls`."""

import json
import os
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from tqdm import tqdm

from lit_cnn.core.errors import UsageError
from lit_cnn.core.words import and_more, counted
from lit_cnn.data.file_kinds import HAS_HEIF, IMAGE_SUFFIXES, is_system_name
from lit_cnn.data.findings import Finding
from lit_cnn.data.image_set import ImageSet, SpanImages, class_order, without_unlabelled
from lit_cnn.data.index_cache import hexadecimal, index_file, remembered, sha256_row
from lit_cnn.data.split_names import SPLIT_FOLDERS, VAL_OR_TEST, split_of_name, splits_among_words

SAMPLES = f"webdataset samples 2{' with HEIF' if HAS_HEIF else ''}"
"""The kind of what is remembered of shards; another where the same shards would be read otherwise."""

_AGAIN = "comes twice"
_APART = "has its image elsewhere"
# Images of formats that are not read: a sample that has nothing else is named for it.
_UNREAD = frozenset({"heic", "heif", "jxl", "dng", "psd", "svg", "dcm", "exr"} - {name[1:] for name in IMAGE_SUFFIXES})
_NO_IMAGE = "has 0 images"
_ONE_IMAGE = "a sample needs one image, under a key of its own"


def load_webdataset(root: Path, in_channels: int = 3) -> ImageSet:
    """Reads tar shards as WebDataset writes them, each sample with one image and a label in `.cls` or `.json`.

    The library streams shards in their order; here any image is asked for by its index, so that the order of an epoch
    is a function of its seed. Hence the members of the tars are listed once with offset and size (remembered until a
    shard changes), and read from there. How shard names expand and which members make a sample are the library's rules.

    The split is that in each shard's name (`train-000.tar`, `imagenet1k-validation-00.tar`) or folder
    (`train/000.tar`), or drawn where none says any. Samples without a label, with no or several images, or with a key
    that was there before are left out, and are findings; so are members that are hidden or made by other software.

    Args:
        root: A folder of .tar files, one such file, or several with braces: `shards/train-{000..003}.tar`.
        in_channels: 1 (gray) or 3 (RGB): what images are converted to.

    Raises:
        UsageError: If the package `webdataset` is not installed, a shard is missing or is no plain tar, no sample has
            one image, none has a label, or the files of a sample stand apart.
    """
    shards = _shards(root)
    folder = Path(os.path.commonpath([shard.parent for shard in shards]))
    splits = splits_of_shards(root, root.is_dir(), folder, shards)
    found = remembered(index_file(SAMPLES, shards), lambda: _index(shards))
    paths = sample_paths(found, folder, shards)
    opened = SpanImages(str(folder), shards, found["places"], paths, in_channels)
    named = folder.resolve().name, str(root.resolve())
    return set_of_samples(named, found, [shard.relative_to(folder).as_posix() for shard in shards], splits, opened)


def sample_paths(found: Mapping[str, np.ndarray], folder: PurePath, shards: Sequence[PurePath]) -> list[str]:
    """Returns what the images of shards are called: the shard in its folder, and the sample's key."""
    names = [shard.relative_to(folder).as_posix() for shard in shards]
    return [f"{names[number]}/{key}" for number, key in zip(found["places"][:, 0], found["keys"], strict=True)]


def set_of_samples(
    named: tuple[str, str],
    found: Mapping[str, np.ndarray],
    names: Sequence[str],
    splits: Sequence[str],
    opened: SpanImages,
) -> ImageSet:
    """Returns the image set of the samples in shards.

    Args:
        named: The set's name and source.
        found: What is in the shards; see `combined`.
        names: What the shards are called.
        splits: That of each shard, or empty texts.
        opened: The images.

    Raises:
        UsageError: As `load_webdataset`.
    """
    labels = found["labels"].tolist()
    class_names = class_order([label for label in labels if label])
    place = {name: label for label, name in enumerate(class_names)}
    split_of = np.array(splits)[found["places"][:, 0]]
    image_set = ImageSet(
        name=named[0],
        source=named[1],
        images=opened,
        labels=np.array([place.get(label, 0) for label in labels], np.int64),
        class_names=class_names,
        paths=opened.paths,
        hashes=hexadecimal(found["digests"]),
        in_channels=opened.in_channels,
        splits={split: np.flatnonzero(split_of == split) for split in SPLIT_FOLDERS if split in splits},
        findings=(
            *_without_one_image(found["not_one_image"].tolist(), names),
            *_of_other_software(found["passed_over"].tolist(), names),
        ),
    )
    unlabelled = np.flatnonzero([not label for label in labels])
    without_label = {(str(found["places"][index, 0]), str(found["keys"][index])) for index in unlabelled}
    for number, key, what in found["not_one_image"].tolist():
        if what == _APART or (what == _NO_IMAGE and (number, key) in without_label):
            reason = f"{names[int(number)]}/{key} has its label apart from its image"
            way_out = "the files of a sample must follow each other: pack it again, sorted by name (GNU tar can)"
            raise UsageError("root", named[1], reason, way_out)
    return without_unlabelled(image_set, unlabelled, "give a name or a whole number in .cls, or in .json as label")


def _shards(root: Path) -> list[Path]:
    if root.is_dir():
        shards = sorted(path for path in root.rglob("*.tar") if path.is_file())
        if not shards:
            raise UsageError("root", root, "holds no .tar files", "give the folder of the shards")
        return shards
    shards = [Path(url) for url in expanded(str(root))]
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise UsageError("root", root, f"{missing[0]} is not there", "shards are read from this machine's disk")
    return shards


def expanded(text: str) -> list[str]:
    """Returns what a text with braces stands for, as the library has it.

    Raises:
        UsageError: If the braces make no sense, or the library is not installed.
    """
    expand_urls = _library().shardlists.expand_urls
    try:
        return list(expand_urls(text))
    except (ValueError, AssertionError) as error:
        raise UsageError("root", text, f"its braces cannot be expanded ({error})") from error


def splits_of_shards(root: Any, is_folder: bool, folder: PurePath, shards: Sequence[PurePath]) -> list[str]:
    """Returns each shard's split, or empty texts where none says any.

    Args:
        root: What an error calls the whole.
        is_folder: Whether it is their folder, and not a shard or a name with braces.
        folder: That in which all shards are.
        shards: Their paths.

    Raises:
        UsageError: If the names contradict each other.
    """
    # Of a folder that is given, its own name says nothing; of shards that are, that of their folder does.
    base, said_by_folder = (folder, splits_among_words) if is_folder else (folder.parent, _split_of_folder)
    way_out = "call every shard train-…, val-… or test-…, or none of them"
    splits = []
    for shard in shards:
        folders = reversed(shard.relative_to(base).parts[:-1])
        said = splits_among_words(shard.stem) or next(filter(None, map(said_by_folder, folders)), ("",))
        if len(said) > 1 or VAL_OR_TEST in said:
            raise UsageError("root", root, f"{shard.name} may be {' or '.join(said)}", way_out)
        splits.append(said[0])
    if not any(splits):
        return splits
    if "" in splits:
        raise UsageError("root", root, f"{shards[splits.index('')].name} names no split, others do", way_out)
    if "train" not in splits:
        raise UsageError("root", root, f"no shard's name says train, {shards[0].name} says {splits[0]}", way_out)
    return splits


def _split_of_folder(name: str) -> tuple[str, ...]:
    return (split,) if (split := split_of_name(name)) else ()


def _index(shards: Sequence[Path]) -> dict[str, np.ndarray]:
    shown = tqdm(shards, desc="indexing shards", unit="shard", file=sys.stderr, delay=1.0, disable=None)
    return combined(shards, [index_shard(shard) for shard in shown])


def index_shard(shard: Path) -> dict[str, np.ndarray]:
    """Returns of every sample its key, its label (see `_label`), its image's offset and size, and SHA-256.

    Samples that have not one image, or come again, are apart: key, and what is wrong, as texts.
    """
    keys, labels, places, digests, wrong = [], [], [], [], []
    seen: dict[str, bool] = {}  # whether it has a label
    passed_over: list[str] = []
    for sample in _samples(shard, passed_over):
        key = sample["__key__"]
        image = [value for suffix, value in sample.items() if _is_image(suffix)]
        if len(image) != 1 or key in seen:
            wrong.append((key, _what_is_wrong(sample, len(image), seen.get(key))))
            continue
        keys.append(key)
        labels.append(_label(sample))
        seen[key] = bool(labels[-1])
        places.append(image[0][:2])
        digests.append(image[0][2])
    return {
        "keys": np.array(keys, np.str_),
        "labels": np.array(labels, np.str_),
        "places": np.array(places, np.int64).reshape(-1, 2),
        "digests": np.array(digests, np.uint8).reshape(-1, 32),
        "not_one_image": np.array(wrong, np.str_).reshape(-1, 2),
        "passed_over": np.array(passed_over, np.str_).reshape(-1, 1),
    }


def combined(shards: Sequence[object], parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns what is in several shards: rows of `index_shard`, those that name no image's place with their shard.

    `places` has the number of the shard before offset and size; `not_one_image` and `passed_over` have it as text.

    Raises:
        UsageError: If none has a sample with one image.
    """
    numbers = {name: np.repeat(np.arange(len(parts)), [len(part[name]) for part in parts]) for name in parts[0]}
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not len(whole["keys"]):
        shard, what = shards[0], "holds no samples"
        if len(wrong := whole["not_one_image"]):
            shard, what = shards[numbers["not_one_image"][0]], f"sample {wrong[0, 0]} {wrong[0, 1]}"
        raise UsageError("root", shard, what, f"{_ONE_IMAGE}")
    whole["places"] = np.column_stack([numbers["places"], whole["places"]])
    for name in ("not_one_image", "passed_over"):
        whole[name] = np.column_stack([numbers[name].astype(np.str_), whole[name]])
    return whole


def _what_is_wrong(sample: dict[str, Any], num_images: int, had_label: bool | None) -> str:
    """Says what is wrong with a sample; `had_label` of one with the same key before it, None if there was none."""
    if had_label is not None:
        return _AGAIN if num_images or had_label else _APART
    if not num_images and (unread := _UNREAD.intersection(suffix.rpartition(".")[2] for suffix in sample)):
        return f"has a .{min(unread)}, which is not read from shards: convert it to JPEG or PNG"
    return f"has {counted(num_images, 'image')}"


def _without_one_image(wrong: Sequence[tuple[str, str, str]], names: Sequence[str]) -> Iterator[Finding]:
    cases = [f"{names[int(number)]}/{key}" + (" (again)" if what == _AGAIN else "") for number, key, what in wrong]
    if wrong:
        message = f"{names[int(wrong[0][0])]}/{wrong[0][1]} {wrong[0][2]}{and_more(len(wrong))}; {_ONE_IMAGE}"
        yield Finding("not_one_image", "error", message, tuple((case,) for case in cases))


def _of_other_software(passed_over: Sequence[tuple[str, str]], names: Sequence[str]) -> Iterator[Finding]:
    if passed_over:
        message = "hidden, or made by other software: passed over"
        yield Finding(
            "system_file", "note", message, tuple((f"{names[int(number)]}/{name}",) for number, name in passed_over)
        )


def _samples(shard: Path, passed_over: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the samples of a shard: suffix -> (offset, size, SHA-256) of an image, or the bytes of a label.

    Names of members that are passed over are added to a list.
    """
    try:
        yield from _library().tariterators.group_by_keys(_members(shard, passed_over))
    except (tarfile.TarError, ValueError, OSError) as error:
        raise UsageError(
            "root", None, f"{shard} is no plain, whole tar of samples ({error})", "write it again"
        ) from error


def _members(shard: Path, passed_over: list[str]) -> Iterator[dict[str, Any]]:
    names: set[str] = set()
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            suffix = member.name.rpartition("/")[2].partition(".")[2].lower()
            if not member.isreg():
                continue
            if any(is_system_name(part) for part in member.name.split("/") if part not in ("", ".", "..")):
                passed_over.append(member.name)
                continue
            is_unread = suffix.rpartition(".")[2] in _UNREAD
            if not (_is_image(suffix) or is_unread or suffix in ("cls", "json")):
                continue
            name = member.name[: len(member.name) - len(suffix)] + suffix
            if name in names:
                # The library takes nothing for the end of a sample, and a name that comes again in one for an error.
                yield {}
                names.clear()
            names.add(name)
            file = tar.extractfile(member)
            content = file.read() if file is not None else b""
            if len(content) < member.size:
                raise tarfile.ReadError(f"{member.name} is cut short")
            data = (member.offset_data, member.size, sha256_row(content)) if _is_image(suffix) else content
            yield {"fname": member.name, "data": data, "__url__": str(shard)}


def _is_image(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES


def _label(sample: dict[str, Any]) -> str:
    """Returns the text of `.cls`, else the `label` in `.json`; nothing where neither is a name or a whole number."""
    try:
        label = sample["cls"].decode().strip() if "cls" in sample else json.loads(sample["json"])["label"]
    except (KeyError, TypeError, ValueError):
        return ""
    return str(label) if isinstance(label, str | int) and not isinstance(label, bool) else ""


def _library() -> Any:
    try:
        import webdataset
        import webdataset.shardlists
        import webdataset.tariterators
    except ImportError as error:
        raise UsageError("dataset", "webdataset", "needs the package webdataset: pip install webdataset") from error
    return webdataset
