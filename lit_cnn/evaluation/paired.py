"""What so many images can show of two classifiers, and what they exclude."""

import math

from lit_cnn.core.intervals import Interval


def smallest_difference(
    num_images: int, disagree: float = 0.0, power: float = 0.8, alpha: float = 0.05
) -> float | None:
    """Returns the smallest paired difference of accuracies that so many images show with this power.

    Connor's formula (see `images_for_power`) solved for the difference; two classifiers disagree on at least as many
    images as they differ by. Never less than what the exact test takes at the least: k images that all speak for one
    side, where 2 * 0.5^k <= alpha.

    Args:
        num_images: N, at least 1.
        disagree: Fraction of images on which the two classifiers disagree, if that is known.
        power: Chance of seeing the difference, in (0, 1).
        alpha: Level of the two-sided test, in (0, 1); `0.05 / m` for the first of m tests after Holm.

    Returns:
        A fraction in (0, 1], or None if so few images show no difference at all.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    least = math.ceil(1 - math.log2(alpha)) / num_images
    if least > 1:
        return None
    z_alpha, z_power = norm.ppf(1 - alpha / 2), norm.ppf(power)

    def lacking(delta: float) -> float:
        share = max(disagree, delta)
        return float(
            z_alpha * math.sqrt(share) + z_power * math.sqrt(max(0.0, share - delta**2)) - delta * math.sqrt(num_images)
        )

    if lacking(1.0) > 0:
        return None
    return max(least, float(brentq(lacking, 1e-9, 1.0)))


def score_limits(only_a: int, only_b: int, num_images: int, confidence: float = 0.95) -> Interval:
    """Difference of two accuracies on the same images with its score limits (Tango 1998, section 3).

    "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17. Unlike the bootstrap it says something where the two never disagree.

    Args:
        only_a: Images that only the first classifier gets right.
        only_b: Images that only the second gets right.
        num_images: N, at least 1.
        confidence: In (0, 1).

    Returns:
        First minus second, a fraction, with its limits: what they leave out is excluded.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf((1 + confidence) / 2))
    n, b, c = num_images, only_a, only_b

    def score(delta: float) -> float:
        first, second = -b - c + (2 * n - b + c) * delta, -c * delta * (1 - delta)
        share = (math.sqrt(max(0.0, first**2 - 8 * n * second)) - first) / (4 * n)
        variance = n * (2 * share + delta * (1 - delta))
        return (b - c - n * delta) / math.sqrt(variance) if variance > 0 else 0.0

    mean, edge = (b - c) / n, 1 - 1e-9
    high = float(brentq(lambda delta: score(delta) + z, mean, edge)) if score(edge) < -z else 1.0
    low = float(brentq(lambda delta: score(delta) - z, -edge, mean)) if score(-edge) > z else -1.0
    return Interval(mean, low, high)
