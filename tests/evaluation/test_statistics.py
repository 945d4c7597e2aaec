"""Every number a second time, by another library or by brute force."""

import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.special import log_softmax, softmax
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint
from torchmetrics.functional.classification import multiclass_calibration_error

from lit_cnn.core.intervals import wilson_interval
from lit_cnn.evaluation.calibration import Scores, reliability_of
from lit_cnn.evaluation.statistics import (
    brier_scores,
    fit_temperature,
    holm,
    images_for_power,
    mcnemar_exact,
    mean_std,
    negative_log_likelihoods,
    paired_bootstrap,
    paired_difference,
)


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize(("num_correct", "num_images"), [(0, 7), (7, 7), (1, 1), (872, 1000), (9_253, 10_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_statsmodels(num_correct: int, num_images: int, confidence: float) -> None:
    expected = proportion_confint(num_correct, num_images, alpha=1 - confidence, method="wilson")
    assert wilson_interval(num_correct, num_images, confidence) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("num_correct", "num_images"), [(0, 0), (8, 7), (-1, 7)])
def test_wilson_refuses_what_cannot_be(num_correct: int, num_images: int) -> None:
    with pytest.raises(ValueError):
        wilson_interval(num_correct, num_images)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 1), (3, 3), (1, 9), (30, 12), (250, 190)])
def test_mcnemar_is_statsmodels_and_the_sum_of_binomials(only_a: int, only_b: int) -> None:
    correct_a = np.repeat([True, True, False, False], [40, only_a, only_b, 5])
    correct_b = np.repeat([True, False, True, False], [40, only_a, only_b, 5])
    result = mcnemar_exact(correct_a, correct_b)
    n, least = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    assert (result.only_a, result.only_b) == (only_a, only_b)
    assert result.p_value == pytest.approx(min(1, 2 * tail))
    assert result.p_value == pytest.approx(mcnemar([[40, only_a], [only_b, 5]], exact=True).pvalue)


def test_pairs_must_be_bool_and_of_the_same_images() -> None:
    a = np.array([True, False])
    for function in (mcnemar_exact, images_for_power):
        with pytest.raises(ValueError, match="bool"):
            function(a.astype(int), a)
        with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
            function(a, np.array([True, False, True]))


def test_bootstrap_is_that_of_drawn_indices(generator: np.random.Generator) -> None:
    difference = generator.integers(0, 2, 400) - generator.integers(0, 4, 400) / 3
    interval = paired_bootstrap(difference)
    means = difference[generator.integers(0, 400, (10_000, 400))].mean(axis=1)
    by_scipy = scipy.stats.bootstrap((difference,), np.mean, method="percentile", rng=generator, batch=1000)
    assert interval.mean == pytest.approx(difference.mean())
    # Each limit is a quantile of 10,000 draws: it has an error of its own, of about 3 % of the standard deviation.
    tolerance = 0.1 * means.std()
    assert interval[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=tolerance)
    assert interval[1:] == pytest.approx(tuple(by_scipy.confidence_interval), abs=tolerance)


def test_bootstrap_repeats_with_its_seed_and_narrows_with_confidence(generator: np.random.Generator) -> None:
    difference = generator.normal(size=50)
    wide, narrow = paired_bootstrap(difference), paired_bootstrap(difference, confidence=0.5)
    assert wide == paired_bootstrap(difference)
    assert wide != paired_bootstrap(difference, seed=1)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_bootstrap_of_distinct_values_takes_little_memory(generator: np.random.Generator) -> None:
    difference = generator.normal(size=10_000)
    tracemalloc.start()
    interval = paired_bootstrap(difference, num_resamples=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15e6  # all 300 x 10,000 counts at once would be 24e6
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / math.sqrt(10_000), rel=0.25)


