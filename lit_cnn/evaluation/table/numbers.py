"""The numbers of the table: each row's accuracy and its paired difference to the reference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np

from lit_cnn.core.intervals import Interval
from lit_cnn.evaluation.calibration import Calibration
from lit_cnn.evaluation.cost import Cost
from lit_cnn.evaluation.statistics import (
    McNemar,
    MeanStd,
    accuracy_interval,
    holm,
    images_for_power,
    mcnemar_exact,
    mean_std,
    paired_bootstrap,
    unpaired_difference,
)


@dataclass(frozen=True, eq=False)
class Row:
    """One way to classify the test images: a network or an ensemble, with so many crops per image.

    Attributes:
        name: A network's name, or what the ensemble is called; the same for all its crop counts.
        kind: A member, an ensemble of members, or a baseline for it, none of whose members it is: a soup, a student.
        num_models: M, networks that are run; 1 for a member.
        num_views: V, crops per image.
        forward_passes: Per image: M * V.
        correct: `(N,)` bool, True where the image is classified correctly; all rows on the same images, but for `part`.
        val_accuracy: In [0, 1], on the images on which the reference was chosen, if known.
        run_id: MLflow's, if there is one.
        part: `(n,)` int, the places among the N images that the row is about, where it is not about all: then
            `correct` is `(n,)`.
        composition: Which members with which weights, where these were selected on val.
        val_counts: Images of val that this row classifies correctly, and all of them, if it was computed there.
        calibration: Of its probabilities, if it has any.
        weights: `(M',)`, one for each member of the table, of an ensemble; 0 for a member that is left out.
        cost: What it takes to classify an image, where it is known.
    """

    name: str
    kind: Literal["member", "ensemble", "baseline"]
    num_models: int
    num_views: int
    forward_passes: int
    correct: np.ndarray
    val_accuracy: float | None = None
    run_id: str | None = None
    part: np.ndarray | None = None
    composition: str = ""
    val_counts: tuple[int, int] | None = None
    calibration: Calibration | None = None
    weights: tuple[float, ...] = ()
    cost: Cost | None = None

    @property
    def is_combined(self) -> bool:
        """Whether it is what members are compared with: an ensemble or a baseline."""
        return self.kind != "member"


@dataclass(frozen=True, eq=False)
class Line:
    """A row with its numbers; accuracies and differences are fractions, not per cent.

    Attributes:
        row: What it is about.
        accuracy: On test, with its 95 % Wilson interval.
        difference: Accuracy minus the reference's, with its 95 % paired bootstrap interval; None for the reference.
        mcnemar: Exact test against the reference (a: this row, b: the reference); None for the reference.
        p_holm: McNemar's p, adjusted over all lines of the table (Holm); None for the reference.
        images_needed: Test images that would show this difference with a power of 0.8; None if there is none.
        fewer_views: The number of crops of the same models that comes before this row's; None if it is the smallest.
        marginal: Accuracy minus that with `fewer_views`, on the same images, with its 95 % paired bootstrap interval.
        optimism: Accuracy on val minus accuracy on test, with its 95 % Newcombe interval, if it was computed on val.
    """

    row: Row
    accuracy: Interval
    difference: Interval | None = None
    mcnemar: McNemar | None = None
    p_holm: float | None = None
    images_needed: int | None = None
    fewer_views: int | None = None
    marginal: Interval | None = None
    optimism: Interval | None = None


@dataclass(frozen=True)
class MembersSummary:
    """Number, mean and standard deviation of the members' accuracies (fractions) at one number of crops."""

    num_views: int
    accuracy: MeanStd


@dataclass(frozen=True, eq=False)
class Gain:
    """Accuracy of an ensemble minus the mean of its members', at equal crops, with its 95 % paired bootstrap."""

    row: Row
    difference: Interval


