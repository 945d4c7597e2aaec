"""How far probabilities can be taken at their word, before and after one temperature (Guo et al. 2017)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import numpy as np

from lit_cnn.evaluation.statistics import (
    brier_scores,
    fit_temperature,
    is_at_bound,
    negative_log_likelihoods,
    temperature_losses,
)

NUM_BINS = 15
"""Bins of confidence, as in Guo et al. 2017, section 4."""

NO_TEMPERATURE: Mapping[str, str] = MappingProxyType(
    {
        "too few": "a single val image says nothing of it",
        "all right": "every val image is classified correctly, so the smaller T, the smaller the loss there",
        "at a bound": "on val, with or without some of its images, the loss falls up to a bound of T, 0.01 or 100",
        "no gain": "it does not lower the negative log-likelihood of val images that it is not fitted on",
    }
)
"""Why no temperature is taken: in a word or two, and in a sentence."""

_MOST_LEFT_OUT_ALONE = 50  # val images; of more, each tenth is left out at a time
_NUM_FOLDS = 10
_MOST_FITTED, _LEAST_FITTED = 10_000_000, 1000  # images x classes that a temperature is fitted on; images
_LEAST_GAIN = 1e-6  # nats; less is rounding


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram: the bins of confidence that hold an image (Guo et al. 2017, section 2).

    Attributes:
        confidence: `(B,)`, mean of the largest probability.
        accuracy: `(B,)`, fraction that is classified correctly.
        count: `(B,)` int, images.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]: the mean gap of an image's bin between confidence and accuracy."""
        # Not torchmetrics': it takes all rows for logits as soon as rounding makes one mean of probabilities 1 + 2e-16.
        return float((np.abs(self.confidence - self.accuracy) * self.count).sum() / self.count.sum())


@dataclass(frozen=True, eq=False)
class Scaled:
    """What a temperature fitted on val makes of probabilities on test.

    Attributes:
        temperature: T; above 1 the probabilities were too sure.
        ece: Expected calibration error after it, in [0, 1].
        nll: Negative log-likelihood after it, nats.
        reliability: After it.
    """

    temperature: float
    ece: float
    nll: float
    reliability: Reliability


@dataclass(frozen=True, eq=False)
class Calibration:
    """How calibrated probabilities on test are.

    Attributes:
        ece: Expected calibration error over 15 bins, in [0, 1].
        brier: Brier score, in [0, 2].
        nll: Negative log-likelihood, nats.
        reliability: The bins.
        scaled: After a temperature; None if none was taken.
        no_temperature: Why none was, a key of `NO_TEMPERATURE`; empty if one was, or none was asked for.
    """

    ece: float
    brier: float
    nll: float
    reliability: Reliability
    scaled: Scaled | None = None
    no_temperature: str = ""


@dataclass(frozen=True, eq=False)
class Scores:
    """What calibration takes of each of N images: numbers, not K probabilities.

    Attributes:
        correct: `(N,)` bool, whether the most probable class is the target.
        confidence: `(N,)`, the largest probability.
        brier: `(N,)`, see `brier_scores`.
        nll: `(N,)`, see `negative_log_likelihoods`.
    """

    correct: np.ndarray
    confidence: np.ndarray
    brier: np.ndarray
    nll: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, targets: np.ndarray) -> Self:
        """Takes them from probabilities `(N, K)`, whose rows sum to 1, and `(N,)` int labels in [0, K)."""
        return cls(
            probabilities.argmax(axis=1) == targets,
            probabilities.max(axis=1),
            brier_scores(probabilities, targets),
            negative_log_likelihoods(probabilities, targets),
        )

    @classmethod
    def joined(cls, parts: "Sequence[Scores]") -> Self:
        """Puts those of several parts of the images together."""
        names = ("correct", "confidence", "brier", "nll")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def calibration_of(
    scores: Scores, after: Scores | None = None, temperature: tuple[float, str] | None = None
) -> Calibration:
    """Measures calibration on test, and again after a temperature if one was taken.

    Args:
        scores: Of the probabilities as they are.
        after: Of those after the temperature; None if none was taken.
        temperature: As `find_temperature` found it; None if none was asked for.
    """
    bins, scaled = reliability_of(scores), None
    if after is not None and temperature is not None:
        bins_after = reliability_of(after)
        scaled = Scaled(temperature[0], bins_after.ece, float(after.nll.mean()), bins_after)
    why = "" if temperature is None else temperature[1]
    return Calibration(bins.ece, float(scores.brier.mean()), float(scores.nll.mean()), bins, scaled, why)


