"""A folder of images: one sub-folder per class, or `train/`, `val/` and `test/` with one each."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import hash_files
from lit_cnn.core.file_names import as_text
from lit_cnn.data.decoding import IMAGE_SUFFIXES
from lit_cnn.data.findings import Finding, Severity
from lit_cnn.data.image_set import FileImages, ImageSet, class_order

SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""What folders, files and cells that belong to a split may be called, in small letters."""

# What a walk comes across besides images: kind -> (severity, message).
_OVERLOOKED: dict[str, tuple[Severity, str]] = {
    "dangling_link": ("warning", "a link to nothing, passed over: mend it or take it away"),
    "outward_link": ("warning", "a link out of the folder, followed: whoever gets the folder does not get the image"),
    "linked_folder": ("warning", "a link to a folder, passed over: put the folder itself here"),
    "special_file": ("warning", "a pipe, socket or device, passed over: take it away"),
    "other_file": ("note", "no image by its name, passed over: if it is one, convert it to JPEG or PNG"),
    "other_folder": (
        "warning",
        "a folder of images next to train/, passed over: call it val or test, move it into train/, or take it away",
    ),
    "loose_image": ("note", "an image outside of the class folders, passed over: move it into one"),
}


def load_image_folder(root: Path, in_channels: int = 3) -> ImageSet:
    """Reads a folder of images: `root/CLASS/…`, or `root/{train,val,test}/CLASS/…` where the split is given.

    The names of the splits are those of `SPLIT_FOLDERS`, in any case. The classes are those in train (or in `root`), in
    the order of `class_order`; classes that only val or test has come last. Hidden files and folders are passed over,
    and what else is passed over is among the findings.

    Raises:
        UsageError: If the folder is missing, empty or cannot be read, has val or test without train, or a split without
            images.
    """
    if not root.is_dir():
        raise UsageError("root", root, "no such folder", "give a folder with one sub-folder of images per class")
    split_folders = _split_folders(root)
    train_classes = _class_names(split_folders.get("train", root), root)
    further = {
        name
        for folder in split_folders.values()
        for name in _sub_folders(folder)
        if name not in train_classes and _holds_images(folder / name, root)
    }
    class_names = (*train_classes, *_in_order(further))
    files: list[str] = []
    labels: list[int] = []
    splits: dict[str, np.ndarray] = {}
    overlooked: list[tuple[str, str]] = []
    for split, folder in (split_folders or {"": root}).items():
        start = len(files)
        for label, class_name in enumerate(class_names):
            here = len(files)
            for path, what in walk(folder / class_name, root):
                if what == "image":
                    files.append(path)
                else:
                    overlooked.append((what, path))
            labels += [label] * (len(files) - here)
            if here == len(files) and split in ("", "train") and class_name in train_classes:
                overlooked.append(("empty_class", str(folder / class_name)))
        if split and start == len(files):
            raise UsageError("root", root, f"{folder} holds no images", "fill it, or take it away to have it drawn")
        if split:
            splits[split] = np.arange(start, len(files))
        overlooked += _outside_classes(folder, root)
    if split_folders:
        others = (root / name for name in _sub_folders(root) if root / name not in split_folders.values())
        overlooked += [("other_folder", str(path)) for path in others if _holds_images(path, root)]
    prefix = len(os.path.join(root, ""))
    return ImageSet(
        name=root.resolve().name,
        source=str(root.resolve()),
        images=FileImages(files, in_channels),
        labels=np.array(labels, np.int64),
        class_names=class_names,
        paths=[path[prefix:] for path in files],
        hashes=hash_files(files),
        in_channels=in_channels,
        splits=splits,
        findings=tuple(_findings(overlooked, prefix)),
    )


def list_images(folder: Path) -> list[Path]:
    """Returns all image files at and below a folder, sorted.

    Raises:
        UsageError: If there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UsageError("folder", folder, "no such folder", "give a folder of images")
    files = [Path(path) for path, what in walk(folder, folder) if what == "image"]
    if not files:
        raise UsageError("folder", folder, f"holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def walk(folder: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Yields what is at and below a folder, sorted by name, as (path, what it is).

    What it is: `image`, `unreadable_folder` or a kind of `_OVERLOOKED`.
    Hidden files and folders are passed over, and so is a folder that is not there. Links to files are followed, links
    to folders are not.

    Args:
        folder: Where to look; may be a link itself.
        root: Links that lead out of this folder are outward.
    """
    if not folder.is_dir():
        return
    top = os.path.realpath(root)
    found: list[tuple[str, str]] = []
    if folder != root and not is_inside(os.path.realpath(folder), top):
        found.append((str(folder), "outward_link"))
    waiting = [str(folder)]
    while waiting:
        here = waiting.pop()
        # A hundred thousand files: what scandir knows of an entry costs nothing, another look at it does.
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        found += [(entry.path, what) for what in _what(entry, top)]
        except OSError:
            found.append((here, "unreadable_folder"))
    # As paths sort, folder by folder: a/z before a-b/c.
    yield from sorted(found, key=lambda pair: pair[0].split(os.sep))


