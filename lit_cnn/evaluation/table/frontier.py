"""Which rows are worth their cost: those that none beats in both, and which one to take."""

from collections.abc import Sequence

import numpy as np

from lit_cnn.evaluation.decision import ALPHA, Decision, Tested, decide
from lit_cnn.evaluation.paired import score_limits, smallest_difference
from lit_cnn.evaluation.statistics import McNemar, holm, mcnemar_exact
from lit_cnn.evaluation.table.numbers import Line, Numbers, Row


def cost_on_axis(row: Row) -> float:
    """Returns what a row costs: milliseconds for one image where they were measured, else multiply-adds.

    Raises:
        ValueError: If its cost is not known.
    """
    if row.cost is None:
        raise ValueError(f"cost_on_axis: the cost of {row.name!r} is not known")
    return 1000 * row.cost.latency[1].median if row.cost.latency else float(row.cost.multiply_adds)


def pareto_front(lines: Sequence[Line]) -> list[Line]:
    """Returns the lines that none beats, by rising cost: what is more accurate than all that costs as much or less."""
    front: list[Line] = []
    for line in sorted(lines, key=lambda line: (cost_on_axis(line.row), -line.accuracy.mean)):
        if not front or line.accuracy.mean > front[-1].accuracy.mean:
            front.append(line)
    return front


def decision_of(table: Numbers) -> Decision[Line]:
    """Returns which row to take; see `decide`.

    McNemar's exact test, Holm-adjusted: against the reference over all of the table, else over the rows concerned.
    Limits are Tango's, which two rows that never disagree have too. Rows on a part of the images are tested on it.
    """
    reference = next(line for line in table.lines if line.row is table.reference)

    def test(lines: Sequence[Line], against: Line) -> list[Tested]:
        tests = [_mcnemar(line.row, against.row) for line in lines]
        if against is reference:
            adjusted = [line.p_holm for line in lines]
        else:
            adjusted = list(holm([found.p_value for found in tests]))
        return [
            Tested(score_limits(found.only_a, found.only_b, _num_common(line.row, against.row)), p_holm)
            for line, found, p_holm in zip(lines, tests, adjusted, strict=True)
        ]

    return decide(
        table.lines,
        reference,
        test,
        lambda line: None if line.row.cost is None else cost_on_axis(line.row),
        lambda line: line.row.val_accuracy or 0.0,
    )


def smallest_visible(table: Numbers) -> float | None:
    """Returns the smallest difference to the reference that some row could show with a power of 0.8, a fraction.

    At the level of the first test after Holm. None if the images are too few for any, or there is one row.
    """
    others = [line for line in table.lines if line.row is not table.reference]
    found = []
    for line in others:
        correct, of_reference = on_common_images(line.row, table.reference)
        disagree = float(np.mean(correct != of_reference))
        smallest = smallest_difference(len(correct), disagree, alpha=ALPHA / len(others))
        found += [] if smallest is None else [smallest]
    return min(found, default=None)


def on_common_images(row: Row, other: Row) -> tuple[np.ndarray, np.ndarray]:
    """Returns both rows' `correct` on the images that both are about."""
    if row.part is None and other.part is not None:
        return row.correct[other.part], other.correct
    if row.part is not None and other.part is None:
        return row.correct, other.correct[row.part]
    return row.correct, other.correct


def _mcnemar(row: Row, other: Row) -> McNemar:
    return mcnemar_exact(*on_common_images(row, other))


def _num_common(row: Row, other: Row) -> int:
    return len(on_common_images(row, other)[0])
