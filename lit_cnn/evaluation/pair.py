"""Two networks on the same images: what one wins over the other, and whether that could be chance."""

from dataclasses import dataclass

import numpy as np

from lit_cnn.evaluation.mistakes import Verdict
from lit_cnn.evaluation.statistics import (
    Interval,
    McNemar,
    images_for_power,
    mcnemar_exact,
    paired_bootstrap,
    wilson_interval,
)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two verdicts on the same images; accuracies and differences are fractions.

    Attributes:
        first: What the first network says.
        second: What the second says.
        split: Name of the split that the images are.
        accuracies: Of both, with their 95 % Wilson limits.
        difference: The first's accuracy minus the second's, with its 95 % paired bootstrap limits.
        mcnemar: Exact test (a: the first, b: the second).
        images_needed: Images that would show this difference with a power of 0.8; None if there is none.
    """

    first: Verdict
    second: Verdict
    split: str
    accuracies: tuple[Interval, Interval]
    difference: Interval
    mcnemar: McNemar
    images_needed: int | None

    def won(self, most: int) -> np.ndarray:
        """Returns `(n,)` int, places of images that only the first gets right; where it is the surest come first."""
        return _only(self.first, self.second)[:most]

    def lost(self, most: int) -> np.ndarray:
        """Returns `(n,)` int, places of images that only the second gets right; where it is the surest come first."""
        return _only(self.second, self.first)[:most]


def build_pair(first: Verdict, second: Verdict, split: str) -> Pair:
    """Compares two verdicts on the same images in the same order.

    Raises:
        ValueError: If their true classes differ.
    """
    if not np.array_equal(first.targets, second.targets):
        raise ValueError("build_pair: the verdicts are about different images")
    right, other = first.correct, second.correct
    return Pair(
        first,
        second,
        split,
        (_accuracy(right), _accuracy(other)),
        paired_bootstrap(right.astype(float) - other),
        mcnemar_exact(right, other),
        images_for_power(right, other),
    )


def _only(right: Verdict, wrong: Verdict) -> np.ndarray:
    places = np.flatnonzero(right.correct & ~wrong.correct)
    surest: np.ndarray = places[np.argsort(-right.probabilities[places, right.labels[places]], kind="stable")]
    return surest


def _accuracy(correct: np.ndarray) -> Interval:
    low, high = wilson_interval(int(correct.sum()), len(correct))
    return Interval(float(correct.mean()), low, high)