def _holds_images(folder: Path, root: Path) -> bool:
    return any(what == "image" for _, what in walk(folder, root))


def _what(entry: os.DirEntry[str], top: str) -> tuple[str, ...]:
    """Returns what an entry that is no folder is: one of `_OVERLOOKED`, `image`, or both for an outward link."""
    has_suffix = entry.name[entry.name.rfind(".") :].lower() in IMAGE_SUFFIXES
    if not entry.is_symlink():
        if entry.is_file():
            return ("image",) if has_suffix else ("other_file",)
        return ("special_file",)
    try:
        target = os.path.realpath(entry.path, strict=True)
    except OSError:  # nothing there, or a ring of links
        return ("dangling_link",)
    if os.path.isdir(target):
        return ("linked_folder",)
    if not os.path.isfile(target):
        return ("special_file",)
    if not has_suffix:
        return ("other_file",)
    return ("image",) if is_inside(target, top) else ("image", "outward_link")


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it; both as `os.path.realpath` gives them."""
    return os.path.commonpath([folder, path]) == folder


def _findings(overlooked: list[tuple[str, str]], prefix: int) -> Iterator[Finding]:
    # First: what cannot be read is counted as empty too.
    for folder in (path for what, path in overlooked if what == "unreadable_folder"):
        yield Finding("unreadable_folder", "error", _unreadable(folder), ((folder[prefix:],),))
    for folder in (path for what, path in overlooked if what == "empty_class"):
        message = f"class folder {folder} holds no images: fill it, or take it away"
        yield Finding("empty_class", "error", message, ((folder[prefix:],),))
    for kind, (severity, message) in _OVERLOOKED.items():
        if cases := tuple((path[prefix:],) for what, path in overlooked if what == kind):
            yield Finding(kind, severity, message, cases)


def _split_folders(root: Path) -> dict[str, Path]:
    """Returns the folders of the splits, if there are any.

    Raises:
        UsageError: If two are of the same split, or there is val or test without train: each would pass for a class.
    """
    found = {}
    there = _sub_folders(root)
    for split, names in SPLIT_FOLDERS.items():
        folders = [root / name for name in there if name.lower() in names]
        if len(folders) > 1:
            raise UsageError("root", root, f"{folders[0].name}/ and {folders[1].name}/ both say {split}", "keep one")
        if folders:
            found[split] = folders[0]
    if found and "train" not in found:
        folder = next(iter(found.values())).name
        raise UsageError(
            "root",
            root,
            f"has {folder}/ and no train/",
            (f"put the other images into train/, one sub-folder per class, or rename {folder}/ if it is a class"),
        )
    return found


def _class_names(folder: Path, root: Path) -> tuple[str, ...]:
    names = _sub_folders(folder)
    if not names:
        raise UsageError("root", root, f"{folder} is empty", "it needs one sub-folder of images per class")
    return names


def _sub_folders(folder: Path) -> tuple[str, ...]:
    try:
        names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        raise UsageError("root", None, _unreadable(folder)) from error
    return _in_order(names)


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns names of folders in the `class_order` of their texts, as that of the split's manifest is read back."""
    names = list(names)
    order = {text: place for place, text in enumerate(class_order([as_text(name) for name in names]))}
    return tuple(sorted(names, key=lambda name: order[as_text(name)]))


def _unreadable(folder: Path | str) -> str:
    return f"folder {folder} cannot be read: give yourself the right to"


def _outside_classes(folder: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Yields files outside of the class folders that were perhaps meant to count, as (what it is, path)."""
    top = os.path.realpath(root)
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.is_dir():
                continue
            kinds = _what(entry, top)
            if "dangling_link" in kinds:
                yield "dangling_link", entry.path
            elif "image" in kinds:
                yield "loose_image", entry.path
