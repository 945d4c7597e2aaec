"""Configurations against each other: each over its seeds, each against the one that is best on val."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lit_cnn.core.intervals import Interval, wilson_interval
from lit_cnn.core.words import counted
from lit_cnn.evaluation.decision import ALPHA, MARGIN, Decision, Tested, decide
from lit_cnn.evaluation.paired import score_limits, smallest_difference
from lit_cnn.evaluation.statistics import (
    MeanStd,
    holm,
    mcnemar_exact,
    mean_std,
    paired_mean_difference,
    welch_difference,
)
from lit_cnn.reports.page import bullets, grid, paragraph
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
from lit_cnn.reports.wording import missed_words, others_words, p_text, percent, points_words, rounded, signed
from lit_cnn.tracking.run import Run

if TYPE_CHECKING:
    from rich.console import RenderableType

_TITLES = ("Configuration", "n", "Mean ± std % [95 %]", "Difference [95 %]", "p", "p Holm", "Test", "Params", "MACs")


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
        subject: What the configurations have in common: data set, network, regime.
    """

    experiment: str
    split: str
    standings: tuple[Standing, ...]
    reference: Group
    notes: tuple[str, ...]
    run: Run | None = None
    subject: str = ""

    @property
    def title(self) -> str:
        """Title of its page."""
        return f"Comparison of {self.subject or self.experiment}"

    def answer(self) -> str:
        """Returns which configuration to take, how it stands to the others, and what was compared."""
        found, taken = self.decision, self._standing_of
        chosen = taken(found.chosen)
        accuracy = self._accuracy_words(chosen)
        if not found.num_others:
            return f"{chosen.group.name}: {accuracy}. There is nothing here to compare it with."
        said = f"Take {chosen.group.name}: {accuracy}"
        if found.over_reference is not None:
            over = points_words(found.over_reference, self.num_images or 1000)
            of = f"{found.reference.name}, the best on val"
            said += (
                f". It takes fewer multiply-adds than {of}, and a loss of more than {100 * MARGIN:.0f} point is "
                f"excluded ({over})"
                if found.is_for_its_cost
                else f", {over} over {of}"
            )
        return " ".join([f"{said}.", *self._about_others(found)])

    @cached_property
    def decision(self) -> Decision[Group]:
        """Which configuration to take; see `decide`."""
        return decide(
            [standing.group for standing in self.standings],
            self.reference,
            self._tests,
            lambda group: None if group.multiply_adds is None else float(group.multiply_adds),
            lambda group: group.val_accuracy,
        )

    @property
    def num_images(self) -> int | None:
        """Images that the configurations were compared on; None if none has stored logits."""
        return next((group.correct.shape[1] for group in self._groups if group.correct is not None), None)

    @property
    def _groups(self) -> list[Group]:
        return [standing.group for standing in self.standings]

    def _standing_of(self, group: Group) -> Standing:
        return next(standing for standing in self.standings if standing.group is group)

    def _tests(self, groups: Sequence[Group], against: Group) -> list[Tested]:
        if against is self.reference:
            found = [self._standing_of(group) for group in groups]
            return [Tested(_careful(each, against), each.p_holm) for each in found]
        standings = _compared(groups, against)
        return [Tested(_careful(standing, against), standing.p_holm) for standing in standings]

    def _accuracy_words(self, standing: Standing) -> str:
        accuracy, n = standing.accuracy, self.num_images or 1000
        limits = (
            "" if standing.limits is None else f" [{percent(standing.limits[0], n)}, {percent(standing.limits[1], n)}]"
        )
        images = f" on {counted(self.num_images, f'{self.split} image')}" if self.num_images else f" on {self.split}"
        seeds = f", mean of {accuracy.n} seeds" if accuracy.n > 1 else ""
        return f"{percent(accuracy.mean, n)} %{limits}{images}{seeds}"

    def _about_others(self, found: Decision[Group]) -> Iterator[str]:
        worse, others, untested = len(found.worse), found.num_others, len(found.untested)
        if untested < others and not found.is_better:
            yield others_words(worse, others, self._missed())
        if untested:
            what = "The other one" if others == 1 else f"{untested:,} of {others:,} others"
            yield f"{what} could not be tested: that takes stored logits or two seeds on both sides."
        if found.cheaper is not None:
            cheaper = found.cheaper
            yield (
                f"Cheaper and not measurably worse: {cheaper.row.name}, at {100 * cheaper.cost_ratio:.2g} % of the "
                f"multiply-adds, {points_words(cheaper.difference, self.num_images or 1000)}."
            )
        if max(standing.accuracy.n for standing in self.standings) == 1:
            yield "One seed each: another seed may turn this round."

    def _missed(self) -> str:
        """What these images would miss; nothing where seeds were compared."""
        tested = [standing for standing in self.standings if standing.test == "images"]
        if not tested or self.num_images is None:
            return ""
        smallest = smallest_difference(self.num_images, alpha=ALPHA / len(tested))
        return missed_words(smallest, self.num_images, self.split)

    def text(self) -> "Sequence[RenderableType]":
        """Returns the table, its caption and its notes."""
        is_bold = [standing.group is self.reference for standing in self.standings]
        return [text_grid(_TITLES, self._cells(), is_bold, self._caption()), *text_notes(self.notes)]

    def sections(self) -> list[str]:
        """Returns the table, its caption and its notes in HTML."""
        runs = [" ".join(run_id[:8] for run_id in standing.group.run_ids) for standing in self.standings]
        rows = [(*cells, of_group) for cells, of_group in zip(self._cells(), runs, strict=True)]
        chosen = self.decision.chosen
        classes = [
            ("reference " if standing.group is self.reference else "") + ("chosen" if standing.group is chosen else "")
            for standing in self.standings
        ]
        parts = [grid((*_TITLES, "Runs"), rows, classes), paragraph(self._caption())]
        return [*parts, bullets(self.notes)] if self.notes else parts

    def records(self) -> list[dict[str, Any]]:
        """Returns a row for each configuration: fractions, in full precision; None where there is no number."""
        return [_record(standing, self.reference) for standing in self.standings]

    def to_json(self) -> str:
        """Returns the answer, every number, in fractions and full precision, and the notes; null for no number."""
        rows = [{**record, "runs": record["runs"].split()} for record in self.records()]
        found = self.decision
        return json_text(
            {
                "answer": self.answer(),
                "take": {
                    "name": found.chosen.name,
                    "is_better": found.is_better,
                    "is_for_its_cost": found.is_for_its_cost,
                },
                "experiment": self.experiment,
                "split": self.split,
                "configurations": rows,
                "notes": self.notes,
            }
        )

    def to_markdown(self) -> str:
        """Returns answer, table, its caption and its notes in GitHub's Markdown."""
        notes = [f"- {escaped_markdown(note)}" for note in self.notes]
        grid = markdown_grid(_TITLES, self._cells())
        return "\n".join(
            [f"**{escaped_markdown(self.answer())}**", "", *grid, "", escaped_markdown(self._caption()), "", *notes, ""]
        )

    def write(self, folder: Path) -> list[Path]:
        """Writes the leaderboard as CSV, JSON and Markdown, and a page."""
        texts = {"csv": self.to_csv(), "json": self.to_json(), "md": self.to_markdown()}
        named = {f"leaderboard.{end}": text for end, text in texts.items()}
        return write_texts(folder, {**named, "report.html": self.to_html()})

    def _cells(self) -> list[tuple[str, ...]]:
        return [_cells(standing, self.reference) for standing in self.standings]

    def _caption(self) -> str:
        about = f"{self.subject}. " if self.subject else ""
        return (
            f"{about}Accuracy on {self.split}: mean and standard deviation over n seeds, and Wilson limits of the "
            f"mean over the images, as of one network. Reference: {self.reference.name}, best on val. Difference: "
            "percentage points against it (the first sentences have wider limits where few images differ). "
            "Test images: paired over the images, about these trained networks (exact McNemar for one run each, "
            "else sign flips); seeds: Welch's t over the seeds. p Holm: adjusted over the table. "
            "Params, MACs: parameters and multiply-adds for one image."
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
    standings = _compared(groups, reference)
    standings.sort(key=lambda standing: (-standing.accuracy.mean, standing.group.name))
    return Leaderboard(experiment, split, tuple(standings), reference, tuple(notes))


def _compared(groups: Sequence[Group], reference: Group) -> list[Standing]:
    compared = [_standing(group, reference) for group in groups]
    p_values = [standing.p_value for standing in compared if standing.p_value is not None]
    adjusted = iter(holm(p_values))
    return [standing if standing.p_value is None else replace(standing, p_holm=next(adjusted)) for standing in compared]


def _careful(standing: Standing, reference: Group) -> Interval | None:
    """Returns a difference with limits that are wide enough for few images: the bootstrap's are none without any."""
    own, other = standing.group.correct, reference.correct
    if standing.test != "images" or own is None or other is None:
        return standing.difference
    if len(own) == len(other) == 1:
        test = mcnemar_exact(own[0], other[0])
        return score_limits(test.only_a, test.only_b, own.shape[1])
    least = score_limits(0, 0, own.shape[1])
    assert standing.difference is not None
    mean, low, high = standing.difference
    return Interval(mean, min(low, mean + least.low), max(high, mean + least.high))


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
    within = "" if limits is None else f" [{100 * limits[0]:.2f}, {100 * limits[1]:.2f}]"
    is_reference = standing.group is reference
    dash = "reference" if is_reference else "-"
    return (
        standing.group.name,
        f"{accuracy.n}",
        f"{100 * accuracy.mean:.2f}{spread}{within}",
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
