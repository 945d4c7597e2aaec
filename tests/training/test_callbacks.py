"""A run tells how long it waited for data."""

import re
import time
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest

from lit_cnn.cli import main
from lit_cnn.training.callbacks import waits_too_long
from tests.runs import SHORT, tracked_runs

pytestmark = pytest.mark.usefixtures("empty_store")

SECONDS = 0.05  # an image


class Slow(albumentations.ImageOnlyTransform):
    """A transform that takes its time and changes nothing."""

    def __init__(self) -> None:
        super().__init__(p=1.0)

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        time.sleep(SECONDS)
        return img


def fit(*more: str) -> list[tuple[int, float]]:
    """Trains two epochs of four steps; returns what is logged of waiting."""
    assert main(["fit", *SHORT, "--data.limit_train=72", "--data.batch_size=18", *more]) == 0
    (run,) = tracked_runs(Path.cwd(), "fit")
    return run.history["data/wait_fraction"]


def test_waiting_for_slow_images_is_measured_and_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    waited = fit("--data.augment=[{class_path: tests.training.test_callbacks.Slow}]")
    assert [step for step, _ in waited] == [3, 7]
    # Lightning asks for one batch ahead, so two of an epoch's four are asked for after the first step has begun.
    assert all(0.5 < share < 1 for _, share in waited)
    told = re.findall(
        r"lit-cnn: training waited for images (\d+)% of the time; more num_workers \(now 0",
        capsys.readouterr().err,
    )
    assert len(told) == 1 and int(told[0]) > 50


def test_a_run_that_does_not_wait_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    waited = fit("--data.augment=[]", "--model.arch=lenet5_1998", "--data.image_size=32")
    assert all(0 <= share < 0.5 for _, share in waited)
    assert "waited" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fraction", "seconds", "told"), [(0.21, 3.1, True), (0.19, 3.1, False), (0.21, 2.9, False), (1.0, 2.9, False)]
)
def test_more_than_a_fifth_of_three_seconds_is_too_long(fraction: float, seconds: float, told: bool) -> None:
    assert waits_too_long(fraction, seconds) is told
