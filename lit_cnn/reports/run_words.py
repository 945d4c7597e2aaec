"""What a run came to, in a few sentences that one can act on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import bdtr

from lit_cnn.core.fonts import without_middle
from lit_cnn.core.intervals import wilson_interval
from lit_cnn.core.words import counted, joined
from lit_cnn.data.class_table import printable

DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow shows as a run's description, in Markdown."""

_MOST_PAIRS = 2  # of classes that are named
_LEAST_SHARE = 0.02  # of all mistakes, for a pair of classes to be named
_LONGEST = 32  # letters of a class's name
_SIGNIFICANT = 0.05
_ON_VAL = ("best/val/acc", "val")


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known of a run that has come to its end.

    Attributes:
        class_names: The K names in label order.
        counts: `(K, K)` int, test images of the row's class that were taken for the column's; None: nothing was tested.
        train_counts: `(K,)` int, training images of each class.
        best_epoch: Number of the best epoch on val, from 1; None where the run ended before its first validation.
        num_epochs: How many epochs were trained.
        val_share: Share of the val images that are right in the best epoch, in [0, 1].
        num_val: How many val images there are; None where not all of them were used.
        monitor: The metric by which the best epoch is chosen.
        unit: What is chosen among: epochs, or the penalties of a head that is solved for.
        is_tied: Whether an earlier epoch is as good by `monitor`: the one with the lower loss on val is kept, which is
            often the last.
        averaged: What was tested in place of the weights, such as `a moving average of the weights`; "" for nothing.
    """

    class_names: Sequence[str]
    counts: np.ndarray | None
    train_counts: Sequence[int]
    best_epoch: int | None
    num_epochs: int
    val_share: float = float("nan")
    num_val: int | None = None
    monitor: str = "val/acc"
    unit: str = "epoch"
    is_tied: bool = False
    averaged: str = ""


def sentences(facts: Facts) -> list[str]:
    """Returns what a run came to: how many test images are right, what is taken for what, whether that is any good."""
    if facts.best_epoch is None:
        return ["Nothing was validated, so the run has no best epoch and was not tested."]
    if facts.counts is None or not facts.counts.sum():
        return [*_validation(facts), "Nothing was tested; the epoch was chosen on val, so expect a little less."]
    tested = [_right(int(np.trace(facts.counts)), int(facts.counts.sum()), "test")]
    said = [*tested, *_mistakes(facts), *_never_right(facts), *_no_better_than_one_class(facts)]
    said += [*_validation(facts), *_less_than_val(facts)]
    return [*said, *([f"What was tested is {facts.averaged}."] if facts.averaged else [])]


def seed_sentences(results: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Returns what runs that differ in their seed came to together.

    Args:
        results: Seed -> the run's metrics, `best/val/acc` and `test/acc` among them if it has them.
    """
    metric, where = ("test/acc", "test") if all("test/acc" in each for each in results.values()) else _ON_VAL
    values = np.array([100 * result[metric] for result in results.values() if metric in result])
    if not len(values):
        return [f"{counted(len(results), 'seed')}, none with a validation."]
    if len(values) == 1:
        return [f"1 seed: {values[0]:.2f} % of the {where} images right."]
    spread = f"{values.mean():.2f} ± {values.std(ddof=1):.2f} %"
    said = [f"{counted(len(values), 'seed')}: {spread} of the {where} images right (mean ± standard deviation)."]
    on_val = {seed: result["best/val/acc"] for seed, result in results.items() if "best/val/acc" in result}
    best = [seed for seed, value in on_val.items() if value == max(on_val.values())]
    if len(best) == len(on_val) > 1:
        said.append("On val they are all equal.")
    elif best:
        which = f"seed {best[0]}" if len(best) == 1 else f"seeds {joined(best)}, equally"
        tested = [f"{100 * results[seed][metric]:.2f} %" for seed in best if metric in results[seed]]
        then = f" ({where}: {', '.join(tested)})" if where == "test" and tested else ""
        said.append(f"Best on val: {which}{then}.")
    return said


def share(num_correct: int, num_images: int) -> str:
    """Returns an accuracy in per cent with its 95 % Wilson interval, as exact as so many images allow."""
    low, high = (100 * limit for limit in wilson_interval(num_correct, num_images))
    places = 0 if high - low >= 2 else 1 if high - low >= 0.2 else 2
    return f"{_per_cent(num_correct / num_images, places + 1)} [{low:.{places}f}, {high:.{places}f}]"


def _right(num_correct: int, num_images: int, split: str) -> str:
    images = f"{split} image{'' if num_images == 1 else 's'} right"
    if num_images == 1:
        return f"{num_correct} of 1 {images}: one image says little."
    of = f"All {num_images:,}" if num_correct == num_images else f"{num_correct:,} of {num_images:,}"
    if num_correct == 0:
        of = f"None of the {num_images:,}"
    return f"{of} {images}: {share(num_correct, num_images)}."