@pytest.mark.parametrize("difference", [[], [0.0, math.nan], [[1.0]]])
def test_bootstrap_refuses_what_has_no_mean(difference: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        paired_bootstrap(np.array(difference))


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03 times 3, 2, 1; the largest so far; at most 1.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == pytest.approx([0.2])
    assert holm([]) == []


def test_mean_std() -> None:
    assert mean_std([1.0, 2.0, 4.0]) == pytest.approx((3, 7 / 3, math.sqrt(7 / 3)))
    assert mean_std([5.0])[:2] == (1, 5.0)
    assert math.isnan(mean_std([5.0]).std)
    with pytest.raises(ValueError, match="at least one"):
        mean_std([])


@pytest.mark.parametrize(("only_a", "only_b", "power"), [(40, 20, 0.8), (20, 40, 0.9), (90, 60, 0.8)])
def test_so_many_images_give_the_power(only_a: int, only_b: int, power: float, generator: np.random.Generator) -> None:
    correct_a = np.repeat([True, True, False], [1000 - only_a - only_b, only_a, only_b])
    correct_b = np.repeat([True, False, True], [1000 - only_a - only_b, only_a, only_b])
    num_images = images_for_power(correct_a, correct_b, power=power)
    assert num_images is not None
    counts = generator.multinomial(num_images, [only_a / 1000, only_b / 1000, 1 - (only_a + only_b) / 1000], 20_000)
    a, b = counts[:, 0], counts[:, 1]
    statistic = (a - b) ** 2 / np.maximum(a + b, 1)  # McNemar's chi square, for which the formula is made
    seen = np.mean(statistic > scipy.stats.chi2.ppf(0.95, 1))
    assert seen == pytest.approx(power, abs=0.02)


def test_no_number_of_images_shows_no_difference() -> None:
    a = np.array([True, False, True])
    assert images_for_power(a, a[::-1].copy()) is None
    assert images_for_power(a, np.array([False, True, True])) is None
    assert images_for_power(np.array([True]), np.array([False])) == 4  # 1.96 squared, rounded up


@pytest.fixture
def predictions(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Logits `(500, 5)` of an overconfident classifier, and targets drawn from what it should have said."""
    logits = generator.normal(size=(500, 5)) * 1.5
    targets = np.array([generator.choice(5, p=p) for p in softmax(logits, axis=1)])
    return 3 * logits, targets


def test_calibration_numbers_by_other_means(predictions: tuple[np.ndarray, np.ndarray]) -> None:
    logits, targets = predictions
    probabilities = softmax(logits, axis=1)
    for scores in (
        probabilities,
        softmax(logits / 3, axis=1),
    ):  # too sure in every bin; and now too sure, now too little
        by_torchmetrics = multiclass_calibration_error(torch.tensor(scores), torch.tensor(targets), 5, n_bins=15)
        assert reliability_of(Scores.of(scores, targets)).ece == pytest.approx(float(by_torchmetrics), abs=1e-6)
    one_hot = np.eye(5)[targets]
    assert brier_scores(probabilities, targets).mean() == pytest.approx(((probabilities - one_hot) ** 2).sum(1).mean())
    expected = -log_softmax(logits, axis=1)[np.arange(500), targets].mean()
    assert negative_log_likelihoods(probabilities, targets).mean() == pytest.approx(expected)


def test_calibration_of_two_classes_and_of_a_certain_answer() -> None:
    probabilities = np.array([[1.0, 0.0], [1.0 + 3e-16, 0.0], [0.25, 0.75]])
    targets = np.array([0, 0, 0])
    assert reliability_of(Scores.of(probabilities, targets)).ece == pytest.approx(0.75 / 3)
    assert brier_scores(probabilities[[0, 2]], targets[:2]).mean() == pytest.approx(2 * 0.75**2 / 2)
    assert negative_log_likelihoods(probabilities[[0, 2]], targets[:2]).mean() == pytest.approx(math.log(4) / 2)


def test_temperature_undoes_overconfidence(predictions: tuple[np.ndarray, np.ndarray]) -> None:
    logits, targets = predictions
    temperature = fit_temperature(logits.astype(np.float32), targets)
    grid = np.linspace(1, 6, 5001)
    losses = [-log_softmax(logits / t, axis=1)[np.arange(500), targets].mean() for t in grid]
    assert temperature == pytest.approx(grid[int(np.argmin(losses))], abs=0.002)
    assert temperature == pytest.approx(3, rel=0.15)
    before = reliability_of(Scores.of(softmax(logits, axis=1), targets)).ece
    assert reliability_of(Scores.of(softmax(logits / temperature, axis=1), targets)).ece < before / 2


def test_temperature_stays_in_its_range() -> None:
    # All right: the smaller the better. All wrong: the larger the better.
    assert 0.01 <= fit_temperature(np.eye(3) * 5, np.arange(3)) < 0.2
    assert fit_temperature(np.eye(3) * 5, np.array([1, 2, 0])) == pytest.approx(100, rel=0.01)


def test_paired_difference_is_scipys() -> None:
    a, b = [0.91, 0.93, 0.90, 0.95], [0.90, 0.91, 0.90, 0.91]
    found = paired_difference(a, b)
    expected = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert paired_difference([0.9], [0.8]).low == -math.inf
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        paired_difference([1.0, 2.0], [1.0])
