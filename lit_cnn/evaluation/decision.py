"""Which of several classifiers to take: the decision that sentence, picture and table of a comparison share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from lit_cnn.core.intervals import Interval

T = TypeVar("T")

ALPHA = 0.05
"""A Holm-adjusted p below this is called a difference."""

MARGIN = 0.01
"""Accuracy that one may give away for a cheaper classifier: it is taken only if the images exclude a larger loss."""

_ABOUT_AS_CHEAP = 1.05  # networks of one architecture never take the same time to the microsecond


class Tested(NamedTuple):
    """Accuracy of one classifier minus that of another, with 95 % limits; its p, adjusted over the family of tests.

    Attributes:
        difference: A fraction; None where there is no test.
        p_holm: In [0, 1]; None where there is no test.
    """

    difference: Interval | None
    p_holm: float | None

    @property
    def is_better(self) -> bool:
        """Whether the first is measurably better."""
        return self._is_claimed and self.difference is not None and self.difference.mean > 0

    @property
    def is_worse(self) -> bool:
        """Whether the first is measurably worse."""
        return self._is_claimed and self.difference is not None and self.difference.mean < 0

    @property
    def _is_claimed(self) -> bool:
        return self.p_holm is not None and self.p_holm < ALPHA


@dataclass(frozen=True, eq=False)
class Cheaper(Generic[T]):
    """A classifier that costs less than another and is not measurably worse.

    Attributes:
        row: What it is.
        difference: Its accuracy minus the other's, a fraction with its 95 % limits.
        cost_ratio: Its cost over the other's, below 1.
    """

    row: T
    difference: Interval
    cost_ratio: float


@dataclass(frozen=True, eq=False)
class Decision(Generic[T]):
    """What to take, and how it stands to all else.

    Attributes:
        chosen: What to take.
        reference: What was best on val, with which all are compared.
        over_reference: The difference of `chosen` to it; None where it is the reference itself.
        is_better: Whether `chosen` is measurably better than the reference.
        is_for_its_cost: Whether it is taken as it costs less, and a loss of more than `MARGIN` is excluded.
        better: Rows measurably better than the reference.
        worse: Rows measurably worse than the reference.
        untested: Rows for which there was no test.
        num_others: Rows but the reference.
        cheaper: The cheapest row that is not measurably worse than `chosen`, if it costs less.
    """

    chosen: T
    reference: T
    over_reference: Interval | None
    is_better: bool
    is_for_its_cost: bool
    better: tuple[T, ...]
    worse: tuple[T, ...]
    untested: tuple[T, ...]
    num_others: int
    cheaper: Cheaper[T] | None


def decide(
    rows: Sequence[T],
    reference: T,
    test: Callable[[Sequence[T], T], Sequence[Tested]],
    cost: Callable[[T], float | None],
    preference: Callable[[T], float] = lambda row: 0.0,
) -> Decision[T]:
    """Decides which of several classifiers to take.

    1. What was chosen on val, before the test: the reference.
    2. If others are measurably better: of these, those that are not measurably worse than the most accurate one, and
       among them the cheapest.
    3. If none is better and a cheaper one is not measurably worse, and the images exclude that it loses more than
       `MARGIN`: that one.

    So few images make nothing better, and nothing cheap as good: they leave the choice to val.

    Args:
        rows: All of them, the reference too; at least one.
        reference: What val chose.
        test: Returns the tests of some rows against one that is not among them, adjusted over the family.
        cost: Of a row, in any unit; None where it is not known, and then nothing is said of costs.
        preference: Which of rows that cost about the same: the one with the largest, such as accuracy on val.
    """
    others = [row for row in rows if row is not reference]
    against_reference = list(zip(others, test(others, reference), strict=True)) if others else []
    better = tuple(row for row, found in against_reference if found.is_better)
    differences = {id(row): found.difference for row, found in against_reference}
    chosen = _cheapest_of_best(better, differences, test, cost, preference) if better else reference
    cheaper = _cheaper(rows, chosen, test, cost, preference)
    is_for_its_cost = not better and cheaper is not None and cheaper.difference.low > -MARGIN
    if is_for_its_cost:
        assert cheaper is not None
        chosen, cheaper = cheaper.row, None
    return Decision(
        chosen,
        reference,
        differences.get(id(chosen)),
        bool(better),
        is_for_its_cost,
        better,
        tuple(row for row, found in against_reference if found.is_worse),
        tuple(row for row, found in against_reference if found.difference is None),
        len(others),
        cheaper,
    )


def _cheapest_of_best(
    better: Sequence[T],
    differences: dict[int, Interval | None],
    test: Callable[[Sequence[T], T], Sequence[Tested]],
    cost: Callable[[T], float | None],
    preference: Callable[[T], float],
) -> T:
    def gain(row: T) -> float:
        difference = differences[id(row)]
        assert difference is not None
        return difference.mean

    best = max(better, key=lambda row: (gain(row), -(cost(row) or 0.0), preference(row)))
    found = _cheaper(better, best, test, cost, preference)
    return found.row if found is not None else best


def _cheaper(
    rows: Sequence[T],
    than: T,
    test: Callable[[Sequence[T], T], Sequence[Tested]],
    cost: Callable[[T], float | None],
    preference: Callable[[T], float],
) -> Cheaper[T] | None:
    """Returns the cheapest row that is not measurably worse; None if none costs less, or costs are not known."""
    costs = {id(row): cost(row) for row in rows}
    known = {place: found for place, found in costs.items() if found is not None}
    if len(known) < len(costs) or not known[id(than)]:
        return None
    less = [row for row in rows if known[id(row)] * _ABOUT_AS_CHEAP < known[id(than)]]
    open_ = [
        (row, found.difference)
        for row, found in zip(less, test(less, than) if less else [], strict=True)
        # An interval without 0 speaks against it, even where the adjusted test claims nothing.
        if found.difference is not None and not found.is_worse and found.difference.high >= 0
    ]
    if not open_:
        return None
    least = min(known[id(row)] for row, _ in open_)
    cheap = [(row, difference) for row, difference in open_ if known[id(row)] <= _ABOUT_AS_CHEAP * least]
    row, difference = max(cheap, key=lambda pair: (preference(pair[0]), pair[1].mean))
    return Cheaper(row, difference, known[id(row)] / known[id(than)])
