"""Who is in train, val and test: drawn from `split_seed` and the images, never from the training seed."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lit_cnn.core.csv_text import csv_text
from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import NO_BYTES
from lit_cnn.core.randomness import many_key_words
from lit_cnn.core.words import counted
from lit_cnn.data.folds import Fold, cut_into_folds
from lit_cnn.data.sources import ImageSet
from lit_cnn.data.split_scheme_1 import set_aside_1

Split = Literal["train", "val", "test"]
SPLIT_NAMES: tuple[Split, ...] = get_args(Split)
SplitScheme = Literal[1, 2]
"""Raised when a release draws another split from the same images; see `draw_splits`."""


@dataclass(frozen=True)
class Splits:
    """Indices into an image set, each `(n,)` int64.

    Attributes:
        train: In the order in which `limit_train` takes them.
        val: Ascending.
        test: Ascending.
        folds: All of them, each ascending: val is one of them. None without folds.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    folds: tuple[np.ndarray, ...] = ()

    def __getitem__(self, split: Split) -> np.ndarray:
        return {"train": self.train, "val": self.val, "test": self.test}[split]


def draw_splits(
    image_set: ImageSet,
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    limit_train: int | None = None,
    scheme: SplitScheme = 2,
    fold: Fold | None = None,
) -> Splits:
    """Sets test and val aside, class by class, then orders what is left for training.

    Splits that the source prescribes are kept; a missing val or test is drawn from its train, test first. Each image
    has a draw, a function of `split_seed` and its own bytes. Of each class the `round(fraction * n)` images with the
    lowest draws are taken, one at least, as long as one is left for each split to come. So one image more or less moves
    at most one other image of its class into or out of test, and one into or out of val.

    What must not be torn apart has one draw: exact copies, whatever their labels, and where the source knows groups
    the images of a group (exact copies in two groups make them one). By rising draw each is taken that fits into what
    its classes' quotas still miss; then, while that brings all classes together nearer to their quotas, the one that
    does so most. One image more or less may then move as many others as some of the largest groups hold.

    With folds test is the same as without. All other images, those of a val that the source prescribes among them, are
    cut into folds (see `cut_into_folds`): one of them is val, the others are train.

    Args:
        image_set: The images.
        val_fraction: Share of the images that are not test that goes to val, in (0, 1); at least one a class.
        test_fraction: Share of all images that goes to test, in (0, 1), where none is prescribed; at least one a class.
        split_seed: The seed of the draw.
        limit_train: Keep that many training images, stratified; the first 50 are among the first 500.
        scheme: 2 is the above; 1 repeats the draw of 0.2 and before, see `lit_cnn.data.split_scheme_1`.
        fold: The fold that is val; None: no folds.

    Raises:
        UsageError: If a class is too small, or in too few groups, to be in all three or in each fold, or there are
            fewer training images than `limit_train`.
    """
    names = _drawn_by(image_set, scheme)

    def draws_of(indices: np.ndarray, stream: str, seed: int) -> np.ndarray:
        return _draw([names[index] for index in indices], stream, seed)

    remaining = image_set.splits.get("train", np.arange(len(image_set.labels)))
    parts = dict(image_set.splits)
    to_draw = [split for split in ("test", "val") if split not in parts]
    for num_later, split in zip(range(len(to_draw), 0, -1), to_draw, strict=True):
        if split == "val" and fold is not None:
            break
        fraction = test_fraction if split == "test" else val_fraction
        draws = draws_of(remaining, split, split_seed)
        choose = set_aside_1 if scheme == 1 else _set_aside
        taken = choose(image_set, remaining, draws, fraction, num_later)
        parts[split], remaining = remaining[taken], remaining[~taken]
    folds: tuple[np.ndarray, ...] = ()
    if fold is not None:
        pool = np.union1d(remaining, parts.get("val", remaining))
        fold_of = cut_into_folds(image_set, pool, draws_of(pool, "fold", fold.seed), fold.num_folds)
        folds = tuple(pool[fold_of == number] for number in range(fold.num_folds))
        parts["val"], remaining = folds[fold.number], pool[fold_of != fold.number]
    train = stratified_order(image_set, remaining, split_seed)
    if limit_train is not None:
        if limit_train > len(train):
            raise UsageError("limit_train", limit_train, f"there are {len(train)} training images", "give fewer")
        train = train[:limit_train]
    return Splits(train, np.sort(parts["val"]), np.sort(parts["test"]), folds)


