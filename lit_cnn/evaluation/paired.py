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


def smallest_unpaired_difference(
    num_correct: int, num_images: int, power: float = 0.8, alpha: float = 0.05
) -> float | None:
    """Returns the smallest loss of accuracy that two counts of right images show, where nobody knows which they are.

    Fleiss, Levin and Paik 2003, "Statistical methods for rates and proportions", section 4.3, solved for the
    difference; never less than the least one for which Fisher's exact test is below `alpha`.

    Args:
        num_correct: Images that the better one gets right.
        num_images: N, at least 1; the other has as many.
        power: Chance of seeing the difference, in (0, 1).
        alpha: Level of the two-sided test, in (0, 1).

    Returns:
        A fraction in (0, 1], or None if even a classifier that is always wrong would not be told apart.
    """
    from scipy.optimize import brentq
    from scipy.stats import fisher_exact, norm

    accuracy = num_correct / num_images
    z_alpha, z_power = norm.ppf(1 - alpha / 2), norm.ppf(power)

    def lacking(delta: float) -> float:
        other = accuracy - delta
        mean = accuracy - delta / 2
        variances = accuracy * (1 - accuracy) + other * (1 - other)
        spread = z_alpha * math.sqrt(2 * mean * (1 - mean)) + z_power * math.sqrt(max(0.0, variances))
        needed = (spread / delta) ** 2
        # With their correction for continuity, as Fisher's test is that much on the safe side.
        return float(needed / 4 * (1 + math.sqrt(1 + 4 / (needed * delta))) ** 2 - num_images)

    if not num_correct or lacking(accuracy) > 0:
        return None
    smallest = float(brentq(lacking, 1e-9, accuracy))

    def is_seen(num_less: int) -> bool:
        right = (num_correct, num_correct - num_less)
        return bool(fisher_exact([right, [num_images - count for count in right]]).pvalue < alpha)

    # Of many images Fisher's test sees as much as the formula.
    least = int(smallest * num_images)
    while least < num_correct and not is_seen(least):
        least += 1
    return max(smallest, least / num_images) if is_seen(least) else None


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
