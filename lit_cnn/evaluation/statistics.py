"""Numbers with their error: intervals, paired comparisons and calibration, as pure functions on numpy arrays."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lit_cnn.core.intervals import Interval, wilson_interval

_CELLS_OF_PERMUTATIONS = 1 << 21  # permutations x images that are in memory at once


class McNemar(NamedTuple):
    """Images that only one of two classifiers gets right, and the two-sided p of a split that uneven by chance."""

    only_a: int
    only_b: int
    p_value: float


class MeanStd(NamedTuple):
    """Number of values, their mean, and the sample standard deviation (NaN for a single value)."""

    n: int
    mean: float
    std: float


def accuracy_interval(correct: np.ndarray) -> Interval:
    """Returns an accuracy with its 95 % Wilson limits.

    Args:
        correct: `(N,)` bool, True where an image is classified correctly.
    """
    return Interval(float(correct.mean()), *wilson_interval(int(correct.sum()), len(correct)))


def mcnemar_exact(correct_a: np.ndarray, correct_b: np.ndarray) -> McNemar:
    """Exact McNemar test of two classifiers on the same images (McNemar 1947; Dietterich 1998, section 3.1).

    Args:
        correct_a: `(N,)` bool, True where the first classifier is right.
        correct_b: `(N,)` bool, the second, on the same images in the same order.

    Returns:
        The two kinds of disagreement and the p-value; p = 1 if the classifiers never disagree.

    Raises:
        ValueError: If the shapes differ or the arrays are not bool.
    """
    from scipy.stats import binomtest

    _check_pair(correct_a, correct_b)
    only_a = int(np.sum(correct_a & ~correct_b))
    only_b = int(np.sum(correct_b & ~correct_a))
    disagreements = only_a + only_b
    # scipy knows no test of zero trials.
    p_value = float(binomtest(only_a, disagreements, 0.5).pvalue) if disagreements else 1.0
    return McNemar(only_a, only_b, p_value)


def paired_bootstrap(
    difference: np.ndarray, num_resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of the mean of per-image differences (Efron & Tibshirani 1993, section 13.3).

    Resampling N images draws how often each distinct value turns up, which is multinomial: the same distribution as
    drawing N indices, at a cost that depends on the number of distinct values only. Differences of "correct" have a
    handful (10,000 images, 10,000 resamples: 0.05 s); 10,000 distinct ones take some 15 s, and no more memory.

    Args:
        difference: `(N,)` float, such as an ensemble's correct (0 or 1) minus the mean of its members' correct.
        num_resamples: Bootstrap samples.
        seed: Of the draws; the same seed gives the same interval.
        confidence: In (0, 1).

    Returns:
        The mean and its interval, in the unit of `difference`.

    Raises:
        ValueError: If there is no image or a value is not finite.
    """
    difference = np.asarray(difference, dtype=np.float64)
    if difference.ndim != 1 or not len(difference) or not np.isfinite(difference).all():
        raise ValueError(f"paired_bootstrap: give (N,) finite values, N at least 1, not shape {difference.shape}")
    values, counts = np.unique(difference, return_counts=True)
    probabilities = counts / len(difference)
    generator = np.random.default_rng(seed)
    chunk = max(1, 500_000 // len(values))
    means = np.concatenate(
        [
            generator.multinomial(len(difference), probabilities, size=min(chunk, num_resamples - start)) @ values
            for start in range(0, num_resamples, chunk)
        ]
    ) / len(difference)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(difference.mean()), float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts the p-values of a family of tests so that p < alpha keeps the family's error at alpha (Holm 1979)."""
    # Not statsmodels': it collects garbage at each call, which takes longer than all else in a report.
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p_values, float)[order] * factors))
    return [float(p) for p in adjusted]


