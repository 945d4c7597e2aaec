"""Who is in train, val and test: drawn from `split_seed` and the images, never from the training seed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lit_cnn.core.csv_text import csv_text
from lit_cnn.core.errors import UsageError
from lit_cnn.core.randomness import key_words, many_key_words
from lit_cnn.core.words import counted
from lit_cnn.data.sources import ImageSet

Split = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Splits:
    """Indices into an image set, each `(n,)` int64.

    Attributes:
        train: In the order in which `limit_train` takes them.
        val: Ascending.
        test: Ascending.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def __getitem__(self, split: Split) -> np.ndarray:
        return {"train": self.train, "val": self.val, "test": self.test}[split]


def draw_splits(
    image_set: ImageSet, val_fraction: float, test_fraction: float, split_seed: int, limit_train: int | None = None
) -> Splits:
    """Sets test and val aside, class by class, then orders what is left for training.

    Splits that the source prescribes are kept; a missing val or test is drawn from its train. An image's place
    depends on `split_seed` and on its own bytes, not on how many images there are: images added later move none of the
    others, and exact copies of one image share a split. So a share is met on average: a fifth of 100 images is 20 give
    or take 4. Only in a class so small that its draw would leave a split empty does an image change its place.

    Where the source knows groups, whole groups are drawn, by their names; exact copies in two groups make them one. The
    share is then one of the groups.

    Args:
        image_set: The images.
        val_fraction: Share of the images that are not test that goes to val, in (0, 1); at least one a class.
        test_fraction: Share of all images that goes to test, in (0, 1), where none is prescribed; at least one a class.
        split_seed: The seed of the draw.
        limit_train: Keep that many training images, stratified; the first 50 are among the first 500.

    Raises:
        UsageError: If a class is too small, or in too few groups, to be in all three, or there are fewer training
            images than `limit_train`.
    """
    units = None if image_set.groups is None else bound_together(image_set.groups, image_set.hashes)
    remaining = image_set.splits.get("train", np.arange(len(image_set.labels)))
    parts = dict(image_set.splits)
    to_draw = [split for split in ("test", "val") if split not in parts]
    for num_later, split in zip(range(len(to_draw), 0, -1), to_draw, strict=True):
        fraction = test_fraction if split == "test" else val_fraction
        if units is None:
            draws = _draw(image_set, remaining, split, split_seed)
            taken = _set_aside(image_set, remaining, draws, fraction, num_later)
        else:
            key = ("split", split, split_seed)
            taken = _set_units_aside(image_set, remaining, units[remaining], key, fraction, num_later)
        parts[split], remaining = remaining[taken], remaining[~taken]
    train = stratified_order(image_set, remaining, split_seed)
    if limit_train is not None:
        if limit_train > len(train):
            raise UsageError("limit_train", limit_train, f"there are {len(train)} training images", "give fewer")
        train = train[:limit_train]
    return Splits(train, np.sort(parts["val"]), np.sort(parts["test"]))


def bound_together(groups: Sequence[str], hashes: Sequence[str]) -> np.ndarray:
    """Returns for each image the name of what it is drawn with, `(N,)` text: its group, or itself if it has none.

    Groups that hold a copy of the same image are one, under the name that sorts first.
    """
    from scipy.sparse import coo_array  # a tenth of a second of every start, for sets with groups
    from scipy.sparse.csgraph import connected_components

    # A group's name sorts before a digest: a copy that is in no group joins the group of the other.
    own = [f"group {group}" if group else f"image {digest}" for group, digest in zip(groups, hashes, strict=True)]
    names, name_of = np.unique(np.array(own), return_inverse=True)
    digests, digest_of = np.unique(np.array(hashes), return_inverse=True)
    size = len(names) + len(digests)
    links = coo_array((np.ones(len(own), bool), (name_of, len(names) + digest_of)), shape=(size, size))
    component = connected_components(links, directed=False)[1][: len(names)]
    first = np.full(component.max() + 1, len(names))
    np.minimum.at(first, component, np.arange(len(names)))
    return names[first[component[name_of]]]