def _drawn_by(image_set: ImageSet, scheme: SplitScheme) -> Sequence[str]:
    """Returns for each image what its draw is a function of; images with the same are never torn apart."""
    hashes = image_set.hashes
    if scheme != 1 and NO_BYTES in hashes:  # images that are not there are no copies of each other
        hashes = [path if digest == NO_BYTES else digest for path, digest in zip(image_set.paths, hashes, strict=True)]
    return hashes if image_set.groups is None else bound_together(image_set.groups, hashes).tolist()


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
    draws = _draw([image_set.hashes[index] for index in indices], split_seed)
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
    image_set: ImageSet, indices: np.ndarray, draws: np.ndarray, fraction: float, num_later: int
) -> np.ndarray:
    """Returns a mask of the images to take: of each class its quota, by rising draw; see `draw_splits`.

    Args:
        image_set: All images.
        indices: `(n,)` those to choose from.
        draws: `(n,)` uint64; images of one draw are taken together or not at all.
        fraction: The quota, as a share of each class.
        num_later: Splits that are to be filled from what is left: so many units of each class stay behind.
    """
    labels, num_classes = image_set.labels[indices], len(image_set.class_names)
    ordered, unit_of = np.unique(draws, return_inverse=True)
    pairs, sizes = np.unique(unit_of * num_classes + labels, return_counts=True)  # the images of a class in a unit
    units, classes = np.divmod(pairs, num_classes)
    starts = np.searchsorted(units, np.arange(len(ordered)))
    num_units, num_images = (np.bincount(each, minlength=num_classes) for each in (classes, labels))
    if len(few := np.flatnonzero((num_images > 0) & (num_units <= num_later))):
        raise _too_few(image_set, few[0], num_images[few[0]], num_units[few[0]])
    missing, free = np.maximum(1, np.rint(fraction * num_images)).astype(np.int64), num_units - num_later
    taken = _that_fit(classes, sizes, [*starts, len(pairs)], missing, free)

    # What is missing now is less than any unit has: one more is taken where that is nearer to the quotas.
    missing -= np.bincount(classes[taken[units]], sizes[taken[units]], num_classes).astype(np.int64)
    free -= np.bincount(classes[taken[units]], minlength=num_classes)
    while (missing[num_images > 0] > 0).any():
        gain = np.add.reduceat(np.abs(missing[classes]) - np.abs(missing[classes] - sizes), starts)
        cannot = taken | (np.minimum.reduceat(free[classes], starts) < 1)
        gain[cannot] = np.iinfo(np.int64).min
        if gain.max() <= 0:
            # Only units much larger than the quota: a class of which none is taken gets the one that is nearest.
            without = np.setdiff1d(classes, classes[taken[units]])
            if not len(without):
                break
            holds = np.zeros(len(ordered), bool)
            holds[units[classes == without[0]]] = True
            if (cannot | ~holds).all():
                raise _too_few(image_set, without[0], num_images[without[0]], num_units[without[0]], is_bound=True)
            gain[~holds] = np.iinfo(np.int64).min
        unit = gain.argmax()
        taken[unit] = True
        missing[classes[units == unit]] -= sizes[units == unit]
        free[classes[units == unit]] -= 1
    return taken[unit_of]


def _that_fit(
    classes: np.ndarray, sizes: np.ndarray, starts: Sequence[int], missing: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """Returns a mask of units: each in turn, if it has no more images of a class than that one's quota still misses.

    Args:
        classes: `(m,)` the class of each pair (unit, class), by units.
        sizes: `(m,)` the images of each pair.
        starts: Where each unit's pairs begin; then m.
        missing: Images that each class is to give.
        free: Units that each class can give.
    """
    of_class, of_pair = classes.tolist(), sizes.tolist()
    to_give, can_give = missing.tolist(), free.tolist()
    taken = np.zeros(len(starts) - 1, bool)
    num_open = len(set(of_class))
    for unit, (start, end) in enumerate(itertools.pairwise(map(int, starts))):
        if all(of_pair[at] <= to_give[of_class[at]] and can_give[of_class[at]] for at in range(start, end)):
            taken[unit] = True
            for at in range(start, end):
                to_give[of_class[at]] -= of_pair[at]
                can_give[of_class[at]] -= 1
                num_open -= not to_give[of_class[at]]
        if not num_open:
            break
    return taken


def _too_few(
    image_set: ImageSet, label: np.intp, num_images: np.intp, num_units: np.intp, is_bound: bool = False
) -> UsageError:
    name, between = image_set.class_names[label], "between train, val and test"
    if image_set.groups is not None:
        what = "shares its groups with other rare classes" if is_bound else f"is in {counted(int(num_units), 'group')}"
        remedy = "add groups, leave the class out, or give the split in the manifest"
        return UsageError("root", None, f"class {name} {what}: they cannot be shared {between}", remedy)
    what = counted(int(num_images), "image")
    if is_bound or num_units < num_images:
        what += ", copies under other labels among them," if is_bound else f" ({num_units:,} without copies)"
    return UsageError("root", None, f"class {name} has {what} to share {between}", "add images, or leave the class out")


def _draw(names: Sequence[str], *key: int | str) -> np.ndarray:
    """Returns a number in [0, 2**64) for each name, `(n,)` uint64: a function of the key and the name."""
    return many_key_words("split", ((*key, name) for name in names))[:, 0]
