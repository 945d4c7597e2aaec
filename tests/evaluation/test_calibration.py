"""Calibration from raw logits: torchmetrics, sklearn and a grid of temperatures say the same."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from lit_cnn.evaluation.calibration import Scores, find_temperature, reliability_of, with_temperature
from lit_cnn.evaluation.statistics import fit_temperature, temperature_losses
from tests.evaluation.conftest import calibrated

NUM_CLASSES = 5


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Logits twice as sure as they may be `(2, N, K)`, of val and test, and labels `(2, N)`."""
    generator = np.random.default_rng(0)
    honest = generator.normal(scale=1.5, size=(2, 2000, NUM_CLASSES))
    gumbel = generator.gumbel(size=honest.shape)
    return 2 * honest, (honest + gumbel).argmax(axis=-1)


def test_numbers_before_and_after_by_other_means(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    (val, test), (val_targets, targets) = drawn
    probabilities = softmax(test, axis=1)
    found = calibrated(probabilities, targets, (softmax(val, axis=1), val_targets))
    assert found.scaled is not None
    temperatures = np.exp(np.linspace(np.log(0.5), np.log(8), 2001))
    losses = [-log_softmax(val / t, axis=1)[np.arange(len(val)), val_targets].mean() for t in temperatures]
    assert found.scaled.temperature == pytest.approx(temperatures[np.argmin(losses)], rel=0.002)
    assert found.scaled.temperature == pytest.approx(2, rel=0.1)
    after = softmax(test / found.scaled.temperature, axis=1)
    for numbers, expected in ((found, probabilities), (found.scaled, after)):
        ece = multiclass_calibration_error(torch.tensor(expected), torch.tensor(targets), NUM_CLASSES, n_bins=15)
        assert numbers.ece == pytest.approx(float(ece), abs=1e-6)
        assert numbers.nll == pytest.approx(log_loss(targets, expected))
    assert found.brier == pytest.approx(brier_score_loss(targets, probabilities, scale_by_half=False))
    assert found.scaled.ece < found.ece / 3 and found.scaled.nll < found.nll
    assert calibrated(probabilities, targets).scaled is None


def test_bins_are_sklearns(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, targets = softmax(drawn[0][1], axis=1), drawn[1][1]
    bins = reliability_of(Scores.of(probabilities, targets))
    confidence = probabilities.max(axis=1)
    accuracies, confidences = calibration_curve(probabilities.argmax(axis=1) == targets, confidence, n_bins=15)
    assert bins.confidence == pytest.approx(confidences)
    assert bins.accuracy == pytest.approx(accuracies)
    assert bins.count.sum() == len(targets) and bins.count.min() > 0
    ece = (bins.count * np.abs(bins.confidence - bins.accuracy)).sum() / len(targets)
    assert ece == pytest.approx(calibrated(probabilities, targets).ece)


def test_temperature_of_probabilities_is_that_of_logits(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    logits = drawn[0][1]
    for temperature in (0.3, 1.0, 4.0):
        expected = softmax(logits / temperature, axis=1)
        assert with_temperature(softmax(logits, axis=1), temperature) == pytest.approx(expected, abs=1e-12)


def test_a_probability_that_underflowed_to_0_has_a_finite_loss() -> None:
    probabilities = np.tile([1.0, 0.0], (10, 1))
    targets = np.array([0] * 9 + [1])
    found = calibrated(probabilities, targets, (probabilities, targets))
    # The best T is 322.
    assert found.scaled is None and found.no_temperature == "at a bound"
    assert np.isfinite([found.nll, found.brier, found.ece]).all()
    assert found.brier == pytest.approx(0.2) and found.ece == pytest.approx(0.1)


ONE_OF_17 = np.eye(3)[[0] * 17] * np.linspace(1, 6, 17)[:, None]
"""Logits of one class, the more certain the further down."""


@pytest.mark.parametrize(
    ("logits", "targets", "reason"),
    [
        (np.eye(3)[[0]], [0], "too few"),
        (np.eye(3)[[0]], [1], "too few"),
        # All right: with a large margin the loss is 0 in floating point well before the bound.
        (ONE_OF_17, [0] * 17, "all right"),
        (ONE_OF_17 * 1e-3, [0] * 17, "all right"),
        (np.eye(5)[np.arange(2000) % 5] * 50, np.arange(2000) % 5, "all right"),
        # All wrong.
        (ONE_OF_17, [1] * 17, "at a bound"),
        # One image is wrong, and T rests on it: by a hair, so that T is nearly 0, or by far.
        (ONE_OF_17 * 0.01, [1] + [0] * 16, "at a bound"),
        (ONE_OF_17, [0] * 16 + [1], "at a bound"),
        # Constant: every T has the same loss; where it says something, what it says is right already.
        (np.zeros((300, 3)), np.arange(300) % 3, "no gain"),
        (np.log(np.tile([0.7, 0.2, 0.1], (20, 1))), [0] * 14 + [1] * 4 + [2] * 2, "no gain"),
    ],
)
def test_no_temperature_where_nothing_can_be_fitted(
    logits: np.ndarray, targets: list[int], reason: str, drawn: tuple[np.ndarray, np.ndarray]
) -> None:
    assert find_temperature(logits, np.array(targets)) == (1, reason)
    assert find_temperature(logits[::-1], np.array(targets)[::-1]) == (1, reason)
    probabilities, labels = softmax(drawn[0][1], axis=1), drawn[1][1]
    found = calibrated(probabilities, labels, (softmax(logits, axis=1), np.array(targets)))
    alone = calibrated(probabilities, labels)
    assert (found.scaled, found.no_temperature, alone.no_temperature) == (None, reason, "")
    assert (found.ece, found.nll, found.brier) == (alone.ece, alone.nll, alone.brier)


@pytest.mark.parametrize("num_images", [40, 200, 2000])
@pytest.mark.parametrize("right", [0.4, 2.5])
def test_a_temperature_that_val_determines_is_taken(
    right: float, num_images: int, drawn: tuple[np.ndarray, np.ndarray]
) -> None:
    (val, test), (val_targets, targets) = drawn[0] / 2 * right, drawn[1]
    temperature, reason = find_temperature(val[:num_images], val_targets[:num_images])
    assert reason == "" and temperature == fit_temperature(val[:num_images], val_targets[:num_images])
    assert temperature == pytest.approx(right, rel=4 / np.sqrt(num_images))
    assert temperature_losses(test, targets, temperature).mean() < temperature_losses(test, targets, 1.0).mean()


def test_small_val_sets_do_little_harm() -> None:
    """Of 17 images of a calibrated network: the plain fit is ruinous on average, what is taken costs little."""
    generator = np.random.default_rng(1)
    honest = generator.normal(scale=3, size=(200, 17, 3))
    labels = (honest + generator.gumbel(size=honest.shape)).argmax(axis=-1)
    test, targets = honest.reshape(-1, 3), labels.reshape(-1)
    before = temperature_losses(test, targets, 1.0).mean()
    plain, taken = [], []
    for logits, own in zip(honest, labels, strict=True):
        plain.append(temperature_losses(test, targets, fit_temperature(logits, own)).mean() - before)
        taken.append(temperature_losses(test, targets, find_temperature(logits, own)[0]).mean() - before)
    assert np.mean(plain) > 0.3 and np.mean(taken) < 0.02 and np.max(taken) < 1
