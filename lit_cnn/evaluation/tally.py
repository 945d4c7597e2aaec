"""What many predictions come to: how many of each class, how sure they are, and a picture of the least sure."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_cnn.core.file_names import as_text
from lit_cnn.core.fonts import class_labels, note_on_labels
from lit_cnn.core.resize import resize_and_center_crop
from lit_cnn.data.contact_sheet import CELL, captioned_images, line_of_text
from lit_cnn.data.decoding import MAX_PIXELS
from lit_cnn.data.pixel_values import pixel_options
from lit_cnn.data.sources import read_image
from lit_cnn.evaluation.predictor import Prediction, pixels_limited_to
from lit_cnn.portable import ImageClassifier

UNCERTAIN = "uncertain"
"""What stands in place of a class that is not probable enough."""

SHEET_IMAGES = 16
"""How many images of a class the sheet shows at most."""
SHEET_CLASSES = 20
"""How many classes the sheet shows at most."""


class Shown(NamedTuple):
    """An image of the sheet: the least sure compare as the greatest, so that a heap drops the surest."""

    doubt: float
    place: int
    label: str
    file: Path


@dataclass
class ClassTally:
    """The images of a class.

    Attributes:
        count: How many.
        total: Sum of their probabilities.
        least_sure: Of at most `SHEET_IMAGES` of them, a heap.
    """

    count: int = 0
    total: float = 0.0
    least_sure: list[Shown] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Mean of their probabilities, in [0, 1]."""
        return self.total / self.count


@dataclass
class Tally:
    """Counts predictions as they come, and keeps none but the files of the least sure.

    Attributes:
        min_confidence: A class that is less probable is `UNCERTAIN`; None takes every one.
        classes: Class -> its images; those without one are not there. What is uncertain is under None.
        num_bad: Images that could not be decoded.
    """

    min_confidence: float | None = None
    classes: dict[str | None, ClassTally] = field(default_factory=dict)
    num_bad: int = 0

    @property
    def num_classified(self) -> int:
        """Images that have a class, or are uncertain."""
        return sum(each.count for each in self.classes.values())

    def over(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Yields predictions as they are, and counts them."""
        for place, each in enumerate(predictions):
            self._add(place, each)
            yield each

    def ranked(self) -> list[tuple[str | None, ClassTally]]:
        """Returns the classes that have images, the one with the most first; what is uncertain comes last."""
        return sorted(self.classes.items(), key=lambda item: (item[0] is None, -item[1].count, item[0] or ""))

    def is_sure(self, prediction: Prediction) -> bool:
        """Whether the class of an image is probable enough."""
        return self.min_confidence is None or prediction.probability >= self.min_confidence

    def _add(self, place: int, prediction: Prediction) -> None:
        if prediction.error is not None:
            self.num_bad += 1
            return
        tally = self.classes.setdefault(prediction.label if self.is_sure(prediction) else None, ClassTally())
        tally.count += 1
        tally.total += prediction.probability
        assert prediction.file is not None
        shown = Shown(-prediction.probability, -place, prediction.label, prediction.file)
        if len(tally.least_sure) < SHEET_IMAGES:
            heapq.heappush(tally.least_sure, shown)
        else:
            heapq.heappushpop(tally.least_sure, shown)


def prediction_sheet(tally: Tally, classifier: ImageClassifier, max_pixels: int | None = None) -> np.ndarray | None:
    """Draws classified images below the name of their class, the least sure first, with class and probability.

    Args:
        tally: What was counted; its files are read again.
        classifier: What predicted.
        max_pixels: As it was given to `Predictor.predict_files`.

    Returns:
        `(H, W, 3)` uint8: of the `SHEET_CLASSES` classes with the most images `SHEET_IMAGES` each; None if no image has
        a class.
    """
    names = list(classifier.class_names)
    labels = dict(zip(names, class_labels(names), strict=True))
    ranked = tally.ranked()
    shown = [*ranked[:SHEET_CLASSES], *(each for each in ranked[SHEET_CLASSES:] if each[0] is None)]
    with pixels_limited_to(max_pixels or classifier.max_pixels or MAX_PIXELS):
        parts = [part for name, each in shown for part in _section(name, each, labels, classifier)]
    if not parts:
        return None
    if len(ranked) > len(shown):
        parts.append(line_of_text(f"{len(ranked) - len(shown):,} more classes have fewer images"))
    if note := note_on_labels(names, list(labels.values())):
        parts.append(line_of_text(note))
    return np.concatenate(parts)


def _section(
    name: str | None, tally: ClassTally, labels: dict[str, str], classifier: ImageClassifier
) -> Sequence[np.ndarray]:
    options = pixel_options(classifier.pixel_range, classifier.background)
    images, captions = [], []
    for each in sorted(tally.least_sure, reverse=True):
        image = read_image(each.file, classifier.in_channels, options)
        images.append(resize_and_center_crop(image, CELL))  # now: a photograph has a thousand times as many pixels
        captions.append((f"{labels[each.label]} {-100 * each.doubt:.0f} %", as_text(each.file.name)))
    title = f"{UNCERTAIN if name is None else labels[name]}: {tally.count:,}"
    if tally.count > len(images):
        title += f", the {len(images)} least sure"
    return line_of_text(title), captioned_images(images, captions)
