"""Configurations against each other: each over its seeds, each against the one that is best on val."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lit_cnn.core.intervals import Interval, wilson_interval
from lit_cnn.evaluation.statistics import MeanStd, holm, mean_std, paired_mean_difference, welch_difference
from lit_cnn.reports.page import bullets, grid, page, paragraph
from lit_cnn.reports.result import (
    Result,
    escaped_markdown,
    json_text,
    markdown_grid,
    text_grid,
    text_notes,
    with_limits,
    write_texts,
)
from lit_cnn.reports.wording import p_text, rounded, signed
from lit_cnn.tracking.run import Run

if TYPE_CHECKING:
    from rich.console import RenderableType

_TITLES = ("Configuration", "n", "Mean ± std %", "95 %", "Difference [95 %]", "p", "p Holm", "Test", "Params", "MACs")


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


@dataclass(frozen=True, eq=False, repr=False)
class Leaderboard(Result):
    """Configurations by their accuracy, each over its seeds and against the one best on val.

    Attributes:
        experiment: The MLflow experiment.
        split: On which images.
        standings: The most accurate first.
        reference: The group with the best mean on val.
        notes: What could not be done and why, in sentences.
        run: The run that holds its report in MLflow, where one was asked for.
    """

    experiment: str
    split: str
    standings: tuple[Standing, ...]
    reference: Group
    notes: tuple[str, ...]
    run: Run | None = None

    def text(self) -> "Sequence[RenderableType]":
        """Returns the table, its caption and its notes."""
        is_bold = [standing.group is self.reference for standing in self.standings]
        return [text_grid(_TITLES, self._cells(), is_bold, self._caption()), *text_notes(self.notes)]

    def sections(self) -> list[str]:
        """Returns the table, its caption and its notes in HTML."""
        runs = [" ".join(standing.group.run_ids) for standing in self.standings]
        rows = [(*cells, of_group) for cells, of_group in zip(self._cells(), runs, strict=True)]
        classes = ["reference" if standing.group is self.reference else "" for standing in self.standings]
        parts = [grid((*_TITLES, "Runs"), rows, classes), paragraph(self._caption())]
        return [*parts, bullets(self.notes)] if self.notes else parts

    def records(self) -> list[dict[str, Any]]:
        """Returns a row for each configuration: fractions, in full precision; None where there is no number."""
        return [_record(standing, self.reference) for standing in self.standings]

    def to_json(self) -> str:
        """Returns every number, in fractions and full precision, and the notes; null for no number."""
        rows = [{**record, "runs": record["runs"].split()} for record in self.records()]
        return json_text(
            {"experiment": self.experiment, "split": self.split, "configurations": rows, "notes": self.notes}
        )

    def to_markdown(self) -> str:
        """Returns the table, its caption and its notes in GitHub's Markdown."""
        notes = [f"- {escaped_markdown(note)}" for note in self.notes]
        grid = markdown_grid(_TITLES, self._cells())
        return "\n".join([*grid, "", escaped_markdown(self._caption()), "", *notes, ""])

    def write(self, folder: Path) -> list[Path]:
        """Writes the leaderboard as CSV, JSON and Markdown, and a page."""
        texts = {"csv": self.to_csv(), "json": self.to_json(), "md": self.to_markdown()}
        html = page(f"Leaderboard of {self.experiment}", *self.sections())
        return write_texts(folder, {f"leaderboard.{end}": text for end, text in texts.items()} | {"report.html": html})

    def _cells(self) -> list[tuple[str, ...]]:
        return [_cells(standing, self.reference) for standing in self.standings]

    def _caption(self) -> str:
        return (
            f"Accuracy on {self.split}: mean and standard deviation over n seeds; 95 %: Wilson limits of the mean over "
            f"the images, as of one network. Reference: {self.reference.name}, best on val. Difference: percentage "
            "points against it. Test images: paired over the images, about these trained networks (exact McNemar for "
            "one run each, else sign flips); seeds: Welch's t over the seeds. p Holm: adjusted over the table. Params, "
            "MACs: parameters and multiply-adds for one image."
        )


def build_leaderboard(groups: Sequence[Group], experiment: str, split: str, notes: Sequence[str] = ()) -> Leaderboard:
    """Computes the table.

    Groups whose runs all have stored logits are compared image by image: the test is about these trained networks,
    and the standard deviation over the seeds is given too. Others are compared by Welch's t over the seeds, which needs
    two on both sides.

    Args:
        groups: At least one, all about the same images.
        experiment: Name of the experiment.
        split: Name of the split.
        notes: Sentences for below the table.
    """
    reference = max(groups, key=lambda group: group.val_accuracy)
    compared = [_standing(group, reference) for group in groups]
    p_values = [standing.p_value for standing in compared if standing.p_value is not None]
    adjusted = iter(holm(p_values))
    standings = [
        standing if standing.p_value is None else replace(standing, p_holm=next(adjusted)) for standing in compared
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


def _cells(standing: Standing, reference: Group) -> tuple[str, ...]:
    accuracy, limits, difference = standing.accuracy, standing.limits, standing.difference
    spread = "" if math.isnan(accuracy.std) else f" ± {100 * accuracy.std:.2f}"
    is_reference = standing.group is reference
    dash = "reference" if is_reference else "-"
    return (
        standing.group.name,
        f"{accuracy.n}",
        f"{100 * accuracy.mean:.2f}{spread}",
        "-" if limits is None else f"[{100 * limits[0]:.2f}, {100 * limits[1]:.2f}]",
        dash if difference is None else signed(difference),
        "-" if standing.p_value is None else p_text(standing.p_value),
        "-" if standing.p_holm is None else p_text(standing.p_holm),
        "-" if is_reference else standing.test,
        rounded(standing.group.parameters),
        "-" if standing.group.multiply_adds is None else rounded(standing.group.multiply_adds),
    )


def _record(standing: Standing, reference: Group) -> dict[str, Any]:
    accuracy, limits = standing.accuracy, standing.limits
    return {
        "name": standing.group.name,
        "is_reference": standing.group is reference,
        "n": accuracy.n,
        "mean": accuracy.mean,
        "std": None if math.isnan(accuracy.std) else accuracy.std,
        "low": limits and limits[0],
        "high": limits and limits[1],
        "val_mean": standing.group.val_accuracy,
        **with_limits("difference", standing.difference),
        "p": standing.p_value,
        "p_holm": standing.p_holm,
        "test": standing.test,
        "parameters": standing.group.parameters,
        "multiply_adds": standing.group.multiply_adds,
        "runs": " ".join(standing.group.run_ids),
    }