def _mistakes(facts: Facts) -> list[str]:
    """Returns what is taken for what."""
    assert facts.counts is not None
    wrong = facts.counts.copy()
    np.fill_diagonal(wrong, 0)
    total = int(wrong.sum())
    if not total:
        return []
    order = np.argsort(-wrong, axis=None, kind="stable")
    pairs = [(int(wrong.flat[place]), *np.unravel_index(place, wrong.shape)) for place in order if wrong.flat[place]]
    named = [(count, f"{_name(facts, true)} taken for {_name(facts, label)}") for count, true, label in pairs]
    if len(named) == 1:
        begin = {1: "The one mistake", 2: "Both mistakes"}.get(total, f"All {total:,} mistakes")
        return [f"{begin}: {named[0][1]}."]
    if total <= _MOST_PAIRS + 1:
        times = [text if count == 1 else f"{text} ({count} times)" for count, text in named]
        return [f"The mistakes: {joined(times)}."]
    if named[0][0] == 1:
        return [f"No two of the {total:,} mistakes are alike."]
    if named[0][0] < _LEAST_SHARE * total:
        return [f"No pair of classes stands out among the {total:,} mistakes."]
    often = [f"{text} ({count:,} times)" for count, text in named[:_MOST_PAIRS] if count > 1]
    return [f"The most frequent of {total:,} mistakes: {joined(often)}."]


def _never_right(facts: Facts) -> list[str]:
    """Returns the classes of which no image is right, of two images or more."""
    assert facts.counts is not None
    images = facts.counts.sum(axis=1)
    never = np.flatnonzero((np.diag(facts.counts) == 0) & (images > 1))
    if not len(never) or np.trace(facts.counts) == 0:
        return []
    if len(never) <= _MOST_PAIRS:
        each = [f"the {images[label]:,} images of {_name(facts, label)}" for label in never]
        return [f"None of {' and none of '.join(each)} is right."]
    return [f"Of {len(never):,} of the {len(facts.class_names):,} classes no test image is right."]


def _no_better_than_one_class(facts: Facts) -> list[str]:
    """Returns that always the same class would do as well, if one cannot tell it from that (McNemar's exact test)."""
    assert facts.counts is not None
    counts, label = facts.counts, int(np.argmax(facts.train_counts))
    num_images, num_correct, by_guess = int(counts.sum()), int(np.trace(counts)), int(counts[label].sum())
    if len(facts.class_names) < 2 or num_images == 1:
        return []
    only_guess = by_guess - int(counts[label, label])
    only_ours = num_correct - int(counts[label, label])
    is_most_frequent = list(facts.train_counts).count(facts.train_counts[label]) == 1
    name = f"{_name(facts, label)}{', the most frequent class in training,' if is_most_frequent else ''}"
    if num_correct <= by_guess:
        more = "more" if num_correct < by_guess else "as many"
        return [f"That is no good: always guessing {name} gets {more} right, {by_guess:,} of {num_images:,}."]
    # scipy.stats' binomtest for equal chances, without the half a second and more that importing scipy.stats takes.
    if 2 * bdtr(only_guess, only_ours + only_guess, 0.5) > _SIGNIFICANT:
        what = f"always guessing {name} would get {by_guess:,} of {num_images:,} right"
        return [f"With so few test images that cannot be told from a guess: {what}."]
    return []


def _validation(facts: Facts) -> list[str]:
    """Returns which epoch was best, how good it was on val, and whether more epochs may help."""
    assert facts.best_epoch is not None
    best, total = facts.best_epoch, max(facts.num_epochs, facts.best_epoch)
    by = "" if facts.monitor == "val/acc" else f" by {facts.monitor}"
    on_val, is_perfect = "", False
    if not np.isnan(facts.val_share):
        is_perfect = facts.val_share >= 1
        on_val = f"{_per_cent(facts.val_share, 1)} of the val images right"
        if facts.num_val is not None:
            right = round(facts.val_share * facts.num_val)
            of = f"all {facts.num_val:,}" if is_perfect else f"{right:,} of {facts.num_val:,}"
            on_val = f"{of} val image{'' if facts.num_val == 1 else 's'} right"
            on_val += "" if is_perfect else f" ({_per_cent(facts.val_share, 1)})"
    if total == 1:
        said = f"The one {facts.unit} has {on_val}" if on_val else f"There was one {facts.unit}"
    else:
        said = f"{facts.unit.capitalize()} {best} of {total} is the best on val{by}"
        said += f": {on_val}" if on_val else ""
    if facts.unit == "epoch" and best == total and not (is_perfect or facts.is_tied):
        helps = "more epochs may help"
        return [f"{said}; {helps}." if total == 1 else f"{said}. It is the last one: {helps}."]
    return [f"{said}."]


def _less_than_val(facts: Facts) -> list[str]:
    """Returns that val promised more than the test shows, if the intervals of the two have nothing in common."""
    if facts.num_val is None or np.isnan(facts.val_share) or facts.counts is None:
        return []
    low, _ = wilson_interval(round(facts.val_share * facts.num_val), facts.num_val)
    _, high = wilson_interval(int(np.trace(facts.counts)), int(facts.counts.sum()))
    return ["Val promised more than the test shows; trust the test."] if high < low else []


def _per_cent(value: float, places: int) -> str:
    """Returns a share in per cent; what is less than all is never written as 100, nor what is more than 0 as 0."""
    if value in (0.0, 1.0):
        return f"{100 * value:.0f} %"
    text = f"{100 * value:.{places}f}"
    return f"{100 * value:.4f} %" if float(text) in (0.0, 100.0) else f"{text} %"


def _name(facts: Facts, label: Any) -> str:
    return without_middle(printable(facts.class_names[label]), _LONGEST)
