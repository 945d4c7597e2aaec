"""A folder of images: one sub-folder per class, or `train/`, `val/` and `test/` with one each."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.data.findings import Finding
from lit_cnn.data.image_set import ImageSet, OpenFiles, files_on_disk
from lit_cnn.data.sources.layout import check_classes, no_class_folders, split_folders
from lit_cnn.data.sources.walk import Noticed, findings_of, holds_images, in_class_order, loose_files, sub_folders, walk


def load_image_folder(
    root: Path, in_channels: int = 3, class_names: Collection[str] = (), open_files: OpenFiles = files_on_disk
) -> ImageSet:
    """Reads a folder of images: `root/CLASS/…`, or `root/{train,val,test}/CLASS/…` where the split is given.

    The names of the splits are those of `split_of_name`. The classes are those in train (or in `root`), in the order of
    `class_order`; classes that only val or test has come last. What is passed over is among the findings: files that
    are no images, or of a format that is not read, hidden ones and those of other software.

    Args:
        root: The folder.
        in_channels: 1 (gray) or 3 (RGB): what images are converted to.
        class_names: Folders of these names are classes, though they sound like splits.
        open_files: Gives the images in files, and their digests.

    Raises:
        UsageError: If the folder is missing, empty or cannot be read, has val or test without train, a split without
            images, or is laid out otherwise.
    """
    if not root.is_dir():
        raise UsageError("root", root, "no such folder", "give a folder with one sub-folder of images per class")
    class_names = {str(name) for name in class_names}
    folders, findings = split_folders(root, class_names)
    base = folders.get("train", root)
    if not (train_classes := sub_folders(base)):
        raise no_class_folders(base, root)
    further = {
        name
        for folder in folders.values()
        for name in sub_folders(folder)
        if name not in train_classes and holds_images(folder / name, root)
    }
    names = (*train_classes, *in_class_order(further))
    files: list[str] = []
    labels: list[int] = []
    splits: dict[str, np.ndarray] = {}
    noticed: list[Noticed] = []
    for split, folder in (folders or {"": root}).items():
        start = len(files)
        images: dict[str, list[str]] = {}
        for label, name in enumerate(names):
            images[name], others = walk(folder / name, root)
            files += images[name]
            labels += [label] * len(images[name])
            noticed += others
            if not images[name] and folder == base and name in train_classes:
                noticed.append(Noticed("empty_class", str(folder / name)))
        loose = list(_loose(folder, root))
        if start == len(files) and (split or any(one.kind == "loose_image" for one in loose)):
            raise no_class_folders(folder, root)
        if folder == base:
            findings += check_classes(folder, root, images, class_names)
        if split:
            splits[split] = np.arange(start, len(files))
        noticed += loose
    if folders:
        others_there = (root / name for name in sub_folders(root) if root / name not in folders.values())
        noticed += [Noticed("other_folder", str(path)) for path in others_there if holds_images(path, root)]
        noticed += _loose(root, root)
    prefix = len(os.path.join(root, ""))
    opened, hashes = open_files(files, in_channels)
    return ImageSet(
        name=root.resolve().name,
        source=str(root.resolve()),
        images=opened,
        labels=np.array(labels, np.int64),
        class_names=names,
        paths=[path[prefix:] for path in files],
        hashes=hashes,
        in_channels=in_channels,
        splits=splits,
        findings=(*findings_of(noticed, prefix), *findings),
    )


def list_images(folder: Path) -> list[Path]:
    """Returns all image files at and below a folder, sorted; see `find_images`."""
    return find_images(folder)[0]


def find_images(folder: Path) -> tuple[list[Path], tuple[Finding, ...]]:
    """Returns all image files at and below a folder, sorted, and what else is there: what is passed over.

    Raises:
        UsageError: If there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UsageError("folder", folder, "no such folder", "give a folder of images")
    files, noticed = walk(folder, folder)
    findings = tuple(findings_of(noticed, len(os.path.join(folder, ""))))
    if not files:
        why = f"{findings[0].cases[0][0]}: {findings[0].message}" if findings else ""
        raise UsageError("folder", folder, "holds no images", why)
    return [Path(path) for path in files], findings


def _loose(folder: Path, root: Path) -> Iterator[Noticed]:
    """Yields what lies in a folder of class folders itself, and was perhaps meant to count."""
    images, noticed = loose_files(folder, root)
    yield from (Noticed("loose_image", path) for path in images)
    yield from (one for one in noticed if one.kind != "outward_link")
