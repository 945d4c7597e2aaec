"""Arms are trained where runs are missing, read back from MLflow, and compared seed by seed."""

from pathlib import Path

import numpy as np
import pytest

from lit_cnn.cli.fit_config import train_missing
from lit_cnn.evaluation.arms import (
    Arm,
    Curve,
    comparison,
    final_values,
    finished_runs,
    learning_curves,
    plot_by_images,
    plot_curves,
    smoothed,
    steps_to,
)
from tests.runs import SHORT_OPTIONS

NAME = "lenet5_scratch_digits"
LENET = Arm("LeNet-5", NAME, [NAME], SHORT_OPTIONS)
SEEDS = (0, 1, 2)


def curve(*values: float, seed: int = 0) -> Curve:
    return Curve(seed, np.arange(10, 10 * len(values) + 10, 10), np.array(values))


def test_runs_and_curves_are_those_of_the_store(store_copy: Path) -> None:
    runs = finished_runs(LENET, "digits")
    assert sorted(runs) == [0, 1, 2]
    (curves,) = learning_curves([LENET], "digits", "train/loss", SEEDS).values()
    assert [each.seed for each in curves] == [0, 1, 2]
    assert [list(each.steps) for each in curves] == [[7, 15]] * 3
    (losses,) = final_values([LENET], "digits", "train/loss", SEEDS).values()
    assert losses == [each.values[-1] for each in curves] == [runs[seed].metrics["train/loss"] for seed in SEEDS]


@pytest.mark.slow
def test_only_what_is_missing_is_trained(store_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {seed: run.run_id for seed, run in finished_runs(LENET, "digits").items()}
    train_missing([LENET], "digits", [0, 1, 3])
    assert "LeNet-5: 2 of 3 runs are there" in capfd.readouterr().out
    after = {seed: run.run_id for seed, run in finished_runs(LENET, "digits").items()}
    assert sorted(after) == [0, 1, 2, 3]
    assert {seed: after[seed] for seed in before} == before


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused(store_copy: Path) -> None:
    with pytest.raises(ValueError, match=r"LeNet-5: no finished run lenet5_scratch_digits with seeds \[7\]"):
        final_values([LENET], "digits", "train/loss", [0, 7])
    with pytest.raises(ValueError, match="has no metric train/nonsense"):
        final_values([LENET], "digits", "train/nonsense", SEEDS)
    with pytest.raises(ValueError, match="LeNet-5: has no metric train/nonsense"):
        learning_curves([LENET], "digits", "train/nonsense", SEEDS)
    longer = Arm(
        "longer", "lenet5_scratch_digits_longer", ["lenet5_scratch_digits"], {**SHORT_OPTIONS, "recipe": "longer"}
    )
    train_missing([longer], "digits", [0], {"trainer.max_epochs": 3})
    with pytest.raises(ValueError, match=r"differ in trainer.max_epochs"):
        final_values([LENET, longer], "digits", "train/loss", [0])


def test_without_a_store_there_are_no_runs() -> None:
    assert finished_runs(LENET, "digits") == {}


def test_smoothing_is_the_mean_of_the_values_up_to_a_step() -> None:
    means = smoothed(curve(4.0, 2.0, 0.0, 1.0), 2)
    assert list(means.steps) == [20, 30, 40]
    assert list(means.values) == [3.0, 1.0, 0.5]
    with pytest.raises(ValueError, match="window 5: give 1 to 4"):
        smoothed(curve(4.0, 2.0, 0.0, 1.0), 5)


def test_steps_to_a_level() -> None:
    assert steps_to(curve(4.0, 2.0, 3.0, 1.0), 2.0) == 20
    assert steps_to(curve(4.0, 2.0, 3.0, 1.0), 0.5) == float("inf")


def test_a_comparison_gives_the_paired_difference() -> None:
    text = comparison({"plain": [1.0, 2.0, 3.0], "residual": [0.5, 1.5, 2.6]}, digits=2)
    plain, residual = text.splitlines()[1:]
    assert plain.split() == ["plain", "3", "2.00", "±", "1.00"]
    # Differences -0.5, -0.5, -0.4: mean -0.467, standard error 0.033, Student's t 4.30 for two degrees of freedom.
    assert residual.split() == ["residual", "3", "1.53", "±", "1.05", "-0.47", "[-0.61,", "-0.32]"]


def test_curves_become_a_picture(tmp_path: Path) -> None:
    curves = {"a": [curve(3.0, 2.0, 1.0), curve(3.5, 2.5, 1.5, seed=1)], "b": [curve(3.0, 3.0, 2.0)]}
    plot_curves(curves, tmp_path / "curves.png", "training loss", log_scale=True)
    from PIL import Image

    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1200, 675)
        assert len(set(picture.convert("RGB").get_flattened_data())) > 50


def test_accuracies_by_size_become_a_picture(tmp_path: Path) -> None:
    values = {"scratch": {50: [60.0, 64.0], 500: [81.0, 82.0], 60_000: [93.0, 93.1]}, "head": {50: [68.0, 68.5]}}
    plot_by_images(values, tmp_path / "sizes.png", "test accuracy, %")
    from PIL import Image

    with Image.open(tmp_path / "sizes.png") as picture:
        assert picture.size == (1200, 675)
        assert {(0x0B, 0x5C, 0xAD), (0xC2, 0x41, 0x0C)} <= set(picture.convert("RGB").get_flattened_data())
