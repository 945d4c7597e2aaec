"""Where a classifier errs: classes taken for each other, and the images that it gets wrong most confidently."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lit_cnn.data.sources import ImageSet


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one classifier predicts for N images whose classes are known.

    Attributes:
        name: The classifier's, as in the table.
        image_set: All images.
        indices: `(N,)` int, which of them.
        labels: `(N,)` int in [0, K), the class predicted for each.
        confidence: `(N,)` in [0, 1], the probability of that class; after a vote the mean of the members'.
    """

    name: str
    image_set: ImageSet
    indices: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """`(N,)` int in [0, K), the true classes."""
        targets: np.ndarray = self.image_set.labels[self.indices]
        return targets

    @property
    def correct(self) -> np.ndarray:
        """`(N,)` bool, True where the classifier is right."""
        correct: np.ndarray = self.labels == self.targets
        return correct

    @property
    def class_names(self) -> Sequence[str]:
        """The K names in label order."""
        return self.image_set.class_names

    def of(self, place: int) -> tuple[str, str, str, str]:
        """Returns one image in words: path, true class, class predicted, and that class's probability in per cent."""
        label = self.labels[place]
        return (
            self.image_set.paths[self.indices[place]],
            self.class_names[self.targets[place]],
            self.class_names[label],
            f"{100 * self.confidence[place]:.1f}",
        )


class ClassScores(NamedTuple):
    """A class's precision, recall and F1 score in [0, 1], NaN where nothing was predicted or there is nothing; images.

    F1 is NaN only for a class without images that is never predicted.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


class Confusion(NamedTuple):
    """Images of one class that were taken for another, and their share of the true class's images."""

    true_name: str
    predicted_name: str
    num_images: int
    share: float


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Returns `(K, K)` int: images of the class of the row that were taken for the class of the column."""
    num_classes = len(predictions.class_names)
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (predictions.targets, predictions.labels), 1)
    return counts


def scores_of_classes(predictions: Predictions) -> list[ClassScores]:
    """Returns each class's scores, in label order."""
    counts = confusion_matrix(predictions)
    right, support, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        columns = right / predicted, right / support, 2 * right / (support + predicted)
    return [
        ClassScores(name, float(precision), float(recall), float(f1), int(images))
        for name, precision, recall, f1, images in zip(predictions.class_names, *columns, support, strict=True)
    ]


def most_confused(predictions: Predictions, most: int = 10) -> list[Confusion]:
    """Returns the pairs of true and predicted class with the most images, the most frequent first."""
    counts = confusion_matrix(predictions)
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
    names = predictions.class_names
    return [
        Confusion(names[true], names[predicted], int(counts[true, predicted]), counts[true, predicted] / totals[true])
        for true, predicted in pairs
        if counts[true, predicted]
    ]


def worst_mistakes(predictions: Predictions, most: int = 24) -> np.ndarray:
    """Returns `(n,)` int, the places of wrong images among the N: those whose wrong class is most probable first."""
    wrong = np.flatnonzero(~predictions.correct)
    worst: np.ndarray = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")[:most]]
    return worst