@dataclass(frozen=True, eq=False, repr=False)
class Numbers:
    """All numbers of a table.

    Attributes:
        lines: In the order of the rows.
        reference: The row that the others are compared to: the member best on val, one crop.
        num_images: N, test images.
        num_classes: K.
        members: One entry for each number of crops.
        gains: One entry for each ensemble of all members in the table.
        grid: Models x crops: the first member and nested means of the first, each against the first of these lines.
        subject: What the members have in common: data set, network, regime.
    """

    lines: tuple[Line, ...]
    reference: Row
    num_images: int
    num_classes: int
    members: tuple[MembersSummary, ...]
    gains: tuple[Gain, ...]
    grid: tuple[Line, ...] = ()
    subject: str = ""

    @classmethod
    def of(cls, rows: Sequence[Row], reference: Row, num_classes: int, grid: Sequence[Row] = ()) -> Self:
        """Computes them.

        Args:
            rows: In the order wanted, the reference among them.
            reference: Chosen on val, not on the test images that are reported here.
            num_classes: K, for the caption.
            grid: The rows of models x crops, the base first.

        Raises:
            ValueError: If the reference is not one of the rows, or the rows are not about the same images.
        """
        if not any(row is reference for row in rows):
            raise ValueError(f"the reference {reference.name!r} is not one of the rows")
        for row in rows:
            if row.correct.shape != on_images_of(row, reference).shape or row.correct.dtype != bool:
                raise ValueError(
                    f"{row.name!r} has {row.correct.dtype} {row.correct.shape}, "
                    f"the reference bool {reference.correct.shape}"
                )
        return cls(
            lines=_lines(rows, reference),
            reference=reference,
            num_images=len(reference.correct),
            num_classes=num_classes,
            members=_members(rows),
            gains=_gains(rows),
            grid=_grid(grid),
        )


def on_images_of(row: Row, reference: Row) -> np.ndarray:
    """Returns the reference's `correct` `(n,)` on the n images that the row is about."""
    # Where the reference is about a part itself, it is that of all rows.
    return reference.correct if row.part is None or reference.part is not None else reference.correct[row.part]


def _lines(rows: Sequence[Row], reference: Row) -> tuple[Line, ...]:
    tests = {id(row): mcnemar_exact(row.correct, on_images_of(row, reference)) for row in rows if row is not reference}
    adjusted = dict(zip(tests, holm([test.p_value for test in tests.values()]), strict=True))
    return tuple(
        _alone(row, rows)
        if row is reference
        else replace(
            _alone(row, rows),
            difference=_paired(row.correct, on_images_of(row, reference)),
            mcnemar=tests[id(row)],
            p_holm=adjusted[id(row)],
            images_needed=images_for_power(row.correct, on_images_of(row, reference)),
        )
        for row in rows
    )


def _alone(row: Row, rows: Sequence[Row]) -> Line:
    """What can be said of a row without the reference."""
    smaller = [
        other for other in rows if (other.name, other.kind) == (row.name, row.kind) and other.num_views < row.num_views
    ]
    before = max(smaller, key=lambda other: other.num_views, default=None)
    return Line(
        row,
        accuracy_interval(row.correct),
        fewer_views=before.num_views if before else None,
        marginal=_paired(row.correct, on_images_of(row, before)) if before else None,
        optimism=row.val_counts and unpaired_difference(*row.val_counts, int(row.correct.sum()), len(row.correct)),
    )


def _paired(correct: np.ndarray, other: np.ndarray) -> Interval:
    return paired_bootstrap(correct.astype(float) - other)


def _members(rows: Sequence[Row]) -> tuple[MembersSummary, ...]:
    return tuple(
        MembersSummary(num_views, mean_std([float(row.correct.mean()) for row in _members_with(rows, num_views)]))
        for num_views in sorted({row.num_views for row in rows if row.kind == "member"})
    )


def _gains(rows: Sequence[Row]) -> tuple[Gain, ...]:
    gains = []
    for row in rows:
        members = _members_with(rows, row.num_views)
        # An ensemble of some of the members does not say of which: only one of all of them has known members.
        if row.kind == "ensemble" and row.num_models == len(members):
            of_members = np.mean([member.correct for member in members], axis=0)
            gains.append(Gain(row, paired_bootstrap(row.correct - of_members)))
    return tuple(gains)


def _grid(rows: Sequence[Row]) -> tuple[Line, ...]:
    differences = [None, *(_paired(row.correct, on_images_of(row, rows[0])) for row in rows[1:])]
    return tuple(
        Line(row, accuracy_interval(row.correct), difference)
        for row, difference in zip(rows, differences, strict=False)
    )


def _members_with(rows: Sequence[Row], num_views: int) -> list[Row]:
    return [row for row in rows if row.kind == "member" and row.num_views == num_views]
