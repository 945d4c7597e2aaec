"""Which rows are worth their cost: those that none beats in both, and the cheapest that is as good as the best."""

from collections.abc import Sequence
from dataclasses import dataclass

from lit_cnn.core.intervals import Interval
from lit_cnn.evaluation.statistics import holm, mcnemar_exact, paired_bootstrap
from lit_cnn.evaluation.table.numbers import ALPHA, Line, Numbers, Row, on_images_of

_ABOUT_AS_CHEAP = 1.05  # networks of one architecture never take the same time to the microsecond


@dataclass(frozen=True, eq=False)
class CheapestNotWorse:
    """The cheapest row that is not significantly worse than the best.

    Attributes:
        best: The row most accurate on test; of equal ones the cheapest.
        cheapest: What is not significantly worse than it at the least cost; of rows within 5 % of that the one best
            on val. It may be `best` itself.
        difference: Accuracy of `cheapest` minus that of `best` on the same images, with its 95 % paired bootstrap.
        p_holm: McNemar's exact p of the two, adjusted over all rows against `best`; 1 for `best` itself.
        cost_ratio: Cost of `cheapest` over cost of `best`, at most 1.
    """

    best: Line
    cheapest: Line
    difference: Interval
    p_holm: float
    cost_ratio: float


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


def cheapest_not_worse(table: Numbers) -> CheapestNotWorse | None:
    """Tests every row against the best one and returns the cheapest that is not significantly worse.

    Rows on a part of the images cannot be the best, unless all are; they are tested on their part. The best one is
    chosen on the images that it is tested on, so it looks better than it is: the test is on the safe side.

    Returns:
        None if costs are not known.
    """
    if any(line.row.cost is None for line in table.lines):
        return None
    whole = [line for line in table.lines if line.row.part is None] or list(table.lines)
    best = max(whole, key=lambda line: (line.accuracy.mean, -cost_on_axis(line.row)))
    others = [line for line in table.lines if line is not best]
    tests = [mcnemar_exact(line.row.correct, on_images_of(line.row, best.row)) for line in others]
    adjusted = holm([test.p_value for test in tests])
    p_of = {id(best): 1.0} | {id(line): p for line, p in zip(others, adjusted, strict=True)}
    worse = {
        id(line)
        for line, test in zip(others, tests, strict=True)
        if p_of[id(line)] < ALPHA and test.only_a < test.only_b
    }
    as_good = [line for line in table.lines if id(line) not in worse]
    least = min(cost_on_axis(line.row) for line in as_good)
    cheap = [line for line in as_good if cost_on_axis(line.row) <= _ABOUT_AS_CHEAP * least]
    cheapest = best if best in cheap else max(cheap, key=lambda line: line.row.val_accuracy or 0.0)
    difference = cheapest.row.correct.astype(float) - on_images_of(cheapest.row, best.row)
    return CheapestNotWorse(
        best,
        cheapest,
        paired_bootstrap(difference),
        p_of[id(cheapest)],
        cost_on_axis(cheapest.row) / cost_on_axis(best.row),
    )
