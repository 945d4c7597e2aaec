"""Configurations against each other: each over its seeds, each against the one that is best on val."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lit_cnn.evaluation.statistics import (
    Interval,
    MeanStd,
    holm,
    mean_std,
    paired_mean_difference,
    welch_difference,
    wilson_interval,
)


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one configuration, one for each seed.

    Attributes:
        name: Tells it from the others.
        run_ids: MLflow's, n of them.
        accuracies: `(n,)` float, in [0, 1], of each run as it was logged.
        val_accuracy: Mean of the runs' best accuracies on val, in [0, 1].
        correct: `(n, N)` bool, which images each run classifies correctly; None unless all n have stored logits.
        parameters: Of one network.
        multiply_adds: Of one network for one image; None if no run's checkpoint could be read.
    """

    name: str
    run_ids: tuple[str, ...]
    accuracies: np.ndarray
    val_accuracy: float
    correct: np.ndarray | None
    parameters: int
    multiply_adds: int | None


@dataclass(frozen=True, eq=False)
class Standing:
    """A group with its numbers; accuracies and differences are fractions.

    Attributes:
        group: What it is about.
        accuracy: Number of runs, mean and sample standard deviation over them.
        limits: 95 % Wilson limits of the mean accuracy over the N images, as of one network; None without logits.
        difference: Mean accuracy minus the reference's, with 95 % limits; None for the reference or without a test.
        p_value: Of that difference, two-sided.
        p_holm: Adjusted over the table.
        test: `images`: paired over the images; `seeds`: Welch's t over the seeds; `none`: neither could be done.
    """

    group: Group
    accuracy: MeanStd
    limits: tuple[float, float] | None
    difference: Interval | None = None
    p_value: float | None = None
    p_holm: float | None = None
    test: Literal["images", "seeds", "none"] = "none"


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """All that `lit-cnn compare --experiment` says.

    Attributes:
        experiment: The MLflow experiment.
        split: On which images.
        standings: The most accurate first.
        reference: The group with the best mean on val.
        notes: What could not be done and why, in sentences.
    """

    experiment: str
    split: str
    standings: tuple[Standing, ...]
    reference: Group
    notes: tuple[str, ...]


def build_leaderboard(groups: Sequence[Group], experiment: str, split: str, notes: Sequence[str] = ()) -> Leaderboard:
    """Computes the table.

    Groups whose runs all have stored logits are compared image by image: the test is about these trained networks,
    and the deviation over the seeds is beside it. Others are compared by Welch's t over the seeds, which needs two on
    both sides.

    Args:
        groups: At least one, all about the same images.
        experiment: Name of the experiment.
        split: Name of the split.
        notes: What is to be said besides.
    """
    reference = max(groups, key=lambda group: group.val_accuracy)
    compared = [_standing(group, reference) for group in groups]
    p_values = [standing.p_value for standing in compared if standing.p_value is not None]
    adjusted = iter(holm(p_values))
    standings = [
        standing if standing.p_value is None else Standing(**{**vars(standing), "p_holm": next(adjusted)})
        for standing in compared
    ]
    standings.sort(key=lambda standing: (-standing.accuracy.mean, standing.group.name))
    return Leaderboard(experiment, split, tuple(standings), reference, tuple(notes))


def _standing(group: Group, reference: Group) -> Standing:
    limits = None
    if group.correct is not None:
        num_images = group.correct.shape[1]
        limits = wilson_interval(round(group.correct.mean() * num_images), num_images)
    accuracy = mean_std(group.accuracies)
    if group is reference:
        return Standing(group, accuracy, limits)
    if group.correct is not None and reference.correct is not None:
        difference, p_value = paired_mean_difference(group.correct, reference.correct)
        return Standing(group, accuracy, limits, difference, p_value, test="images")
    if min(len(group.accuracies), len(reference.accuracies)) > 1:
        difference, p_value = welch_difference(group.accuracies, reference.accuracies)
        return Standing(group, accuracy, limits, difference, p_value, test="seeds")
    return Standing(group, accuracy, limits)
