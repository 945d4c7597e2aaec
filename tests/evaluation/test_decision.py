"""What to take: many cases by hand; what so many images can show, against the exact test and brute force."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, fisher_exact, norm

from lit_cnn.evaluation.cost import Cost
from lit_cnn.evaluation.paired import score_limits, smallest_difference, smallest_unpaired_difference
from lit_cnn.evaluation.table import Row, Table
from lit_cnn.evaluation.table.frontier import decision_of


def table_of(num_images: int, **wrong: tuple[float, ...] | range) -> Table:
    """A table of rows by the images on which each is wrong, perhaps after its cost; the first is the reference.

    `a=range(3)`: wrong on images 0 to 2. `a=(500, 0, 1)`: 500 multiply-adds, wrong on images 0 and 1.
    """
    rows = []
    for name, given in wrong.items():
        cost, places = (None, given) if isinstance(given, range) else (Cost(1, int(given[0])), given[1:])
        correct = np.ones(num_images, bool)
        correct[np.array(places, int)] = False
        rows.append(Row(name, "member", 1, 1, 1, correct, val_accuracy=0.9, cost=cost))
    return Table.of(rows, rows[0], 4)


def between(first: int, last: int, cost: float) -> tuple[float, ...]:
    return (cost, *range(first, last))


@pytest.mark.parametrize(
    ("table", "chosen", "answer"),
    [
        (
            table_of(22, only=range(2)),
            "only",
            "only: 90.9 % [72.2, 97.5] on 22 test images. There is nothing here to compare it with.",
        ),
        (
            # Far better on test, but 22 images cannot tell: val decides.
            table_of(22, on_val=range(5), lucky=range(1)),
            "on_val",
            "Take on_val: 77.3 % [56.6, 89.9] on 22 test images. Nothing else here is measurably better; with 22 test "
            "images a difference under 32 points is easily missed.",
        ),
        (
            table_of(17, a=range(2), b=range(2), c=range(2)),
            "a",
            "Take a: 88.2 % [65.7, 96.7] on 17 test images. Nothing else here is measurably better; with 17 test "
            "images a difference under 48 points is easily missed.",
        ),
        (
            table_of(5, a=range(5), b=range(0)),
            "a",
            "Take a: 0.0 % [0.0, 43.4] on 5 test images. Nothing else here is measurably better; 5 test images are too "
            "few to show any difference.",
        ),
        (
            table_of(100, a=range(20), b=range(10)),
            "b",
            "Take b: 90.0 % [82.6, 94.5] on 100 test images, +10.0 points [+5.5, +17.4] over a, the best on val.",
        ),
        (
            table_of(1000, a=range(20), b=range(40), c=range(60)),
            "a",
            "Take a: 98.0 % [96.9, 98.7] on 1,000 test images. Everything else here is measurably worse.",
        ),
        (
            table_of(1000, a=range(20), b=range(40)),
            "a",
            "Take a: 98.0 % [96.9, 98.7] on 1,000 test images. The other one is measurably worse.",
        ),
        (
            table_of(1000, a=range(20), b=range(21), c=range(60)),
            "a",
            "Take a: 98.0 % [96.9, 98.7] on 1,000 test images. Nothing else here is measurably better and 1 of the 2 "
            "others is measurably worse; with 1,000 test images a difference under 0.95 points is easily missed.",
        ),
        (
            # Cheaper, and many images exclude that it loses a point.
            table_of(2000, a=between(0, 40, 100), b=between(1, 42, 30)),
            "b",
            "Take b: 97.95 % [97.23, 98.49] on 2,000 test images. It takes 30 % of the multiply-adds of a, the best on "
            "val, and a loss of more than 1 point is excluded (-0.05 points [-0.32, +0.19]). Nothing else here is "
            "measurably better; with 2,000 test images a difference under 0.39 points is easily missed.",
        ),
        (
            # Few images exclude nothing: as few as agree, they leave the choice to val.
            table_of(17, a=between(0, 2, 100), b=between(0, 2, 30)),
            "a",
            "Take a: 88.2 % [65.7, 96.7] on 17 test images. Nothing else here is measurably better; with 17 test "
            "images a difference under 40 points is easily missed. Cheaper and not measurably worse: b, at 30 % of the "
            "multiply-adds, +0.0 points [-18.4, +18.4].",
        ),
        (
            # Cheaper, but worse.
            table_of(1000, a=between(0, 20, 100), b=between(0, 50, 30)),
            "a",
            "Take a: 98.0 % [96.9, 98.7] on 1,000 test images. The other one is measurably worse.",
        ),
        (
            # Costs known of some only: nothing is said of them.
            table_of(2000, a=between(0, 40, 100), b=between(1, 42, 30), c=range(40)),
            "a",
            "Take a: 98.00 % [97.29, 98.53] on 2,000 test images. Nothing else here is measurably better; with 2,000 "
            "test images a difference under 0.47 points is easily missed.",
        ),
        (
            # Two are better; the cheaper of them is not measurably worse than the other.
            table_of(1000, a=between(0, 60, 10), b=between(0, 20, 300), c=between(0, 22, 100)),
            "c",
            "Take c: 97.8 % [96.7, 98.5] on 1,000 test images, +3.8 points [+2.8, +5.2] over a, the best on val.",
        ),
        (
            # Of the two better ones the cheaper is measurably worse than the other.
            table_of(1000, a=between(0, 90, 10), b=between(0, 20, 300), c=between(0, 50, 100)),
            "b",
            "Take b: 98.0 % [96.9, 98.7] on 1,000 test images, +7.0 points [+5.6, +8.8] over a, the best on val.",
        ),
    ],
)
def test_the_decision(table: Table, chosen: str, answer: str) -> None:
    assert decision_of(table).chosen.row.name == chosen
    assert table.answer() == answer


def test_an_ensemble_is_taken_only_if_it_is_better_and_its_passes_are_named() -> None:
    table = table_of(1000, a=range(60), b=range(20))
    rows = [
        table.lines[0].row,
        replace(table.lines[1].row, kind="ensemble", num_models=3, num_views=10, forward_passes=30),
    ]
    assert Table.of(rows, rows[0], 4).answer() == (
        "Take the b with 10 crops: 98.0 % [96.9, 98.7] on 1,000 test images, +4.0 points [+3.0, +5.4] over a with "
        "1 crop, the best on val, for 30 forward passes an image instead of 1."
    )


def test_a_row_on_a_part_of_the_images_is_tested_on_it() -> None:
    correct = np.arange(400) >= 100  # a is wrong on the first hundred, of which the part has every other
    whole = Row("a", "member", 1, 1, 1, correct, 0.9)
    part = np.arange(0, 400, 2)
    other = Row("a", "member", 1, 144, 144, np.ones(200, bool), part=part)
    table = Table.of([whole, other], whole, 4)
    assert decision_of(table).chosen.row is other
    assert (
        "Take a with 144 crops on 200 images: 100.0 % [98.1, 100.0] on 200 test images, +25.0 points" in table.answer()
    )


@pytest.mark.parametrize("num_images", [6, 10, 22, 100, 359, 1500])
def test_the_smallest_difference_is_what_the_exact_test_sees_in_four_of_five_cases(num_images: int) -> None:
    smallest = smallest_difference(num_images)
    assert smallest is not None

    def power(difference: float) -> float:
        """Of the exact test where all images on which the two disagree speak for one of them."""
        counts = np.arange(num_images + 1)
        seen = [count > 0 and binomtest(int(count), int(count)).pvalue < 0.05 for count in counts]
        return float(binom.pmf(counts, num_images, difference)[seen].sum())

    assert power(smallest) > 0.67 and power(0.7 * smallest) < 0.6
    more = smallest_difference(num_images, alpha=0.05 / 8)
    assert more is None or more > smallest
    noisier = smallest_difference(num_images, disagree=0.5)
    assert noisier is None or noisier >= smallest


def test_connor_the_other_way_round() -> None:
    # Connor 1987: psi = 0.035, delta = 0.005 takes 10,983 images (see `images_for_power`).
    assert smallest_difference(10_983, disagree=0.035) == pytest.approx(0.005, rel=1e-3)
    assert smallest_difference(5) is None and smallest_difference(1) is None


@pytest.mark.parametrize(("num_correct", "num_images"), [(11, 12), (20, 22), (90, 100), (900, 1000)])
def test_the_smallest_unpaired_difference_is_seen_in_four_of_five_cases(num_correct: int, num_images: int) -> None:
    smallest = smallest_unpaired_difference(num_correct, num_images)
    assert smallest is not None
    accuracy, generator = num_correct / num_images, np.random.default_rng(0)
    ones = generator.binomial(num_images, accuracy, 300)
    others = generator.binomial(num_images, max(0.0, accuracy - smallest), 300)
    seen = [
        fisher_exact([[one, num_images - one], [other, num_images - other]]).pvalue < 0.05
        for one, other in zip(ones, others, strict=True)
    ]
    assert 0.65 < np.mean(seen) < 0.95
    assert smallest_unpaired_difference(2, 2) is None and smallest_unpaired_difference(0, 9) is None


@pytest.mark.parametrize(
    ("only_a", "only_b", "num_images"), [(0, 0, 17), (3, 3, 359), (0, 1, 44), (20, 4, 1000), (9, 1, 10)]
)
def test_score_limits_are_where_the_score_test_turns(only_a: int, only_b: int, num_images: int) -> None:
    """Tango 1998: the limits hold the differences that the score test does not refuse, by brute force."""

    def refused(delta: float) -> bool:
        def likelihood(share: float) -> float:
            parts = [(only_a, share + delta), (only_b, share), (num_images - only_a - only_b, 1 - 2 * share - delta)]
            return sum(count * np.log(max(part, 1e-300)) for count, part in parts if count)

        low, high = max(0.0, -delta), (1 - delta) / 2
        share = minimize_scalar(lambda each: -likelihood(each), bounds=(low, high), options={"xatol": 1e-12}).x
        variance = num_images * (2 * share + delta - delta**2)
        return abs(only_a - only_b - num_images * delta) > norm.ppf(0.975) * np.sqrt(variance)

    mean, low, high = score_limits(only_a, only_b, num_images)
    assert mean == (only_a - only_b) / num_images
    for limit, outwards in ((low, -1), (high, 1)):
        assert not refused(limit - outwards * 1e-4) and (abs(limit) > 0.999 or refused(limit + outwards * 1e-4))
