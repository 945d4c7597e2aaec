"""The draw of 0.2 and before: an image is in test, or val, if its draw is below the fraction.

Kept so that the runs of these versions can be tested, resumed and compared on the images that they left out.
"""

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.words import counted
from lit_cnn.data.image_set import ImageSet


def set_aside_1(
    image_set: ImageSet, indices: np.ndarray, draws: np.ndarray, fraction: float, num_later: int
) -> np.ndarray:
    """Returns a mask of the images to take; of each class at least one, and at least `num_later` are left.

    Args:
        image_set: All images.
        indices: `(n,)` those to choose from.
        draws: `(n,)` uint64; where the set has groups, those of one draw are taken together or not at all.
        fraction: Which part of all draws is taken.
        num_later: Splits that are to be filled from what is left.

    Raises:
        UsageError: If a class is too small, or in too few groups.
    """
    if image_set.groups is not None:
        return _units_aside(image_set, indices, draws, fraction, num_later)
    labels = image_set.labels[indices]
    inside = draws < fraction * 2.0**64
    taken = np.zeros(len(indices), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, int(inside[members].sum())), len(members) - num_later)
        if count < 1:
            reason = f"has {counted(len(members), 'image')} to share between train, val and test"
            raise UsageError("root", None, f"class {image_set.class_names[label]} {reason}", "add images")
        order = members[np.lexsort((indices[members], draws[members]))]
        taken[order[:count]] = True
    return taken


def _units_aside(image_set: ImageSet, indices: np.ndarray, draws: np.ndarray, fraction: float, left: int) -> np.ndarray:
    ordered, unit_of = np.unique(draws, return_inverse=True)
    taken = ordered < fraction * 2.0**64
    # Which units hold which classes; the units from the lowest draw to the highest.
    pairs = np.unique(np.stack([unit_of, image_set.labels[indices]], axis=1), axis=0)
    classes = np.unique(pairs[:, 1])
    for label in classes:
        holders = pairs[pairs[:, 1] == label, 0]
        if len(holders) <= left:
            raise _too_few_groups(image_set, label)
        inside = holders[taken[holders]]
        taken[inside[max(0, len(holders) - left) :]] = False  # those drawn last stay behind
    for label in classes:
        holders = pairs[pairs[:, 1] == label, 0]
        if not taken[holders].any():
            free = [unit for unit in holders if _can_be_taken(pairs, taken, unit, left)]
            if not free:
                raise _too_few_groups(image_set, label)
            taken[free[0]] = True
    return taken[unit_of]


def _can_be_taken(pairs: np.ndarray, taken: np.ndarray, unit: int, left: int) -> bool:
    """Returns whether each class of the unit is in more than `left` units that are not taken."""
    remaining = pairs[~taken[pairs[:, 0]]]
    return all((remaining[:, 1] == label).sum() > left for label in pairs[pairs[:, 0] == unit, 1])


def _too_few_groups(image_set: ImageSet, label: int) -> UsageError:
    reason = f"class {image_set.class_names[label]} is in too few groups to be shared between train, val and test"
    return UsageError("root", None, reason, "add groups, or leave the class out")
