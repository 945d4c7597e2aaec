"""Estimates with their limits, and the confidence interval of an accuracy."""

from typing import NamedTuple


class Interval(NamedTuple):
    """An estimate with the limits of its confidence interval, all in the unit of the estimate."""

    mean: float
    low: float
    high: float


def wilson_interval(num_correct: int, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence limits of an accuracy (Wilson 1927, "Probable inference, the law of succession").

    Args:
        num_correct: Images classified correctly, 0 to `num_images`.
        num_images: At least 1.
        confidence: In (0, 1).

    Returns:
        Lower and upper limit, fractions in [0, 1].

    Raises:
        ValueError: If the counts are not possible.
    """
    from scipy.stats import binomtest

    limits = binomtest(int(num_correct), int(num_images)).proportion_ci(confidence, method="wilson")
    return float(limits.low), float(limits.high)
