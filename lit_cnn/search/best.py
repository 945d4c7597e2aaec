"""The best classifier that a budget of time gives on a set of images: `lit-cnn best`.

Configurations are tried by successive halving (`lit_cnn.search.halving`), and the best one is trained in full, more
than once where there is time. What is combined of that is chosen on images that are not test; then it is tested.
"""

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from lit_cnn.core.errors import UsageError, value_in_words
from lit_cnn.core.files import write_text_atomically
from lit_cnn.core.words import counted, duration
from lit_cnn.reports.wording import percent
from lit_cnn.search.halving import Candidate, Clock, Extent, Trained, extent_of, halve, name_of
from lit_cnn.search.stopwatch import Stopwatch
from lit_cnn.tracking.run import Run
from lit_cnn.training.callbacks import RunInterrupted
from lit_cnn.training.folds import Folds, train_folds
from lit_cnn.training.losses import NonFiniteLossError
from lit_cnn.training.parents import ParentRun
from lit_cnn.training.process import RunFailedError
from lit_cnn.training.run import train
from lit_cnn.training.setup import Setup

SEARCH, TRAINING = 0.4, 0.85
"""Shares of the budget that are spent when the search is over, and the trainings in full; the rest is for the test."""

_FAILURES = (UsageError, NonFiniteLossError, RunFailedError)
_OF_FIT = "time/epochs"
_WORTH = 1.5  # times what it had before; less more of training is not worth its time
_NUM_FOLDS = 5
_ENDING = 20.0  # seconds of the end that go by no image: tables, pictures, the report, the export and its check
_MOST_ENDING = 0.3  # of the budget: under a minute or so the end may exceed it
_MORE_SEEDS, _RUNNERS_UP = 2, 2

VIEWS = (1, 2)
"""Of each image: what an export can have."""

FEW_VAL = 1000
"""Val images below which there are folds."""

PLAN = "plan.json"
"""The file of the output folder in which stands what a search had decided when it was stopped."""


@dataclass
class Budget:
    """Seconds that there are for all of it.

    Attributes:
        seconds: In all.
        spent: Before this process began.
        began: When it did, on the monotonic clock.
        ending: Seconds that the choice, the test and the export will take, as far as that is known; they are left.
    """

    seconds: float
    spent: float = 0.0
    began: float = field(default_factory=time.monotonic)
    ending: float = 0.0

    @property
    def used(self) -> float:
        """Seconds that are spent."""
        return self.spent + time.monotonic() - self.began

    def left(self, share: float = 1.0) -> float:
        """Returns the seconds until this share of the budget is spent, or the end has to begin; negative if it has."""
        return min(share * self.seconds, self.seconds - self.ending) - self.used


MakeSetup = Callable[[Candidate, Mapping[str, Any], int, int], Setup]
"""From a candidate, options of the data, a number of epochs and the training seed to what is trained."""


class Plan:
    """How much each training is given, kept in a file: a search that is gone on with decides the same again.

    Args:
        file: Where it is kept.
        resume: Whether what is there is taken over.
        key: What is searched, with which options, and on which images.

    Attributes:
        spent: Seconds that were spent before.

    Raises:
        UsageError: If the file holds no plan, or that of another search.
    """

    def __init__(self, file: Path, resume: bool, key: str) -> None:
        self._file, self._key = file, key
        self._extents: dict[str, Extent] = {}
        self._done: dict[str, dict[str, Any]] = {}
        self.spent = 0.0
        if not resume or not file.exists():
            return
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            extents = {name: Extent(*extent) for name, extent in kept["extents"].items()}
            done, spent, of = dict(kept["done"]), float(kept["spent"]), kept["key"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError("resume", "auto", f"{file} holds no plan ({error!r})", "remove it") from error
        if of != key:
            reason = f"{file} is of a search with other options or images"
            raise UsageError("resume", "auto", reason, "give another `output`, or leave it out to begin anew")
        self._extents, self._done, self.spent = extents, done, spent

    def extent(self, name: str, extent: Extent, spent: float) -> Extent:
        """Returns how much a training is given: what was decided before, else what is decided now, which is kept.

        Args:
            name: Of the training.
            extent: What is decided now.
            spent: Seconds that are spent by now.
        """
        extent = self._extents.setdefault(name, extent)
        self._keep(spent)
        return extent

    def done(self, name: str) -> dict[str, Any] | None:
        """Returns what `add` was given under this name."""
        return self._done.get(name)

    def add(self, name: str, values: dict[str, Any], spent: float) -> None:
        """Keeps plain values of something that is done."""
        self._done[name] = values
        self._keep(spent)

    def finish(self) -> None:
        """Removes the file: there is nothing to go on with."""
        self._file.unlink(missing_ok=True)

    def _keep(self, spent: float) -> None:
        extents = {name: [each.epochs, each.num_images] for name, each in self._extents.items()}
        kept = {"key": self._key, "spent": spent, "extents": extents, "done": self._done}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self._file, json.dumps(kept))


