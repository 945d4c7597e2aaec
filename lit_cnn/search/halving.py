"""Successive halving within a time budget: many configurations a little, the better ones more, the best in full.

Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization", algorithm 1. What
a round gives each configuration is a share of its full training, and it follows from the time that is left: how long a
training takes is measured by those before it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lit_cnn.core.intervals import Interval, wilson_interval
from lit_cnn.core.words import counted
from lit_cnn.training.transfer import Regime

KEPT = 3
"""One in so many configurations goes on to the next round."""

_LEAST_EPOCHS = 3
_LEAST_PER_CLASS = 5
_OVERHEAD = 3.0  # seconds of a training that no image takes: building, checking, recording


@dataclass(frozen=True)
class Candidate:
    """A configuration that can be trained.

    Attributes:
        name: What it is called where all candidates are named.
        arch: The architecture.
        regime: The transfer regime.
        weights: What it starts from.
        options: More arguments of `lit-cnn fit`.
        epochs: Of its full training.
        work: What one training image of one epoch takes, in any unit that all candidates share.
        constant_work: What each training image takes once, such as features that are cached.
    """

    name: str
    arch: str
    regime: Regime
    weights: str | None
    options: tuple[str, ...]
    epochs: int
    work: float
    constant_work: float = 0.0

    def total_work(self, extent: "Extent") -> float:
        """Returns what a training takes, in the unit of `work`."""
        return extent.num_images * (self.work * extent.epochs + self.constant_work)


@dataclass(frozen=True)
class Extent:
    """How much a candidate is trained.

    Attributes:
        epochs: At least 1.
        num_images: Training images, at least 1.
    """

    epochs: int
    num_images: int


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        candidate: What was trained.
        extent: How much.
        num_correct: Val images that its best epoch has right.
        num_val: All of them.
        val_loss: Mean loss on val in that epoch; decides between equal ones.
        seconds: Of the whole training.
        run: The run's id.
        seed: The training seed.
    """

    candidate: Candidate
    extent: Extent
    num_correct: int
    num_val: int
    val_loss: float
    seconds: float
    run: str
    seed: int = 0

    @property
    def accuracy(self) -> Interval:
        """On val, a fraction with its 95 % Wilson interval."""
        return Interval(self.num_correct / self.num_val, *wilson_interval(self.num_correct, self.num_val))


def name_of(outcome: Outcome) -> str:
    """Returns what a training is called: its configuration, and its seed if that is not the first."""
    return f"{outcome.candidate.name}, seed {outcome.seed}" if outcome.seed else outcome.candidate.name


def extent_of(share: float, candidate: Candidate, num_images: int, num_classes: int) -> Extent:
    """Returns what a share of a candidate's full training is: fewer epochs, then fewer images too.

    Args:
        share: In (0, 1].
        candidate: What is trained.
        num_images: Training images that there are.
        num_classes: Number of classes; five images of each are trained on at the least.
    """
    passes = share * candidate.epochs * num_images
    epochs = min(candidate.epochs, max(_LEAST_EPOCHS, round(passes / num_images)))
    least = min(num_images, _LEAST_PER_CLASS * num_classes)
    return Extent(epochs, min(num_images, max(least, math.ceil(passes / epochs - 1e-9))))


