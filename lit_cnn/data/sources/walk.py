"""A walk through a folder of images: what of it is read, and what is passed over."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_names import as_text
from lit_cnn.data.file_kinds import (
    HEAD_BYTES,
    IMAGE_SUFFIXES,
    UNKNOWN,
    Kind,
    is_system_name,
    kind_of_bytes,
    kind_of_name,
    suffix_of,
)
from lit_cnn.data.findings import Finding, Severity
from lit_cnn.data.image_set import class_order

# What a walk comes across besides images: kind -> (severity, message).
_MESSAGES: dict[str, tuple[Severity, str]] = {
    "dangling_link": ("warning", "a link to nothing, passed over: mend it or take it away"),
    "outward_link": ("warning", "a link out of the folder, followed: whoever gets the folder does not get the image"),
    "linked_folder": ("warning", "a link to a folder, passed over: put the folder itself here"),
    "special_file": ("warning", "a pipe, socket or device, passed over: take it away"),
    "other_folder": (
        "warning",
        "a folder of images next to train/, passed over: call it val or test, move it into train/, or take it away",
    ),
    "loose_image": ("warning", "an image outside of the class folders, passed over: move it into one"),
    "other_file": ("note", "no image by its name, passed over"),
    "system_file": (
        "note",
        "hidden, or made by other software, as thumbnails are: passed over; rename it if it is yours",
    ),
}


class Noticed(NamedTuple):
    """Something that a walk came across besides images that are nothing but that.

    Attributes:
        kind: A kind of finding.
        path: Where.
        what: Of an `unread_file`, what it is in words.
        way_out: Of an `unread_file`, what is to be done.
    """

    kind: str
    path: str
    what: str = ""
    way_out: str = ""


class Walk(NamedTuple):
    """What is at and below a folder.

    Attributes:
        images: Paths of image files, as paths sort, folder by folder: `a/z` before `a-b/c`.
        noticed: What else was there, in the same order.
    """

    images: list[str]
    noticed: list[Noticed]


def walk(folder: Path, root: Path) -> Walk:
    """Looks at what is at and below a folder; at the first bytes too of files whose names do not say what they are.

    Hidden files and folders and those of other software are passed over, as they are noticed. Links to files are
    followed, links to folders are not. In a folder that is not there, there is nothing.

    Args:
        folder: Where to look; may be a link itself.
        root: Links that lead out of this folder are outward.
    """
    images: list[str] = []
    noticed: list[Noticed] = []
    if not folder.is_dir():
        return Walk(images, noticed)
    top = os.path.realpath(root)
    if folder != root and not is_inside(os.path.realpath(folder), top):
        noticed.append(Noticed("outward_link", str(folder)))
    waiting = [str(folder)]
    while waiting:
        here = waiting.pop()
        # A hundred thousand files: what scandir knows of an entry costs nothing, another look at it does.
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if is_system_name(entry.name):
                        noticed.append(Noticed("system_file", entry.path))
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif suffix_of(entry.name) in IMAGE_SUFFIXES and entry.is_file(follow_symlinks=False):
                        images.append(entry.path)
                    else:
                        is_image, found = look_at(entry, top)
                        if is_image:
                            images.append(entry.path)
                        if found is not None:
                            noticed.append(found)
        except OSError:
            noticed.append(Noticed("unreadable_folder", here))
    images.sort(key=lambda path: path.split(os.sep))
    noticed.sort(key=lambda one: one.path.split(os.sep))
    return Walk(images, noticed)


def look_at(entry: os.DirEntry[str], top: str) -> tuple[bool, Noticed | None]:
    """Returns whether an entry that is no folder is an image, and what there is to notice about it.

    Args:
        entry: A file, or a link, pipe, socket or device.
        top: A link that leads out of this folder is outward.
    """
    if not entry.is_symlink():
        return _look_at_file(entry) if entry.is_file() else (False, Noticed("special_file", entry.path))
    try:
        target = os.path.realpath(entry.path, strict=True)
    except OSError:  # nothing there, or a ring of links
        return False, Noticed("dangling_link", entry.path)
    if os.path.isdir(target):
        return False, Noticed("linked_folder", entry.path)
    if not os.path.isfile(target):
        return False, Noticed("special_file", entry.path)
    is_image, found = _look_at_file(entry)
    if is_image and not is_inside(target, top):
        return True, Noticed("outward_link", entry.path)
    return is_image, found


def _look_at_file(entry: os.DirEntry[str]) -> tuple[bool, Noticed | None]:
    kind = kind_of_name(entry.name)
    if kind is None:
        try:
            with open(entry.path, "rb") as file:
                kind = kind_of_bytes(file.read(HEAD_BYTES))
        except OSError as error:
            kind = Kind(error.strerror or "unreadable", "unread", "make it readable, or take it away")
        if kind == UNKNOWN:
            what = suffix_of(entry.name) or "without a suffix"
            return False, Noticed("unread_file", entry.path, what, "convert it to JPEG or PNG if it is an image")
    if kind.family == "read":
        return True, None
    if kind.family == "other":
        return False, Noticed("other_file", entry.path)
    return False, Noticed("unread_file", entry.path, kind.name, kind.way_out)


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it; both as `os.path.realpath` gives them."""
    return os.path.commonpath([folder, path]) == folder


