"""A trained store: one to read, and copies to change; calibration of arrays."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lit_cnn.evaluation.calibration import (
    Calibration,
    Scores,
    calibration_of,
    find_temperature,
    logarithm,
    with_temperature,
)
from tests.runs import three_seeds


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the short run was trained with three seeds; do not change what is in it."""
    return three_seeds(tmp_path_factory.getbasetemp())


@pytest.fixture
def store_copy(trained: Path, tmp_path: Path) -> Path:
    """The test's folder, with a copy of the trained store."""
    shutil.copytree(trained / "mlruns", tmp_path / "mlruns")
    return tmp_path


def calibrated(
    probabilities: np.ndarray, targets: np.ndarray, val: tuple[np.ndarray, np.ndarray] | None = None
) -> Calibration:
    """What a table does: in parts, after a temperature that is fitted on val."""
    found = None if val is None else find_temperature(logarithm(val[0]), val[1])
    halves = np.array_split(np.arange(len(targets)), 2)
    scores = Scores.joined([Scores.of(probabilities[half], targets[half]) for half in halves])
    if found is None or found[1]:
        return calibration_of(scores, None, found)
    return calibration_of(scores, Scores.of(with_temperature(probabilities, found[0]), targets), found)
