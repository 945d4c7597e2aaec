"""Estimates with their limits, and the confidence interval of an accuracy."""

import math
from statistics import NormalDist
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
    k, n = int(num_correct), int(num_images)
    if not (n >= 1 and 0 <= k <= n):
        raise ValueError(f"{k} of {n} images")
    # Written out, as every run ends with it: importing scipy.stats takes half a second and more.
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center, half = k + z * z / 2, z * math.sqrt(k * (n - k) / n + z * z / 4)
    # At the ends rounding must not leave a limit beside 0 or 1.
    return (center - half) / (n + z * z) if k > 0 else 0.0, (center + half) / (n + z * z) if k < n else 1.0