class Trainings:
    """Trains candidates as children of one tracked run.

    Args:
        parent: The run; opened by the first training.
        make: Makes the setup of a training.
        num_val: Val images.
        num_test: Test images.
        plan: What was decided.
        budget: The time.
        say: Called with what someone who waits wants to read.
        log: Takes what the trainings themselves say.

    Attributes:
        outcomes: What has ended, in order.
        clock: How long trainings take.
        failure: Why the first training failed that did.
        was_stopped: Whether somebody stopped them.
    """

    def __init__(
        self,
        parent: ParentRun,
        make: MakeSetup,
        num_val: int,
        num_test: int,
        plan: Plan,
        budget: Budget,
        say: Callable[[str], None],
        log: IO[str],
    ) -> None:
        self.outcomes: list[Trained] = []
        self.clock = Clock(num_val)
        self.failure: Exception | None = None
        self.was_stopped = False
        self.say = say
        self._log = log
        self._parent, self._make, self._plan, self._budget = parent, make, plan, budget
        self._num_val, self._num_test = num_val, num_test

    def train(self, candidate: Candidate, extent: Extent, name: str, seed: int = 0) -> Trained | None:
        """Trains a candidate; what was trained before the run was resumed is not trained again.

        Args:
            candidate: What.
            extent: How much.
            name: Of the training.
            seed: The training seed.

        Returns:
            What it came to; None if it failed, and why is said.
        """
        extent = self._plan.extent(name, extent, self._budget.used)
        began, stopwatch = time.monotonic(), Stopwatch()
        try:
            with contextlib.redirect_stderr(self._log):
                setup = self._make(candidate, {"limit_train": extent.num_images}, extent.epochs, seed)
                callbacks = [*(setup.trainer.get("callbacks") or []), stopwatch]
                run = train(replace(setup, trainer={**setup.trainer, "callbacks": callbacks}), self._parent, name)
        except _FAILURES as error:
            self._failed(candidate, error)
            return None
        if name not in self._parent.children:
            metrics = {**run.metrics, _OF_FIT: stopwatch.seconds}
            run = replace(run, metrics=metrics, seconds=time.monotonic() - began)
            self._parent.add(name, run)
        counts = round(run.metrics["best/val/acc"] * self._num_val), self._num_val
        times = run.seconds or 0.0, run.metrics[_OF_FIT]
        outcome = Trained(candidate, extent, *counts, run.metrics.get("best/val/loss", 0.0), *times, run.id, seed)
        self.say(trained_words(outcome))
        self.outcomes.append(outcome)
        self.clock.add(outcome)
        self._budget.ending = self.ending([candidate], self._num_val, len(VIEWS))
        return outcome

    def is_done(self, name: str) -> bool:
        """Whether the training of this name was done before a resume."""
        return name in self._parent.children

    def ending(self, candidates: Sequence[Candidate], num_val: int, num_views: int, num_networks: int = 1) -> float:
        """Returns how many seconds the choice among these, the test and the export will take, roughly.

        Args:
            candidates: What can be chosen.
            num_val: Images that the choice is made on.
            num_views: Of each image, at the most.
            num_networks: Networks of each, all of which see the test images.
        """
        passes = num_views * (num_val + num_networks * self._num_test)
        fixed = min(_ENDING, _MOST_ENDING * self._budget.seconds)
        return fixed + sum(self.clock.seconds_of_passes(each, passes) for each in candidates)

    def train_folds(self, candidate: Candidate, num_folds: int, num_images: int) -> None:
        """Trains a candidate in full, once for each fold of all images that are not test: a run of its own.

        Args:
            candidate: What.
            num_folds: How many folds.
            num_images: Images that are not test.
        """
        began = time.monotonic()

        def make(options: Mapping[str, Any], seed: int | None) -> Setup:
            return self._make(candidate, options, candidate.epochs, seed or 0)

        name = _of_folds(candidate, num_folds)
        found = self._plan.done(name)
        if found is None:
            after_each = self._say_fold(name)
            try:
                with contextlib.redirect_stderr(self._log):
                    run = train_folds(Folds(num_folds), make, self._parent.resume, after_each)
            except _FAILURES as error:
                self._failed(candidate, error)
                return
            found = {"correct": round(run.metrics["oof/acc"] * num_images), "loss": run.metrics["best/val/loss"]}
            found |= {"seconds": time.monotonic() - began, "run": run.id}
            self._plan.add(name, found, self._budget.used)
        extent = Extent(candidate.epochs, num_images - num_images // num_folds)
        seconds = found["seconds"]
        of_val = (found["correct"], num_images, found["loss"])
        outcome = Trained(candidate, extent, *of_val, seconds, seconds, found["run"], num_folds=num_folds)
        self.outcomes.append(outcome)
        self.say(trained_words(outcome))

    def _say_fold(self, name: str) -> Callable[[Run], None]:
        """Returns what says of each fold that it has ended, past the log that the trainings write to."""
        shown, numbers = sys.stderr, itertools.count(1)

        def say(run: Run) -> None:
            """Says it."""
            with contextlib.redirect_stderr(shown):
                self.say(f"    fold {next(numbers)} of {name}: {100 * run.metrics['best/val/acc']:.1f} % right")

        return say

    def has_folds(self, candidate: Candidate, num_folds: int) -> bool:
        """Whether a candidate was trained on folds before a resume."""
        return self._plan.done(_of_folds(candidate, num_folds)) is not None

    def _failed(self, candidate: Candidate, error: Exception) -> None:
        self.failure = self.failure or error
        reason = str(error)
        if isinstance(error, UsageError):  # in the words of whoever prints it
            option = f"`{error.option}={value_in_words(error.value)}`: " if error.option else ""
            reason = f"{option}{error.reason}"
        self.say(f"left out: {candidate.name}; {' '.join(reason.split())}")

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Closes the run at the end: as KILLED if somebody stopped it, so that it can be gone on with."""
        status = "FAILED"
        try:
            yield
            status = "KILLED" if self.was_stopped else "FINISHED"
        except (RunInterrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            self._parent.end(status)


def _of_folds(candidate: Candidate, num_folds: int) -> str:
    return f"{candidate.name}, {num_folds} folds"


def train_in_full(
    trainings: Trainings, ranked: list[Trained], num_images: int, num_classes: int, budget: Budget
) -> None:
    """Trains the best candidates in full: of few images on folds, of many with as many seeds as there is time for.

    Args:
        trainings: Trains.
        ranked: What the search found, the best first.
        num_images: Training images.
        num_classes: Number of classes.
        budget: The time.
    """
    num_val = ranked[0].num_val
    if num_val < FEW_VAL:
        for outcome in ranked[: 1 + _RUNNERS_UP]:
            one = Extent(outcome.candidate.epochs, num_images)
            pool = num_images + num_val
            candidates = [*{each.candidate for each in trainings.outcomes if each.num_folds}, outcome.candidate]
            budget.ending = trainings.ending(candidates, pool, len(VIEWS), _NUM_FOLDS)
            seconds = _NUM_FOLDS * trainings.clock.seconds(outcome.candidate, one)
            if not trainings.has_folds(outcome.candidate, _NUM_FOLDS) and seconds > budget.left(TRAINING):
                trainings.say(f"left out: {outcome.candidate.name} on {_NUM_FOLDS} folds; there is no time for it")
                continue
            trainings.train_folds(outcome.candidate, _NUM_FOLDS, pool)
        if any(each.num_folds for each in trainings.outcomes):
            return
    planned = [(ranked[0].candidate, seed) for seed in range(1 + _MORE_SEEDS)]
    planned += [(outcome.candidate, 0) for outcome in ranked[1 : 1 + _RUNNERS_UP]]
    for candidate, seed in planned:
        whole = Extent(candidate.epochs, num_images)
        own = [each.extent for each in trainings.outcomes if (each.candidate, each.seed) == (candidate, seed)]
        if whole in own:
            continue
        left = budget.left(TRAINING)
        share = trainings.clock.largest_share([candidate], left, num_images, num_classes)
        extent = extent_of(share, candidate, num_images, num_classes)
        least = _WORTH * max((each.passes for each in own), default=0) or whole.passes / _WORTH
        name = f"in full, {candidate.name}, seed {seed}"
        too_long = trainings.clock.seconds(candidate, extent) > left or extent.passes < least
        if too_long and not trainings.is_done(name):
            trainings.say(f"left out: {candidate.name}, seed {seed}, in full; there is no time for it")
            continue
        trainings.train(candidate, extent, name, seed)


def trained_words(outcome: Trained) -> str:
    """Returns a line about a training that has ended."""
    extent = outcome.extent
    how_much = f"{counted(extent.epochs, 'epoch')}, {counted(extent.num_images, 'image')}"
    images = "images out of fold" if outcome.num_folds else "val images"
    right = f"{percent(outcome.num_correct / outcome.num_val, outcome.num_val)} % of {outcome.num_val:,} {images}"
    return f"  {name_of(outcome)}: {right}; {how_much}, {duration(outcome.seconds)}"


def search_and_train(
    trainings: Trainings, tried: Sequence[Candidate], num_images: int, num_classes: int, budget: Budget
) -> None:
    """Searches, then trains what was found in full; ends early, with what there is, where somebody stops it.

    Raises:
        RunInterrupted: If somebody stopped it before the first training had ended.
        UsageError: If no training can be done, and so do the others.
    """
    try:
        left = partial(budget.left, SEARCH)
        how = (trainings.clock, num_images, num_classes, trainings.say, budget.left, trainings.is_done)
        ranked = halve(tried, left, trainings.train, *how)
        if trainings.failure is not None and not ranked:
            raise trainings.failure
        train_in_full(trainings, ranked, num_images, num_classes, budget)
    except (RunInterrupted, KeyboardInterrupt):
        if not trainings.outcomes:
            raise
        trainings.was_stopped = True
        trainings.say("stopped; what is best so far is tested now")
