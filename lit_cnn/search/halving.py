"""Successive halving within a time budget: many configurations a little, the better ones more, the best in full.

Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization", algorithm 1. What
a round gives each configuration is a share of its full training, and it follows from the time that is left: how long a
training takes is measured by those before it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lit_cnn.core.intervals import Interval, wilson_interval
from lit_cnn.core.words import counted
from lit_cnn.training.transfer import Regime

KEPT = 3
"""One in so many configurations goes on to the next round."""

_LEAST_EPOCHS = 3
_LEAST_PER_CLASS = 5
_FIRST_ROUND = 1 / 2  # of the time, at most
_VALIDATION = 1 / 3  # of what an image takes in training
_FIXED = 4.0  # seconds of a training that go by no image, until that has been measured
_FIRST = ""


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
        work: What one training image of one epoch takes, in a unit that all candidates share.
        constant_work: What each training image takes once, before the first epoch, such as features that are cached.
        pass_work: What reading an image and running the network on it takes.
    """

    name: str
    arch: str
    regime: Regime
    weights: str | None
    options: tuple[str, ...]
    epochs: int
    work: float
    constant_work: float = 0.0
    pass_work: float = 0.0


@dataclass(frozen=True)
class Extent:
    """How much a candidate is trained.

    Attributes:
        epochs: At least 1.
        num_images: Training images, at least 1.
    """

    epochs: int
    num_images: int

    @property
    def passes(self) -> int:
        """Images that go through the network."""
        return self.epochs * self.num_images


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        candidate: What was trained.
        extent: How much.
        num_correct: Val images that its best epoch has right.
        num_val: All of them.
        val_loss: Mean loss on val in that epoch; decides between equal ones.
        seconds: Of the whole training.
        fit_seconds: Of what goes by its images: features that are cached, epochs, validation.
        run: The run's id.
        seed: The training seed.
        num_folds: Of a network a fold: then val are the images of all of them; 0 for one network.
    """

    candidate: Candidate
    extent: Extent
    num_correct: int
    num_val: int
    val_loss: float
    seconds: float
    fit_seconds: float
    run: str
    seed: int = 0
    num_folds: int = 0

    @property
    def accuracy(self) -> Interval:
        """On val, a fraction with its 95 % Wilson interval."""
        return Interval(self.num_correct / self.num_val, *wilson_interval(self.num_correct, self.num_val))


def name_of(outcome: Trained) -> str:
    """Returns what a training is called: its configuration, and its seed if that is not the first."""
    of_folds = f", {outcome.num_folds} folds" if outcome.num_folds else ""
    return f"{outcome.candidate.name}{f', seed {outcome.seed}' if outcome.seed else ''}{of_folds}"


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


class Clock:
    """How long trainings take on this machine, by those that have ended.

    Of a training some seconds are for none of its images (building, checking, recording), the rest goes by its work;
    a candidate that was not tried yet goes at the slowest speed seen.

    Args:
        num_val: Val images, which each epoch sees too.
    """

    def __init__(self, num_val: int) -> None:
        self._num_val = num_val
        self._fixed = _FIXED
        self._seconds: dict[
            str, tuple[float, float]
        ] = {}  # candidate's name -> fit seconds and work of its last training

    def add(self, outcome: Trained) -> None:
        """Takes a training into account."""
        candidate, is_first = outcome.candidate, not self._seconds
        if not is_first:
            self._fixed = min(self._fixed, outcome.seconds - outcome.fit_seconds)
        # The first one waits for what is used for the first time: it counts until there is another.
        name = _FIRST if is_first else candidate.name
        self._seconds[name] = (outcome.fit_seconds, self._work(candidate, outcome.extent))

    def seconds(self, candidate: Candidate, extent: Extent) -> float:
        """Returns how long a training will take."""
        return self._fixed + self._speed(candidate) * self._work(candidate, extent)

    def seconds_of_passes(self, candidate: Candidate, num_passes: int) -> float:
        """Returns how long it will take to run a network on so many images."""
        return self._speed(candidate) * candidate.pass_work * num_passes

    def _speed(self, candidate: Candidate) -> float:
        """Returns the seconds that a unit of work takes."""
        others = [known for name, known in self._seconds.items() if name != _FIRST]
        known = [self._seconds[candidate.name]] if candidate.name in self._seconds else others
        known = known or list(self._seconds.values())
        return max(seconds / work for seconds, work in known)

    def _work(self, candidate: Candidate, extent: Extent) -> float:
        seen = extent.num_images + _VALIDATION * self._num_val
        return candidate.work * extent.epochs * seen + candidate.constant_work * extent.num_images

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
    train: Callable[[Candidate, Extent, str], Trained | None],
    clock: Clock,
    num_images: int,
    num_classes: int,
    say: Callable[[str], None] = lambda line: None,
    all_left: Callable[[], float] | None = None,
    is_trained: Callable[[str], bool] = lambda name: False,
) -> list[Trained]:
    """Trains candidates in rounds: all of them a little, then each time a third of them and more.

    The first round gives each the least, to see how long they take; it has half of the time at most (of the
    second candidate, whose time is not known well yet, all that there is), and who finds none is left out, and said to
    be. Each further round has an equal part of what is left and gives its candidates the same share of their full
    trainings; of them a third goes on.

    Args:
        candidates: At least one.
        seconds_left: Returns how much time there is for all of this.
        train: Trains a candidate so much; the third argument is the name of the training, unique. None if it failed.
        clock: Knows all trainings of `train`.
        num_images: Training images that there are.
        num_classes: Number of classes.
        say: Called with what someone who waits wants to read.
        all_left: Returns how much time there is for what comes after this too; by default there is no more.
        is_trained: Whether the training of this name is done already, before a resume, and takes no time.

    Returns:
        The last training of each candidate that had one, the best of the last round first.
    """
    last = dict[str, Trained]()
    ascending = sorted(candidates, key=lambda each: _LEAST_EPOCHS * each.work + each.constant_work)
    ends = seconds_left() * (1 - _FIRST_ROUND)
    of_each = f"each of {counted(len(ascending), 'configuration')}" if len(ascending) > 1 else "it"
    say(f"first a little of {of_each}, to see how long that takes")
    for candidate in ascending:
        least = extent_of(0.0, candidate, num_images, num_classes)
        # How long a training takes is known but roughly from the first one, which waited for what is prepared once.
        room = (all_left or seconds_left)() if len(last) == 1 else seconds_left() - ends
        name = f"first, {candidate.name}"
        if last and not is_trained(name) and clock.seconds(candidate, least) > room:
            say(f"left out: {candidate.name}; there is no time to try it")
        elif (outcome := train(candidate, least, name)) is not None:
            last[candidate.name] = outcome
    remaining = [outcome.candidate for outcome in last.values()]
    if not remaining:
        return []
    num_rounds = math.ceil(math.log(len(remaining), KEPT) - 1e-9)
    for number in range(1, num_rounds + 1):
        ends = seconds_left() * (1 - 1 / (num_rounds + 1 - number))
        share = clock.largest_share(remaining, seconds_left() - ends, num_images, num_classes)
        extents = {each.name: extent_of(share, each, num_images, num_classes) for each in remaining}
        most = max(extents.values(), key=lambda extent: extent.passes)
        how_much = f"{counted(most.epochs, 'epoch')} of {counted(most.num_images, 'image')}"
        say(f"round {number} of {num_rounds}: {counted(len(remaining), 'configuration')}, up to {how_much}")
        for candidate in remaining:
            extent, name = extents[candidate.name], f"round {number}, {candidate.name}"
            if extent.passes > last[candidate.name].extent.passes or is_trained(name):
                if not is_trained(name) and clock.seconds(candidate, extent) > (all_left or seconds_left)():
                    say(f"left out: {name}; there is no time for it")
                    continue
                outcome = train(candidate, extent, name)
                last[candidate.name] = outcome or last[candidate.name]
        trained = sorted((last[each.name] for each in remaining), key=rank)
        remaining = [outcome.candidate for outcome in trained[: max(1, round(len(trained) / KEPT))]]
        if len(remaining) == 1:
            break
    return sorted(last.values(), key=lambda each: (each.candidate not in remaining, *rank(each)))


def rank(outcome: Trained) -> tuple[float, float]:
    """Returns what sorts trainings, the best on val first: by accuracy, of equal ones by loss."""
    return -outcome.num_correct / outcome.num_val, outcome.val_loss