def mean_std(values: Sequence[float] | np.ndarray) -> MeanStd:
    """Returns number, mean and sample standard deviation (divisor n - 1) of at least one value."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("mean_std: give at least one value")
    std = float(array.std(ddof=1)) if len(array) > 1 else math.nan
    return MeanStd(len(array), float(array.mean()), std)


def paired_difference(values: Sequence[float], others: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of the differences of paired values with its limits after Student's t.

    Args:
        values: Such as one figure for each training seed.
        others: The same of something else, in the same order; it is subtracted.
        confidence: In (0, 1).

    Returns:
        The mean of `values - others`, and its limits; infinite ones for a single pair.

    Raises:
        ValueError: If the numbers of values differ, or there are none.
    """
    from scipy.stats import t

    if len(values) != len(others):
        raise ValueError(f"paired_difference: {len(values)} values cannot be paired with {len(others)}")
    n, mean, std = mean_std(np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64))
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * std / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean, mean - half, mean + half)


def unpaired_difference(correct_a: int, num_a: int, correct_b: int, num_b: int) -> Interval:
    """Difference of two accuracies on different images with its 95 % limits (Newcombe 1998, method 10).

    Args:
        correct_a: Images of the first set that are classified correctly.
        num_a: Images in the first set, at least 1.
        correct_b: The same of the second set, whose accuracy is subtracted.
        num_b: Images in the second set, at least 1.

    Returns:
        A fraction in [-1, 1] and its limits.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep

    low, high = confint_proportions_2indep(correct_a, num_a, correct_b, num_b, method="newcomb")
    return Interval(correct_a / num_a - correct_b / num_b, float(low), float(high))


def paired_mean_difference(correct_a: np.ndarray, correct_b: np.ndarray) -> tuple[Interval, float]:
    """Difference of two groups' mean accuracies on the same images, and its p by exchanging the groups image by image.

    For one classifier on each side this is McNemar's exact test. For several it is about these classifiers, not about
    others that would be trained with other seeds.

    Args:
        correct_a: `(n, N)` bool, True where a classifier of the first group is right.
        correct_b: `(m, N)` bool, the second group, whose mean is subtracted, on the same images.

    Returns:
        The difference with its 95 % paired bootstrap limits; the two-sided p of the sign-flip permutation test, exact
        up to 13 images that differ, else of 9,999 permutations.
    """
    from scipy.stats import permutation_test

    difference = correct_a.mean(axis=0) - correct_b.mean(axis=0)
    interval = paired_bootstrap(difference)
    if len(correct_a) == len(correct_b) == 1:
        return interval, mcnemar_exact(correct_a[0], correct_b[0]).p_value
    # An image without a difference is the same either way round.
    differing = difference[difference != 0]
    if len(differing) < 2:
        return interval, 1.0
    batch = max(1, min(1000, _CELLS_OF_PERMUTATIONS // len(differing)))
    found = permutation_test(
        (differing,), np.mean, permutation_type="samples", vectorized=True, batch=batch, rng=np.random.default_rng(0)
    )
    return interval, float(found.pvalue)


def welch_difference(
    values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray
) -> tuple[Interval, float]:
    """Difference of two means with its 95 % limits, and its two-sided p (Welch 1947): variances may differ.

    Args:
        values: At least two, such as one accuracy for each seed.
        others: At least two; their mean is subtracted.

    Returns:
        The difference with its limits; p. Where neither side has any spread, p is 1 for equal means, else 0.
    """
    from scipy.stats import ttest_ind

    first, second = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    difference = float(first.mean() - second.mean())
    if np.ptp(first) == np.ptp(second) == 0:
        return Interval(difference, difference, difference), float(difference == 0)
    found = ttest_ind(first, second, equal_var=False)
    limits = found.confidence_interval(0.95)
    return Interval(difference, float(limits.low), float(limits.high)), float(found.pvalue)


def images_for_power(
    correct_a: np.ndarray, correct_b: np.ndarray, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """Number of test images with which McNemar's test would see a paired difference as large as this one.

    Connor 1987, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43:
    n = (z[1 - alpha/2] sqrt(psi) + z[power] sqrt(psi - delta^2))^2 / delta^2, where psi is the fraction of images on
    which the two disagree and delta the difference of accuracies. It takes the fractions observed for the true ones,
    so it serves to plan the next test set and says nothing about this one. The exact test needs slightly more.

    Args:
        correct_a: `(N,)` bool, True where the first classifier is right.
        correct_b: `(N,)` bool, the second, on the same images.
        power: Chance of seeing the difference, in (0, 1).
        alpha: Level of the two-sided test, in (0, 1).

    Returns:
        The number of images, or None if the accuracies are equal: no number would do.

    Raises:
        ValueError: If the shapes differ or the arrays are not bool.
    """
    from scipy.stats import norm

    _check_pair(correct_a, correct_b)
    disagree = float(np.mean(correct_a != correct_b))
    num_difference = int(correct_a.sum()) - int(correct_b.sum())
    if num_difference == 0:
        return None
    delta = num_difference / len(correct_a)
    # Rounding could make the variance of a one-sided disagreement of all images negative.
    spread = math.sqrt(max(0.0, disagree - delta**2))
    root = norm.ppf(1 - alpha / 2) * math.sqrt(disagree) + norm.ppf(power) * spread
    return math.ceil((root / delta) ** 2)


def brier_scores(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Squared distance of each image's probabilities to its one-hot target, summed over classes (Brier 1950).

    Args:
        probabilities: `(N, K)`, rows sum to 1.
        targets: `(N,)` int labels in [0, K).

    Returns:
        `(N,)` in [0, 2]; 0 is perfect. Their mean is the Brier score.
    """
    distance = probabilities.copy()
    distance[np.arange(len(targets)), targets] -= 1
    scores: np.ndarray = np.square(distance, out=distance).sum(axis=1)
    return scores


