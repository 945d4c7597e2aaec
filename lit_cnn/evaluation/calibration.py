"""How far probabilities can be taken at their word, before and after one temperature (Guo et al. 2017)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from lit_cnn.evaluation.statistics import (
    brier_score,
    fit_temperature,
    is_at_bound,
    negative_log_likelihood,
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


def calibration_of(
    probabilities: np.ndarray, targets: np.ndarray, val: tuple[np.ndarray, np.ndarray] | None = None
) -> Calibration:
    """Measures calibration on test, and again after a temperature if val is given to fit it on.

    Args:
        probabilities: `(N, K)`, rows sum to 1.
        targets: `(N,)` int labels in [0, K).
        val: Probabilities and targets of the same classifier on val.
    """
    scaled, no_temperature = None, ""
    if val is not None:
        temperature, no_temperature = find_temperature(_logarithm(val[0]), val[1])
        if not no_temperature:
            after = with_temperature(probabilities, temperature)
            bins = reliability_of(after, targets)
            scaled = Scaled(temperature, bins.ece, negative_log_likelihood(after, targets), bins)
    bins = reliability_of(probabilities, targets)
    brier, nll = brier_score(probabilities, targets), negative_log_likelihood(probabilities, targets)
    return Calibration(bins.ece, brier, nll, bins, scaled, no_temperature)


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


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns p ** (1 / T), normalised: of one network with one view the softmax of its logits over T.

    What is averaged has no logits; the logarithm of its probabilities takes their place.

    Args:
        probabilities: `(N, K)`, rows sum to 1.
        temperature: T, above 0.
    """
    from scipy.special import softmax

    scaled: np.ndarray = softmax(_logarithm(probabilities) / temperature, axis=-1)
    return scaled


def reliability_of(probabilities: np.ndarray, targets: np.ndarray) -> Reliability:
    """Groups images by confidence into 15 bins of equal width, each open below and closed above.

    Args:
        probabilities: `(N, K)`, rows sum to 1.
        targets: `(N,)` int labels in [0, K).
    """
    confidence = probabilities.max(axis=1)
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    count = np.bincount(bins, minlength=NUM_BINS)
    filled = count > 0
    correct = np.bincount(bins, weights=probabilities.argmax(axis=1) == targets, minlength=NUM_BINS)
    total = np.bincount(bins, weights=confidence, minlength=NUM_BINS)
    return Reliability(total[filled] / count[filled], correct[filled] / count[filled], count[filled])


def _logarithm(probabilities: np.ndarray) -> np.ndarray:
    # softmax underflows to 0, and no temperature brings -inf back.
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