def find_temperature(logits: np.ndarray, targets: np.ndarray) -> tuple[float, str]:
    """Fits a temperature where val images determine one that is better than none.

    It is taken if it lowers the negative log-likelihood under cross-validation: of each image under the T that is
    fitted without it, up to 50 images; of each of ten folds, stratified by class, under the T of the other nine, with
    more. Each of these T has to be inside the bounds, and its images not all right: else the least loss is nowhere, and
    T rests on a few images.

    Args:
        logits: `(N, K)`.
        targets: `(N,)` int labels in [0, K).

    Returns:
        T, and ""; or 1, and a key of `NO_TEMPERATURE`.
    """
    num_images = len(targets)
    if num_images < 2:
        return 1.0, "too few"
    is_right = logits.argmax(axis=1) == targets
    if is_right.all():
        return 1.0, "all right"
    temperature = fit_temperature(logits, targets)
    most = temperature_losses(logits, targets, 1.0).mean() - _LEAST_GAIN
    if temperature_losses(logits, targets, temperature).mean() > most:
        return 1.0, "no gain"
    if is_at_bound(temperature):
        return 1.0, "at a bound"
    fold = np.empty(num_images, np.int64)
    num_folds = num_images if num_images <= _MOST_LEFT_OUT_ALONE else _NUM_FOLDS
    fold[np.argsort(targets, kind="stable")] = np.arange(num_images) % num_folds
    total = 0.0
    for number in range(num_folds):
        out, others = fold == number, fold != number
        of_others = fit_temperature(logits[others], targets[others])
        if is_right[others].all() or is_at_bound(of_others):
            return 1.0, "at a bound"
        total += temperature_losses(logits[out], targets[out], of_others).sum()
    return (temperature, "") if total / num_images <= most else (1.0, "no gain")


def most_fitted(num_classes: int) -> int:
    """Returns how many images of so many classes a temperature is fitted on at the most."""
    return max(_LEAST_FITTED, _MOST_FITTED // num_classes)


def fitting_places(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the places of the val images that a temperature is fitted on, ascending: all but of very many.

    One number is fitted: 10,000 images of 1,000 classes determine it to a per cent or so, and more take minutes a row.

    Args:
        targets: `(N,)` int labels in [0, K).
        num_classes: K. With N * K above ten million so many images are taken that it is no more, 1,000 at the least,
            spread evenly over the classes.
    """
    most = most_fitted(num_classes)
    if len(targets) <= most:
        return np.arange(len(targets))
    by_class = np.argsort(targets, kind="stable")
    return np.sort(by_class[np.linspace(0, len(targets) - 1, most).astype(int)])


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns p ** (1 / T), normalised: of one network with one view the softmax of its logits over T.

    What is averaged has no logits; the logarithm of its probabilities takes their place.

    Args:
        probabilities: `(N, K)`, rows sum to 1.
        temperature: T, above 0.
    """
    from scipy.special import softmax

    scaled: np.ndarray = softmax(logarithm(probabilities) / temperature, axis=-1)
    return scaled


def reliability_of(scores: Scores) -> Reliability:
    """Groups images by confidence into 15 bins of equal width, each open below and closed above."""
    bins = np.clip(np.ceil(scores.confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    count = np.bincount(bins, minlength=NUM_BINS)
    filled = count > 0
    correct = np.bincount(bins, weights=scores.correct, minlength=NUM_BINS)
    total = np.bincount(bins, weights=scores.confidence, minlength=NUM_BINS)
    return Reliability(total[filled] / count[filled], correct[filled] / count[filled], count[filled])


def logarithm(probabilities: np.ndarray) -> np.ndarray:
    """Returns log p; of what underflowed to 0 that of the smallest number."""
    # softmax underflows to 0, and no temperature brings -inf back.
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