def stratified_order(image_set: ImageSet, indices: np.ndarray, split_seed: int) -> np.ndarray:
    """Orders images so that every prefix has the classes in their proportions and each class gets its turn early."""
    places = np.empty(len(indices))
    labels = image_set.labels[indices]
    draws = _draw(image_set, indices, split_seed)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = members[np.lexsort((indices[members], draws[members]))]
        places[order] = (np.arange(len(order)) + 0.5) / len(order)
    return indices[np.lexsort((labels, places))]


def manifest(image_set: ImageSet, splits: Splits) -> str:
    """Returns the split as CSV text: path, class, split; sorted by path, the same for every run of the same data."""
    rows = [
        (image_set.paths[index], image_set.class_names[image_set.labels[index]], split)
        for split in SPLIT_NAMES
        for index in splits[split]
    ]
    return csv_text([("path", "class", "split"), *sorted(rows)])


def manifest_digest(text: str) -> str:
    """Returns the SHA-256 of a manifest's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _set_aside(
    image_set: ImageSet, indices: np.ndarray, draws: np.ndarray, fraction: float, num_left: int
) -> np.ndarray:
    """Returns a mask of the images to take: of each class at least one, and at least `num_left` are left."""
    labels = image_set.labels[indices]
    inside = draws < fraction * 2.0**64
    taken = np.zeros(len(indices), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, int(inside[members].sum())), len(members) - num_left)
        if count < 1:
            raise UsageError(
                "root",
                None,
                (
                    f"class {image_set.class_names[label]} has {counted(len(members), 'image')} to share "
                    "between train, val and test"
                ),
                "add images, or leave the class out",
            )
        order = members[np.lexsort((indices[members], draws[members]))]
        taken[order[:count]] = True
    return taken


def _set_units_aside(
    image_set: ImageSet, indices: np.ndarray, units: np.ndarray, key: tuple[int | str, ...], fraction: float, left: int
) -> np.ndarray:
    """Returns a mask of the images to take: whole units, of each class at least one, and at least `left` are left."""
    names, unit_of = np.unique(units, return_inverse=True)
    draws = np.fromiter((key_words(*key, str(name))[0] for name in names), np.uint64, len(names))
    taken = draws < fraction * 2.0**64
    # Which units hold which classes; the units from the lowest draw to the highest.
    pairs = np.unique(np.stack([unit_of, image_set.labels[indices]], axis=1), axis=0)
    pairs = pairs[np.argsort(draws[pairs[:, 0]], kind="stable")]
    classes = np.unique(pairs[:, 1])
    for label in classes:
        holders = pairs[pairs[:, 1] == label, 0]
        if len(holders) <= left:
            raise _too_few_groups(image_set, label, f"is in {counted(len(holders), 'group')}")
        inside = holders[taken[holders]]
        taken[inside[max(0, len(holders) - left) :]] = False  # those drawn last stay behind
    for label in classes:
        holders = pairs[pairs[:, 1] == label, 0]
        if not taken[holders].any():
            free = [unit for unit in holders if _can_be_taken(pairs, taken, unit, left)]
            if not free:
                raise _too_few_groups(image_set, label, "shares its groups with other rare classes")
            taken[free[0]] = True
    return taken[unit_of]


def _can_be_taken(pairs: np.ndarray, taken: np.ndarray, unit: int, left: int) -> bool:
    """Returns whether each class of the unit is in more than `left` units that are not taken."""
    remaining = pairs[~taken[pairs[:, 0]]]
    return all((remaining[:, 1] == label).sum() > left for label in pairs[pairs[:, 0] == unit, 1])


def _too_few_groups(image_set: ImageSet, label: int, reason: str) -> UsageError:
    return UsageError(
        "root",
        None,
        f"class {image_set.class_names[label]} {reason}: they cannot be shared between train, val and test",
        "add groups, leave the class out, or give the split in the manifest",
    )


def _draw(image_set: ImageSet, indices: np.ndarray, *key: int | str) -> np.ndarray:
    """Returns a number in [0, 2**64) for each image, `(n,)` uint64: a function of the key and the image's bytes."""
    return many_key_words("split", ((*key, image_set.hashes[index]) for index in indices))[:, 0]
