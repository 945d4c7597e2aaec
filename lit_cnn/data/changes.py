"""What has changed in a set of images since a run's split was kept."""

import csv
import io
from collections.abc import Sequence

from lit_cnn.core.words import and_more, counted
from lit_cnn.data.class_table import printable
from lit_cnn.data.image_set import ImageSet, digest_of_rows


def changes(image_set: ImageSet, kept: str, digest: str, is_whole: bool) -> str:
    """Returns in words what was added, removed, renamed or put into another class; nothing where that cannot be told.

    A manifest has names and no bytes. That removed and added images are the same under other names is said where the
    digest proves it.

    Args:
        image_set: The images as they are.
        kept: The manifest of a split of them as they were; see `lit_cnn.data.splits.manifest`.
        digest: The digest of the images as they were.
        is_whole: Whether the manifest has all images; with `limit_train` it has not, and does not say what was added.
    """
    rows = csv.reader(io.StringIO(kept))
    before = {path: class_name for path, class_name, _ in list(rows)[1:]}
    names = [image_set.class_names[label] for label in image_set.labels]
    now = dict(zip(image_set.paths, zip(names, image_set.hashes, strict=True), strict=True))
    removed, added = sorted(before.keys() - now.keys()), sorted(now.keys() - before.keys())
    relabelled = sorted(path for path in before.keys() & now.keys() if before[path] != now[path][0])

    def digest_if(old_name: dict[str, str]) -> str:
        """Returns the digest of the images as they were, if their bytes are those of images that are there."""
        new_name = {path: old_name.get(path, path) for path in before}
        return digest_of_rows((path, before[path], now[new][1]) for path, new in new_name.items() if new in now)

    if not is_whole:
        added = []
    elif removed and len(removed) == len(added) and digest_if(dict(zip(removed, added, strict=True))) == digest:
        return f"{counted(len(removed), 'image')} renamed ({removed[0]} is {added[0]}{and_more(len(removed))})"
    said = [_some(paths, what) for paths, what in ((added, "added"), (removed, "removed")) if paths]
    said += [_some(relabelled, "put into another class")] if relabelled else []
    if is_whole and not removed and digest_if({}) != digest:
        said.append("the bytes of others changed" if said else "the bytes of some changed")
    return ", ".join(said)


def _some(paths: Sequence[str], what: str) -> str:
    return f"{counted(len(paths), 'image')} {what} ({printable(paths[0])}{and_more(len(paths))})"