def negative_log_likelihoods(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-log p(target) of each image, in nats.

    Args:
        probabilities: `(N, K)`, rows sum to 1; taken as at least the dtype's epsilon, so that one 0 is not infinite.
        targets: `(N,)` int labels in [0, K).

    Returns:
        `(N,)` in [0, 37] for float64.
    """
    least = np.finfo(probabilities.dtype).eps
    losses: np.ndarray = -np.log(np.clip(probabilities[np.arange(len(targets)), targets], least, 1 - least))
    return losses


_CELLS_AT_ONCE = 1 << 17  # of a matrix: a MiB stays in the cache

TEMPERATURES = (0.01, 100.0)
"""Between which `fit_temperature` looks."""


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """Returns the T whose softmax(logits / T) has the least negative log-likelihood (Guo et al. 2017, section 4.2).

    Fit it on validation images and use it on test images.

    Args:
        logits: `(N, K)`.
        targets: `(N,)` int labels in [0, K).

    Returns:
        T in `TEMPERATURES`. Where every image is classified correctly no T is the best: the smaller the better, until
        the loss is 0 in floating point. `calibration.find_temperature` sees to that.
    """
    from scipy.optimize import minimize_scalar

    # In log T the loss has one minimum: it is convex in 1 / T, and log is monotone.
    found = minimize_scalar(
        lambda log_temperature: temperature_losses(logits, targets, math.exp(log_temperature)).mean(),
        bounds=[math.log(limit) for limit in TEMPERATURES],
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(found.x))


def temperature_losses(logits: np.ndarray, targets: np.ndarray, temperature: float) -> np.ndarray:
    """Returns `(N,)` float64, -log of the target's probability in softmax(logits / T), in nats.

    Args:
        logits: `(N, K)`.
        targets: `(N,)` int labels in [0, K).
        temperature: T, above 0.
    """
    losses = np.empty(len(targets))
    step = max(1, _CELLS_AT_ONCE // logits.shape[1])
    for start in range(0, len(targets), step):
        scaled = logits[start : start + step].astype(np.float64) / temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        of_target = scaled[np.arange(len(scaled)), targets[start : start + step]]
        losses[start : start + step] = np.log(np.exp(scaled, out=scaled).sum(axis=1)) - of_target
    return losses


def is_at_bound(temperature: float) -> bool:
    """Whether a temperature is where `fit_temperature` stops looking, so that the loss has no least value before."""
    least, most = TEMPERATURES
    return not 1.01 * least < temperature < most / 1.01


def _check_pair(correct_a: np.ndarray, correct_b: np.ndarray) -> None:
    if correct_a.shape != correct_b.shape or correct_a.ndim != 1:
        raise ValueError(f"give two (N,) arrays of the same images, not {correct_a.shape} and {correct_b.shape}")
    if correct_a.dtype != bool or correct_b.dtype != bool:
        # ~ on integers would count wrongly and say nothing.
        raise ValueError(f"give bool arrays, not {correct_a.dtype} and {correct_b.dtype}")