def sub_folders(folder: Path) -> tuple[str, ...]:
    """Returns the names of a folder's sub-folders in the order of classes, without those of other software.

    Raises:
        UsageError: If the folder cannot be read.
    """
    try:
        names = [path.name for path in folder.iterdir() if not is_system_name(path.name) and path.is_dir()]
    except OSError as error:
        raise UsageError("root", None, _unreadable(folder)) from error
    return in_class_order(names)


def in_class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns names of folders in the `class_order` of their texts, as that of the split's manifest is read back."""
    names = list(names)
    order = {text: place for place, text in enumerate(class_order([as_text(name) for name in names]))}
    return tuple(sorted(names, key=lambda name: order[as_text(name)]))


def holds_images(folder: Path, root: Path) -> bool:
    """Whether there is an image at or below a folder; looks no further than the first."""
    waiting = [str(folder)]
    top = os.path.realpath(root)
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if is_system_name(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif look_at(entry, top)[0]:
                        return True
        except OSError:
            continue  # the walk says so
    return False


def loose_files(folder: Path, root: Path) -> Walk:
    """Looks at what lies in a folder itself, outside of its sub-folders.

    Raises:
        UsageError: If the folder cannot be read.
    """
    images: list[str] = []
    noticed: list[Noticed] = []
    top = os.path.realpath(root)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError("root", None, _unreadable(folder)) from error
    for entry in entries:
        if is_system_name(entry.name):
            noticed.append(Noticed("system_file", entry.path))
        elif not entry.is_dir():
            is_image, found = look_at(entry, top)
            if is_image:
                images.append(entry.path)
            if found is not None:
                noticed.append(found)
    return Walk(images, noticed)


def findings_of(noticed: Sequence[Noticed], prefix: int) -> Iterator[Finding]:
    """Yields what a walk noticed as findings, one of each kind, the paths without their first `prefix` letters."""

    def of_kind(kind: str) -> list[Noticed]:
        return [one for one in noticed if one.kind == kind]

    # First: what cannot be read is counted as empty too.
    for one in of_kind("unreadable_folder"):
        yield Finding("unreadable_folder", "error", _unreadable(one.path), ((one.path[prefix:],),))
    for one in of_kind("empty_class"):
        message = f"class folder {one.path} holds no images: fill it, or take it away"
        yield Finding("empty_class", "error", message, ((one.path[prefix:],),))
    if unread := of_kind("unread_file"):
        cases = tuple((one.path[prefix:],) for one in unread)
        yield Finding("unread_file", "warning", _in_words(unread), cases)
    for kind, (severity, message) in _MESSAGES.items():
        if cases := tuple((one.path[prefix:],) for one in of_kind(kind)):
            yield Finding(kind, severity, message, cases)


def _in_words(unread: Collection[Noticed]) -> str:
    """Says of files that are not read how many of each kind there are, and the way out for the most frequent."""
    counts = Counter((one.what, one.way_out) for one in unread)
    (_, way_out), _ = counts.most_common(1)[0]
    kinds = ", ".join(f"{count:,} {what}" for (what, _), count in counts.most_common(4))
    more = ", …" if len(counts) > 4 else ""
    return f"passed over, as it is not read ({kinds}{more}): {way_out}"


def _unreadable(folder: Path | str) -> str:
    return f"folder {folder} cannot be read: give yourself the right to"
