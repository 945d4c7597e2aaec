"""What the folds of a run came to together, in a few sentences that one can act on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lit_cnn.core.words import counted
from lit_cnn.reports.run_words import share


@dataclass(frozen=True)
class FoldFacts:
    """What is known of a run of folds.

    Attributes:
        num_correct: Images right that are not test, each said by networks that were not trained on it.
        num_images: How many these are.
        of_folds: What each network gets right of its own fold, a share in [0, 1].
        of_rounds: The same of each round of folds, over all images.
        best: Mean over the rounds of the share right with each fold's epoch chosen on that fold.
        nested: The same with each fold's epoch chosen on the other folds of its round; None where that is not known.
        test: What each network gets right of test; empty where nothing was tested.
        test_mean: Test images that the mean of all networks gets right, and how many there are; None where unknown.
    """

    num_correct: int
    num_images: int
    of_folds: Mapping[str, float]
    of_rounds: Sequence[float]
    best: float
    nested: float | None = None
    test: Sequence[float] = ()
    test_mean: tuple[int, int] | None = None

    @property
    def optimism(self) -> float | None:
        """By how much `best` is too good, as each fold's epoch was chosen on that fold."""
        return None if self.nested is None else self.best - self.nested


def fold_sentences(facts: FoldFacts) -> list[str]:
    """Returns what the folds came to: images right out of fold, the spread, its optimism, test."""
    return [_right(facts), *_optimism(facts), *_test(facts)]


def _right(facts: FoldFacts) -> str:
    right = f"{facts.num_correct:,} of {facts.num_images:,}"
    if facts.num_correct == facts.num_images:
        right = f"all {facts.num_images:,}"
    several = len(facts.of_rounds)
    by = f" by the mean of the {several} networks that were not trained on them" if several > 1 else ""
    said = f"Out of fold, {right} images right{by}: {share(facts.num_correct, facts.num_images)}"
    rounds = f"; one network a fold {_range(facts.of_rounds, 1)}" if several > 1 else ""
    return f"{said}{rounds}; {'the ' if several == 1 else 'single '}folds {_range(list(facts.of_folds.values()), 0)}."


def _optimism(facts: FoldFacts) -> list[str]:
    if facts.nested is None or facts.optimism is None:
        return ["Each fold's epoch was chosen on that fold, so expect a little less of new images."]
    points, is_single = 100 * facts.optimism, len(facts.of_rounds) == 1
    right = f"about {facts.nested * facts.num_images:,.0f} of {facts.num_images:,}"
    nested = f"with the epoch chosen on the other folds {right} are right, {100 * facts.nested:.1f} %"
    why = "each fold's epoch was chosen on that fold"
    if points < 0.05:
        what = "it" if is_single else "one network a fold"
        return [f"That {why} does not flatter {what}: {nested}."]
    return [
        f"{'That' if is_single else 'One network a fold'} is about {points:.1f} points too good, as {why}: {nested}."
    ]


def _test(facts: FoldFacts) -> list[str]:
    if not facts.test:
        return []
    values = 100 * np.array(facts.test)
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    said = f"On test the {counted(len(values), 'network')} get {values.mean():.1f}{spread} % right one by one"
    if facts.test_mean is None:
        return [f"{said}."]
    right, num = facts.test_mean
    return [f"{said}, their mean {right:,} of {num:,}: {share(right, num)}."]


def _range(shares: Sequence[float], places: int) -> str:
    low, high = (f"{100 * each:.{places}f}" for each in (min(shares), max(shares)))
    return f"all {low} %" if low == high else f"from {low} to {high} %"
