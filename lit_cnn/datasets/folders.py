"""A folder of images: one sub-folder per class, or `train/`, `val/` and `test/` with one each."""

from pathlib import Path

import numpy as np

from lit_cnn.datasets.decoding import IMAGE_SUFFIXES
from lit_cnn.datasets.image_set import FileImages, ImageSet
from lit_cnn.errors import UsageError
from lit_cnn.file_hashes import hash_files

SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""What folders, files and cells that belong to a split may be called."""


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
