"""Calibration from raw logits: torchmetrics, sklearn and a grid of temperatures say the same."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from lit_cnn.evaluation.calibration import calibration_of, reliability_of, with_temperature

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
    found = calibration_of(probabilities, targets, (softmax(val, axis=1), val_targets))
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
    assert calibration_of(probabilities, targets).scaled is None


def test_bins_are_sklearns(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, targets = softmax(drawn[0][1], axis=1), drawn[1][1]
    bins = reliability_of(probabilities, targets)
    confidence = probabilities.max(axis=1)
    accuracies, confidences = calibration_curve(probabilities.argmax(axis=1) == targets, confidence, n_bins=15)
    assert bins.confidence == pytest.approx(confidences)
    assert bins.accuracy == pytest.approx(accuracies)
    assert bins.count.sum() == len(targets) and bins.count.min() > 0
    ece = (bins.count * np.abs(bins.confidence - bins.accuracy)).sum() / len(targets)
    assert ece == pytest.approx(calibration_of(probabilities, targets).ece)


def test_temperature_of_probabilities_is_that_of_logits(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    logits = drawn[0][1]
    for temperature in (0.3, 1.0, 4.0):
        expected = softmax(logits / temperature, axis=1)
        assert with_temperature(softmax(logits, axis=1), temperature) == pytest.approx(expected, abs=1e-12)


def test_a_probability_that_underflowed_to_0_has_a_finite_loss() -> None:
    probabilities = np.tile([1.0, 0.0], (10, 1))
    targets = np.array([0] * 9 + [1])
    found = calibration_of(probabilities, targets, (probabilities, targets))
    assert found.scaled is not None and 1 < found.scaled.temperature <= 100
    assert np.isfinite([found.nll, found.scaled.nll, found.brier, found.ece]).all()
    assert found.brier == pytest.approx(0.2) and found.ece == pytest.approx(0.1)
