"""Folds: the images that are not test, cut into K parts, of which each is val once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.words import counted
from lit_cnn.data.image_set import ImageSet

_HALF = np.uint64(32)  # bits


@dataclass(frozen=True)
class Fold:
    """One of several folds.

    Attributes:
        number: From 0 to `num_folds` - 1.
        num_folds: How many there are, at least 2.
        seed: Of the draw that cuts them.
    """

    number: int
    num_folds: int
    seed: int


def fold_in(options: Mapping[str, Any], split_seed: int) -> Fold | None:
    """Returns the fold that options of a data module choose; None without folds."""
    if options["num_folds"] is None:
        return None
    seed = options["fold_seed"]
    return Fold(options["fold"], options["num_folds"], split_seed if seed is None else seed)


def cut_into_folds(image_set: ImageSet, indices: np.ndarray, draws: np.ndarray, num_folds: int) -> np.ndarray:
    """Returns the fold of each image, `(n,)` int in [0, K).

    The draws are cut into K ranges of the same length, so an image keeps its fold whatever others are added or taken
    away. Folds are then as unequal in size as chance makes them. What has one draw, copies and groups, is in one fold.

    Only where a fold would be without a class, one image of that class (with its copies and its group) moves there: the
    one whose draw is nearest to the fold's range, from a fold that keeps others of each of its classes. So what is in
    another fold than its range's is at most as much as folds would be without a class: nothing, as a rule, of classes
    with 40 images or more. One image more or less can move only those.

    Args:
        image_set: All images.
        indices: `(n,)` those to cut.
        draws: `(n,)` uint64; images of one draw stay together.
        num_folds: K, at least 2.

    Raises:
        UsageError: If a class is in too few images, or groups, for each fold to have one.
    """
    labels, num_classes = image_set.labels[indices], len(image_set.class_names)
    ordered, unit_of = np.unique(draws, return_inverse=True)
    units, classes = np.divmod(np.unique(unit_of * num_classes + labels), num_classes)
    num_units = np.bincount(classes, minlength=num_classes)
    if len(few := np.flatnonzero((num_units > 0) & (num_units < num_folds))):
        raise _too_few(image_set, labels, few[0], num_units[few[0]], num_folds)
    # In whole numbers: the range of fold f are the draws whose places are in [f, f + 1) times 2 to the 32.
    places = ((ordered >> _HALF) * np.uint64(num_folds)).astype(np.int64)
    fold_of = places >> 32
    counts = np.zeros((num_classes, num_folds), np.int64)
    np.add.at(counts, (classes, fold_of[units]), 1)
    starts = np.searchsorted(units, np.arange(len(ordered)))
    for label in np.argsort(num_units, kind="stable"):
        for fold in np.flatnonzero(counts[label] == 0) if num_units[label] else ():
            holders = units[classes == label]
            others_stay = np.logical_and.reduceat(counts[classes, fold_of[units]] > 1, starts)
            free = holders[others_stay[holders]]
            if not len(free):
                raise _too_few(image_set, labels, label, num_units[label], num_folds, is_bound=True)
            before, after = places[free] - ((fold + 1) << 32), (fold << 32) - places[free]
            moved = free[np.argmin(np.maximum(before, after))]
            its_classes = classes[units == moved]
            counts[its_classes, fold_of[moved]] -= 1
            counts[its_classes, fold] += 1
            fold_of[moved] = fold
    folds: np.ndarray = fold_of[unit_of]
    return folds


def _too_few(
    image_set: ImageSet, labels: np.ndarray, label: np.intp, num_units: np.intp, num_folds: int, is_bound: bool = False
) -> UsageError:
    name = image_set.class_names[label]
    if image_set.groups is not None:
        what = "shares its groups with other rare classes" if is_bound else f"is in {counted(int(num_units), 'group')}"
        remedy = "add groups, or leave the class out"
    else:
        num_images = int((labels == label).sum())
        what = f"has {counted(num_images, 'image')}"
        if is_bound:
            what += ", copies under other labels among them,"
        elif num_images > num_units:
            what += f" ({num_units:,} without copies)"
        remedy = "add images, or leave the class out"
    if not is_bound and num_units > 1:
        remedy = f"give at most {num_units:,}, {remedy}"
    return UsageError("num_folds", num_folds, f"class {name} {what} beside the test images: too few", remedy)
