"""What the folders of a root are, those of splits or of classes, and what is said of a root laid out otherwise."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lit_cnn.core.errors import UsageError
from lit_cnn.core.words import counted
from lit_cnn.data.file_kinds import suffix_of
from lit_cnn.data.findings import Finding, Severity
from lit_cnn.data.sources.walk import holds_images, loose_files, sub_folders
from lit_cnn.data.split_names import SPLIT_FOLDERS, VAL_OR_TEST, SplitName, read_split_name, split_of_name

_NEED = "it needs one sub-folder of images per class"
_AS_THEY_ARE = "lit-cnn predict takes them as they are"
# What a folder without images holds: the suffix of a file -> what to do instead.
_INSTEAD = {
    ".tar": "tar shards are read with `dataset=webdataset`",
    ".csv": "a table of images is read with `dataset=manifest`, and that file as `root`",
    ".parquet": "a table of images is read with `dataset=manifest`, and that file as `root`",
    ".arrow": "what save_to_disk wrote is read with `dataset=hf_disk`",
    ".zip": "unpack the archive first",
    ".gz": "unpack the archive first; IDX files are read with `dataset=idx`",
    ".7z": "unpack the archive first",
    ".rar": "unpack the archive first",
}


def split_folders(root: Path, class_names: Collection[str] = ()) -> tuple[dict[str, Path], list[Finding]]:
    """Returns the folders of the splits by `train`, `val`, `test`, and what is to be said of classes named like splits.

    What a name says is told by `split_of_name`. Where it leaves a doubt, so does what the folders hold: a split holds
    folders, a class holds images.

    Args:
        root: The folder.
        class_names: Folders of these names are classes, whatever they sound like.

    Raises:
        UsageError: If two folders are of one split, there is val or test without train, or folders are likely those of
            splits though their names do not quite say so: each would pass for a class.
    """
    names = [name for name in sub_folders(root) if not _is_named(root / name, class_names)]
    said = {name: split for split in SPLIT_FOLDERS for name in names if split_of_name(name) == split}
    others = [name for name in names if name not in said and holds_images(root / name, root)]
    if not said:
        return {}, _named_like_splits(root, others)
    if _is_class_called_train(root, list(said), others):
        return {}, [_named_like_a_split([*said, *filter(_speaks_of_splits, others)], "warning")]
    found: dict[str, Path] = {}
    for name, split in said.items():
        if split in found:
            reason = f"{found[split].name}/ and {name}/ both say {split}"
            raise UsageError("root", root, reason, "keep one, or name them in `class_names` if they are classes")
        found[split] = root / name
    if "train" not in found:
        folder = next(iter(said))
        likely = next((name for name in others if "train" in read_split_name(name).splits), "")
        way_out = (
            f"rename {likely}/ to train/ if it is that"
            if likely
            else f"put the other images into train/, one sub-folder per class; if {folder}/ is a class, rename it, or "
            "name all in `class_names`"
        )
        raise UsageError("root", root, f"has {folder}/ and no train/", way_out)
    return found, []


def _is_named(folder: Path, class_names: Collection[str]) -> bool:
    """Whether a folder is named as a class; not where it holds others that are, as train/ may hold a class train."""
    return folder.name in class_names and len(set(class_names).intersection(sub_folders(folder))) < 2


def _is_class_called_train(root: Path, said: Sequence[str], others: Sequence[str]) -> bool:
    """Whether train/ holds images themselves, and so do its neighbours, which say nothing of splits: car/, plane/."""
    return (
        len(said) == 1
        and said[0].lower() in SPLIT_FOLDERS["train"]
        and _holds_images_itself(root / said[0], root)
        and any(_is_plainly_a_class(root, name) for name in others)
    )


def _speaks_of_splits(name: str) -> bool:
    return bool(read_split_name(name).splits)


def _is_plainly_a_class(root: Path, name: str) -> bool:
    said = read_split_name(name)
    return said.is_word and not said.splits and _holds_images_itself(root / name, root)


def _holds_images_itself(folder: Path, root: Path) -> bool:
    return bool(loose_files(folder, root).images)


def _named_like_splits(root: Path, names: Sequence[str]) -> list[Finding]:
    """Returns what is to be said of folders that may be those of splits, and are taken for classes.

    Raises:
        UsageError: If they are likely no classes.
    """
    said = {name: one for name in names if (one := read_split_name(name)).splits}
    flat = {name for name in names if _holds_images_itself(root / name, root)} if said else set()
    has_classes = any(_is_plainly_a_class(root, name) for name in names)
    is_deep = not flat.issuperset(set(names) - set(said))  # other folders hold folders too: bullet_train/a and car/b
    in_doubt: dict[str, SplitName] = {}
    for name, one in said.items():
        alike = {other: two for other, two in said.items() if two.rest == one.rest}
        if len({two.splits for two in alike.values()}) > 1:  # seg_train and seg_test
            in_doubt |= alike
        # The word evaluation among other words, each with its images, is one of them.
        is_class = one.is_plain and has_classes and name in flat
        if (one.is_likely and not is_class) or (name not in flat and not is_deep):
            in_doubt[name] = one
    if in_doubt:
        raise _likely_splits(root, in_doubt)
    if not said:
        return []
    speak_of_several = len({one.splits for one in said.values()}) > 1 and len(said) == len(names)
    is_odd = any(one.is_plain or name not in flat for name, one in said.items())
    return [_named_like_a_split(list(said), "warning" if speak_of_several or is_odd else "note")]


def _likely_splits(root: Path, names: Mapping[str, SplitName]) -> UsageError:
    order = (*SPLIT_FOLDERS, VAL_OR_TEST)
    first = sorted(names, key=lambda name: order.index(names[name].splits[0]))[:3]
    readings = ", ".join(f"{name}/ sounds like {' and '.join(names[name].splits)}" for name in first)
    targets = dict.fromkeys(split for name in first for split in names[name].splits)
    way_out = ", ".join("val/ or test/" if split == VAL_OR_TEST else f"{split}/" for split in targets)
    remedy = f"rename what is a split to {way_out}; if all are classes, name them in `class_names`"
    return UsageError("root", root, readings, remedy)


def _named_like_a_split(names: Sequence[str], severity: Severity) -> Finding:
    message = "is read as a class, though a split may be called so; `class_names` with all classes says that it is one"
    return Finding("class_like_split", severity, message, tuple((name,) for name in names))


def no_class_folders(folder: Path, root: Path) -> UsageError:
    """Returns what is said of a folder without class folders that hold images: what it holds instead, and what to do.

    Args:
        folder: The root, or the folder of a split in it.
        root: The root.
    """
    split = "" if folder == root else split_of_name(folder.name)
    images = [os.path.basename(path) for path in loose_files(folder, root).images]
    if not images:
        there = [path.name for path in folder.iterdir()]
        instead = next((_INSTEAD[suffix] for name in there if (suffix := suffix_of(name)) in _INSTEAD), _NEED)
        if split in ("val", "test"):
            instead = "fill it, or take it away to have it drawn"
        return UsageError("root", root, f"{folder} {'holds no images' if there else 'is empty'}", instead)
    of_windows = next((name for name in images if "\\" in name), None)
    if of_windows is not None:
        reason = f"{folder} holds files with a backslash in their names, such as {of_windows}: a ZIP made on Windows"
        return UsageError("root", root, reason, "unpack it again with unzip, which makes folders of what stands before")
    way_out = f"or list them with their labels in a CSV (`dataset=manifest`); {_AS_THEY_ARE}"
    if split in ("val", "test"):
        train = next((name for name in sub_folders(root) if split_of_name(name) == "train"), "train")
        way_out = f"if they have no labels, give `root={root / train}`, and {split} is drawn from it; {_AS_THEY_ARE}"
    reason = f"{folder} holds {counted(len(images), 'image')} in no class folder, such as {images[0]}"
    return UsageError("root", root, reason, f"{_NEED}; {way_out}")


def check_classes(
    folder: Path, root: Path, images: Mapping[str, Sequence[str]], class_names: Collection[str]
) -> list[Finding]:
    """Returns what is to be said of class folders that look like something else by what they hold.

    Args:
        folder: Where the class folders lie: the root, or train.
        root: The root.
        images: Class -> the paths of its images.
        class_names: The classes that were named.

    Raises:
        UsageError: If the only class folder holds those of the classes, or every class has splits of its own inside.
    """
    full = {name: paths for name, paths in images.items() if paths}
    if len(full) == 1:
        _check_depth(folder, root, *next(iter(full.items())))
    inside = {name: _folders_of(paths, folder / name) for name, paths in full.items()}
    if len(full) < 2 or not all(inside.values()):
        return []
    splits = [{split for name in names if (split := split_of_name(name))} for names in inside.values()]
    if all(splits) and any(len(each) > 1 for each in splits):
        name = next(name for name, each in zip(inside, splits, strict=True) if len(each) > 1)
        reason = f"the class folders have splits inside, {name}/{' and '.join(sorted(inside[name])[:2])}"
        way_out = f"put the split above the classes, as train/{name}, or list the images with their split in a CSV"
        raise UsageError("root", root, reason, f"{way_out} (`dataset=manifest`)")
    common, every = frozenset.intersection(*inside.values()), frozenset.union(*inside.values())
    if len(common) < 2 or 2 * len(common) < len(every) or set(full) <= set(class_names):
        return []
    message = (
        f"are read as classes and hold the same folders, such as {' and '.join(sorted(common)[:2])}: if those are the "
        "classes, call these train, val and test; if not, `class_names` with these says so"
    )
    return [Finding("same_folders", "warning", message, (tuple(full),))]


def _check_depth(folder: Path, root: Path, name: str, paths: Sequence[str]) -> None:
    here = folder / name
    while len(inside := _folders_of(paths, here)) == 1:
        here = here / next(iter(inside))
    if inside:
        first, second = sorted(inside)[:2]
        reason = f"{folder} has {name}/ as its only folder of images, and {here} holds {first}/, {second}/"
        way_out = f"give `root={here}`" if folder == root else f"move what is in {here} up, into {folder}"
        raise UsageError("root", root, reason, f"{way_out}, if those are the classes")


def _folders_of(paths: Sequence[str], folder: Path) -> frozenset[str]:
    """Returns the sub-folders in which all images of a folder lie; nothing if one lies in the folder itself."""
    start = len(os.path.join(folder, ""))
    found = set()
    for path in paths:
        end = path.find(os.sep, start)
        if end < 0:
            return frozenset()
        found.add(path[start:end])
    return frozenset(found)
