"""Whether an exported model predicts what the stored logits of its members predict."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.evaluation.calibration import with_temperature
from lit_cnn.evaluation.combining import combine
from lit_cnn.evaluation.outputs import SplitOutputs, reader_of
from lit_cnn.evaluation.predict import Loading, Member, ViewImages, forward_batches, probabilities_of, split_by_path
from lit_cnn.evaluation.view_logits import view_logits
from lit_cnn.exports.recipe import Recipe
from lit_cnn.portable import ImageClassifier

NEAR_TIE = 1e-4
"""Two classes whose stored probabilities differ by less may change places: float32 sums in another order."""

MOST_DIFFERENCE = 1e-3
"""By how much a probability may differ from the stored one."""


def stored_probabilities(recipe: Recipe, members: Sequence[Member], folder: Path, loading: Loading) -> np.ndarray:
    """Returns the recipe's probabilities of the test images, from stored logits; members' missing ones are computed.

    Args:
        recipe: What is exported.
        members: Its members.
        folder: Where logits are stored.
        loading: How images are read and go through the networks.

    Returns:
        `(N, num_classes)` float64, the images in the order of their paths.
    """
    indices = split_by_path(members[0], "test")
    readers = [
        reader_of(
            member,
            view_logits(member, split_by_path(member, "test"), [recipe.views], folder, loading),
            recipe.views,
        )
        for member in members
    ]
    targets = members[0].data.image_set.labels[indices]
    found = []
    for block in SplitOutputs(targets, readers, recipe.views, len(members[0].record.class_names)).blocks():
        combined = combine(block, recipe.rule, recipe.weights)
        assert combined.probabilities is not None
        found.append(with_temperature(combined.probabilities, recipe.temperature))
    return np.concatenate(found)


def check_parity(
    exported: ImageClassifier, member: Member, expected: np.ndarray, loading: Loading
) -> dict[str, int | float | str]:
    """Compares an export's predictions for the test images, through its own preprocessing, with the stored ones.

    Args:
        exported: The export, loaded from its files.
        member: One of its members, for the images.
        expected: `(N, num_classes)`; see `stored_probabilities`.
        loading: How images are read and go through the network.

    Returns:
        The number of images and of near ties that were decided otherwise, and the largest difference of a probability.

    Raises:
        UsageError: If a class differs that is no near tie, or a probability differs by more than `MOST_DIFFERENCE`.
    """
    indices = split_by_path(member, "test")
    views = ViewImages(member.data.image_set.images, indices, exported.preprocessing)
    done, gaps, largest = 0, [], 0.0
    for batch in forward_batches(probabilities_of(exported), views, loading, "comparing"):
        found = batch[:, 0].numpy()
        stored = expected[done : done + len(found)]
        done += len(found)
        gaps.append(stored.max(axis=1) - stored[np.arange(len(found)), found.argmax(axis=1)])
        # NaN is larger than any limit.
        largest = float(np.maximum(largest, np.abs(found - stored).max()))
    gap = np.concatenate(gaps)
    if num_wrong := int((gap >= NEAR_TIE).sum()):
        raise UsageError(
            "output",
            None,
            f"the exported model gives {num_wrong} of {len(indices)} test images another class than the stored "
            f"predictions (probabilities differ by up to {largest:.2g}); nothing was written",
            "try another `format`",
        )
    if not largest <= MOST_DIFFERENCE:
        raise UsageError(
            "output",
            None,
            f"the exported model's probabilities differ by up to {largest:.2g} from the stored ones, of {len(indices)} "
            f"test images, more than {MOST_DIFFERENCE:g}; nothing was written",
            "try another `format`",
        )
    return {
        "split": "test",
        "images": len(indices),
        "near_ties": int((gap > 0).sum()),
        "largest_difference": largest,
    }