@dataclass
class Clock:
    """How long trainings take on this machine, by those that have ended.

    Attributes:
        speeds: Candidate's name -> seconds for a unit of its work; the last training of it counts.
    """

    speeds: dict[str, float] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Takes a training into account."""
        work = outcome.candidate.total_work(outcome.extent)
        self.speeds[outcome.candidate.name] = max(outcome.seconds - _OVERHEAD, 0.2 * outcome.seconds) / work

    def seconds(self, candidate: Candidate, extent: Extent) -> float:
        """Returns how long a training will take; one that was never tried goes at the slowest speed seen."""
        speed = self.speeds.get(candidate.name) or max(self.speeds.values())
        return _OVERHEAD + speed * candidate.total_work(extent)

    def together(self, candidates: Sequence[Candidate], share: float, num_images: int, num_classes: int) -> float:
        """Returns the seconds that a share of the full training of each of these will take."""
        extents = [extent_of(share, each, num_images, num_classes) for each in candidates]
        return sum(self.seconds(each, extent) for each, extent in zip(candidates, extents, strict=True))

    def largest_share(
        self, candidates: Sequence[Candidate], seconds: float, num_images: int, num_classes: int
    ) -> float:
        """Returns the largest share of their full trainings that fits into the time; 0 if not even the least does."""
        if self.together(candidates, 1.0, num_images, num_classes) <= seconds:
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            fits = self.together(candidates, middle, num_images, num_classes) <= seconds
            low, high = (middle, high) if fits else (low, middle)
        return low


def halve(
    candidates: Sequence[Candidate],
    seconds_left: Callable[[], float],
    train: Callable[[Candidate, Extent, str], Outcome],
    num_images: int,
    num_classes: int,
    say: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """Trains candidates in rounds, each with a third of those before it and a larger share of their full training.

    Each round has an equal part of the time, and gives its candidates the same share. How fast this machine is shows a
    first, short training of the candidate with the least work. Those with the most work are left out, and said to be,
    where there is no time for all.

    Args:
        candidates: At least one.
        seconds_left: Returns how much time there is for all of this.
        train: Trains a candidate so much; the third argument is the name of the training, unique.
        num_images: Training images that there are.
        num_classes: Number of classes.
        say: Called with what someone who waits wants to read.

    Returns:
        The last training of each candidate that had one, the best of the last round first.
    """
    clock, last = Clock(), dict[str, Outcome]()
    remaining = sorted(candidates, key=lambda each: each.total_work(Extent(each.epochs, num_images)))

    def run(candidate: Candidate, extent: Extent, name: str) -> None:
        before = last.get(candidate.name)
        if before is None or extent.epochs > before.extent.epochs or extent.num_images > before.extent.num_images:
            last[candidate.name] = train(candidate, extent, f"{name}, {candidate.name}")
            clock.add(last[candidate.name])

    run(remaining[0], extent_of(0.0, remaining[0], num_images, num_classes), "first")
    num_rounds = 1 + math.ceil(math.log(len(remaining), KEPT) - 1e-9)
    for number in range(1, num_rounds + 1):
        ends = seconds_left() * (1 - 1 / (num_rounds + 1 - number))
        remaining = _affordable(clock, remaining, seconds_left() - ends, num_images, num_classes, say)
        of_round = 1.0
        for place, candidate in enumerate(remaining):
            share = clock.largest_share(remaining[place:], seconds_left() - ends, num_images, num_classes)
            of_round = min(of_round, share)
            extent = extent_of(of_round, candidate, num_images, num_classes)
            if not place:
                left = "" if len(remaining) == 1 else f", {len(remaining)} configurations"
                each = f"{extent.epochs} of {counted(candidate.epochs, 'epoch')}, {counted(extent.num_images, 'image')}"
                say(f"round {number} of {num_rounds}{left}: {each}")
            run(candidate, extent, f"round {number}")
        trained = sorted((last[each.name] for each in remaining), key=rank)
        remaining = [outcome.candidate for outcome in trained[: max(1, round(len(trained) / KEPT))]]
    return sorted(last.values(), key=lambda each: (each.candidate not in remaining, *rank(each)))


def rank(outcome: Outcome) -> tuple[float, float]:
    """Returns what sorts trainings, the best on val first: by accuracy, of equal ones by loss."""
    return -outcome.num_correct / outcome.num_val, outcome.val_loss


def _affordable(
    clock: Clock,
    candidates: Sequence[Candidate],
    seconds: float,
    num_images: int,
    num_classes: int,
    say: Callable[[str], None],
) -> list[Candidate]:
    """Returns the candidates whose shortest trainings fit into the time, those with the most work left out."""
    kept = list(candidates)
    while len(kept) > 1 and clock.together(kept, 0.0, num_images, num_classes) > seconds:
        slowest = max(kept, key=lambda each: clock.together([each], 0.0, num_images, num_classes))
        kept.remove(slowest)
        say(f"left out: {slowest.name}; there is no time for its shortest training")
    return kept
