"""How far probabilities can be taken at their word, before and after one temperature (Guo et al. 2017)."""

from dataclasses import dataclass

import numpy as np

from lit_cnn.evaluation.statistics import brier_score, fit_temperature, negative_log_likelihood

NUM_BINS = 15
"""Bins of confidence, as in Guo et al. 2017, section 4."""


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
        scaled: After a temperature; None if none was fitted.
    """

    ece: float
    brier: float
    nll: float
    reliability: Reliability
    scaled: Scaled | None = None


def calibration_of(
    probabilities: np.ndarray, targets: np.ndarray, val: tuple[np.ndarray, np.ndarray] | None = None
) -> Calibration:
    """Measures calibration on test, and again after a temperature if val is given to fit it on.

    Args:
        probabilities: `(N, K)`, rows sum to 1.
        targets: `(N,)` int labels in [0, K).
        val: Probabilities and targets of the same classifier on val.
    """
    scaled = None
    if val is not None:
        temperature = fit_temperature(_logarithm(val[0]), val[1])
        after = with_temperature(probabilities, temperature)
        bins = reliability_of(after, targets)
        scaled = Scaled(temperature, bins.ece, negative_log_likelihood(after, targets), bins)
    bins = reliability_of(probabilities, targets)
    brier, nll = brier_score(probabilities, targets), negative_log_likelihood(probabilities, targets)
    return Calibration(bins.ece, brier, nll, bins, scaled)


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
