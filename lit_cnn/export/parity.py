"""Whether an exported model says what its members' stored predictions say."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.data.sources import ArrayImages
from lit_cnn.evaluation.calibration import with_temperature
from lit_cnn.evaluation.combining import Answers, combine
from lit_cnn.evaluation.multi_crop import VIEWS, average_probabilities
from lit_cnn.evaluation.predictions import Member, ViewImages, classify, predict_views
from lit_cnn.export.recipe import Recipe
from lit_cnn.portable import ImageClassifier

NEAR_TIE = 1e-4
"""Two classes whose stored probabilities differ by less may change places: float32 sums in another order."""

MOST_DIFFERENCE = 1e-3
"""By how much a probability may differ from the stored one."""


def stored_probabilities(recipe: Recipe, members: Sequence[Member], folder: Path, batch_size: int) -> np.ndarray:
    """Returns the recipe's probabilities of the test images, from stored logits; members' missing ones are computed.

    Args:
        recipe: What is exported.
        members: Its members.
        folder: Where logits are stored.
        batch_size: Views per forward pass.

    Returns:
        `(N, num_classes)` float64, in the order of `test_images`.
    """
    probabilities, logits = [], []
    for member in members:
        of_views = predict_views(member, test_images(member), [recipe.views], folder, batch_size)[recipe.views]
        probabilities.append(average_probabilities(of_views))
        logits.append(of_views.mean(axis=0, dtype=np.float64))
    targets = members[0].data.image_set.labels[test_images(members[0])]
    combined = combine(Answers(targets, np.stack(probabilities), np.stack(logits)), recipe.rule, recipe.weights)
    assert combined.probabilities is not None
    return with_temperature(combined.probabilities, recipe.temperature)


def test_images(member: Member) -> np.ndarray:
    """Returns the test images `(N,)`, in the order of their paths, as `lit-cnn ensemble` asks about them."""
    paths = member.data.image_set.paths
    return np.array(sorted(member.data.splits["test"], key=lambda index: paths[index]))


def check_parity(
    exported: ImageClassifier, member: Member, expected: np.ndarray, batch_size: int
) -> dict[str, int | float | str]:
    """Compares what an export says of the test images, through its own preprocessing, with the stored predictions.

    Args:
        exported: The export, loaded from its files.
        member: One of its members, for the images.
        expected: `(N, num_classes)`; see `stored_probabilities`.
        batch_size: Images per forward pass.

    Returns:
        The number of images and of near ties that were decided otherwise, and the largest difference of a probability.

    Raises:
        UsageError: If a class differs that is no near tie, or a probability differs by more than `MOST_DIFFERENCE`.
    """
    indices, image_set = test_images(member), member.data.image_set
    preprocessing = {"image_size": exported.image_size, "interpolation": exported.interpolation}
    views = ViewImages(image_set, indices, VIEWS[1], preprocessing)
    num_workers = 0 if isinstance(image_set.images, ArrayImages) else 2
    found = classify(exported, views, len(indices), batch_size, num_workers, "comparing")
    places = np.arange(len(indices))
    gap = expected.max(axis=1) - expected[places, found.argmax(axis=1)]
    largest = float(np.abs(found - expected).max())
    if num_wrong := int((gap >= NEAR_TIE).sum()):
        raise UsageError(
            f"--output: the exported model gives {num_wrong} of {len(indices)} test images another class than the "
            f"stored predictions (probabilities differ by up to {largest:.2g}); nothing was written; try another "
            "--format"
        )
    if not largest <= MOST_DIFFERENCE:
        raise UsageError(
            f"--output: the exported model's probabilities differ by up to {largest:.2g} from the stored ones, of "
            f"{len(indices)} test images, more than {MOST_DIFFERENCE:g}; nothing was written; try another --format"
        )
    return {
        "split": "test",
        "images": len(indices),
        "near_ties": int((gap > 0).sum()),
        "largest_difference": largest,
    }
