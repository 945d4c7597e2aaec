"""Trains what it is told, run after run in one process: a trial of a search, or its winner with another seed.

All that a worker knows of the search is a `Link`: what to train next, whether to go on after an epoch, how it ended.
Where the study lives, and how workers are started, is for others.
"""

import gc
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import torch

from lit_cnn.core.errors import Spelling, UsageError, in_python, spelt
from lit_cnn.search.measure import Measure, judging_digest
from lit_cnn.search.study import Outcome, State
from lit_cnn.tracking.journal import read_header, read_journal, read_owner
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.tracking.run import Run
from lit_cnn.tracking.store import UNFINISHED
from lit_cnn.training.callbacks.run_checkpoints import RunCheckpoints
from lit_cnn.training.fold_result import fold_result
from lit_cnn.training.losses import NonFiniteLossError
from lit_cnn.training.parents import opened_elsewhere, summarize
from lit_cnn.training.process import RunFailedError, notes_of
from lit_cnn.training.run import train
from lit_cnn.training.setup import Setup

_UNTIL_LEFT = 120.0  # seconds that another process has to end with a run that is gone on with

PRUNED = "pruned"
"""The tag of a trial that was ended early; says after which epoch."""


@dataclass(frozen=True)
class Job:
    """One run to train. Plain values, so that it can be sent.

    Attributes:
        name: What the search calls it: `trial 7`, `seed 1`.
        arguments: Options of `lit-cnn fit`.
        parent_key: Key of the search's run.
        tags: Of the run; by them it is found again.
        monitor: The metric that is searched for.
        val_digest: Digest of the val images that all trials are compared on; of folds, see `judging_digest`.
        reports: Whether each epoch is reported, and may be the last.
        is_again: Whether another process may have begun it.
        stopped: The epoch, or of folds the number of folds, after which it was told to end, if it was.
        num_folds: How many networks it is, each on a fold; 0 for one.
    """

    name: str
    arguments: Sequence[str]
    parent_key: str
    tags: Mapping[str, str]
    monitor: str
    val_digest: str
    reports: bool = True
    is_again: bool = False
    stopped: int | None = None
    num_folds: int = 0


@dataclass(frozen=True)
class Ended:
    """How a job ended: its outcome, and the metrics of its run, or of its folds together."""

    outcome: Outcome
    metrics: Mapping[str, float] = field(default_factory=dict)


class Link(Protocol):
    """A worker's way to the search."""

    def ask(self) -> Job | None:
        """Returns what to train next, as soon as that is known; None at the end."""

    def report(self, name: str, epoch: int, value: float) -> bool:
        """Tells a job's value after an epoch, or a fold, from 1 on; returns whether to end it."""

    def tell(self, name: str, ended: Ended) -> None:
        """Tells how a job ended."""


def work(link: Link, make_setup: Callable[[Sequence[str]], Setup], spelling: Spelling = in_python) -> None:
    """Trains what the link says, until there is no more.

    Args:
        link: To the search.
        make_setup: Makes a run's setup of options of `lit-cnn fit`.
        spelling: How options are spelt in reasons.

    Raises:
        RunInterrupted: If a signal stopped a run, after a checkpoint.
    """
    while (job := link.ask()) is not None:
        print(f"{job.name}: {' '.join(job.arguments)}", file=sys.stderr, flush=True)
        link.tell(job.name, _end_of(job, link, make_setup, spelling))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _end_of(job: Job, link: Link, make_setup: Callable[[Sequence[str]], Setup], spelling: Spelling) -> Ended:
    began = time.monotonic()
    reporter = FoldReporter(job, link) if job.num_folds else EpochReporter(job, link)
    try:
        if isinstance(reporter, FoldReporter):
            ended = _trained_folds(job, reporter, make_setup)
        else:
            ended = _trained(job, reporter, make_setup)
    except UsageError as error:
        reason = error.in_words(spelling)
    except (NonFiniteLossError, RunFailedError) as error:
        reason = f"{spelt(error.args[0], spelling)}{notes_of(error)}"
    except EOFError:  # nobody is there to tell
        raise
    except Exception as error:  # of one trial's options: the others may do
        traceback.print_exc()
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    else:
        return replace(ended, outcome=replace(ended.outcome, seconds=time.monotonic() - began))
    print(f"{job.name}: {reason}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - began
    return Ended(Outcome("failed", epochs=reporter.done, seconds=seconds, run=reporter.key, reason=reason))


def _trained(job: Job, reporter: "EpochReporter", make_setup: Callable[[Sequence[str]], Setup]) -> Ended:
    setup = make_setup(job.arguments)
    _check_images(setup, job)
    begun = _begun(setup, job, job.tags)
    if begun is not None and begun.status == "FINISHED":  # and was killed before it could tell
        return _ended(begun.metrics, job, begun.pruned, begun.epochs, begun.folder.name)
    if begun is not None:  # nothing is trained where its checkpoint is at the end
        reporter.key, reporter.done = begun.folder.name, begun.epochs
    run = _trained_run(setup, job, reporter, begun)
    return _ended(run.metrics, job, reporter.is_pruned, reporter.done, reporter.key)


def _trained_folds(job: Job, reporter: "FoldReporter", make_setup: Callable[[Sequence[str]], Setup]) -> Ended:
    """Trains a network a fold, one after the other; those that another process has trained are not trained again."""
    runs = dict[str, Run]()
    for fold in range(job.num_folds):
        if reporter.is_pruned or (job.stopped is not None and len(runs) >= job.stopped):
            break
        setup = make_setup([*job.arguments, f"--data.num_folds={job.num_folds}", f"--data.fold={fold}"])
        _check_images(setup, job)
        begun = _begun(setup, job, {**job.tags, "fold": str(fold)})
        if begun is not None and begun.status == "FINISHED":
            run = Run(begun.folder.name, job.name, begun.metrics, begun.folder / "best.ckpt")
            reporter.add(begun.folder.name, begun.metrics, len(setup.data.splits.val))
        else:
            run = _trained_run(setup, job, reporter, begun)
        runs[str(fold)] = run
        if not math.isfinite(run.metrics.get(f"best/{job.monitor}", math.nan)):
            return _ended(run.metrics, job, False, len(runs), reporter.key)
    summary = summarize([each.metrics for each in runs.values()])
    means = {name: value for name, value in summary.items() if name in run.metrics}  # no standard deviations
    if len(runs) < job.num_folds:
        means[reporter.measure.metric] = reporter.value
        return _ended(means, job, True, len(runs), reporter.key)
    result = fold_result([runs], setup)
    assert result is not None  # each fold has been validated
    return _ended({**means, **result.metrics}, job, False, len(runs), reporter.key)


def _trained_run(setup: Setup, job: Job, reporter: pl.Callback, begun: "Child | None") -> Run:
    callbacks = setup.trainer.get("callbacks") or []
    several = [*callbacks] if isinstance(callbacks, list | tuple) else [callbacks]
    setup = replace(setup, trainer={**setup.trainer, "callbacks": [*several, reporter]})
    parent = opened_elsewhere(job.parent_key, job.tags, begun.folder if begun is not None else None)
    return train(setup, parent, job.name)


def _check_images(setup: Setup, job: Job) -> None:
    if judging_digest(setup.data) != job.val_digest:
        raise UsageError("search", None, "these values choose other val images than the search has", "leave them out")


def _begun(setup: Setup, job: Job, tags: Mapping[str, str]) -> "Child | None":
    """Returns the run that another process has begun, when no process trains it any more.

    One whose machine is cut off hears of that late.
    """
    began = time.monotonic()
    found = find_child(setup.options.store.journal_dir, job.parent_key, tags) if job.is_again else None
    while found is not None and read_owner(found.folder) is not None and time.monotonic() - began < _UNTIL_LEFT:
        time.sleep(0.5)
        found = find_child(setup.options.store.journal_dir, job.parent_key, tags)
    return found


def _ended(metrics: Mapping[str, float], job: Job, is_pruned: bool, done: int, key: str) -> Ended:
    measure = Measure(job.monitor, job.num_folds)
    value = metrics.get(measure.metric, math.nan)
    if not math.isfinite(value):
        known = f"best/{job.monitor}" in metrics
        reason = f"{job.monitor} is {value}" if known else "ended before its first validation"
        return Ended(Outcome("failed", None, done, 0.0, key, reason), metrics)
    loss = metrics.get("best/val/loss", math.inf)
    state: State = "pruned" if is_pruned else "complete"
    return Ended(Outcome(state, value, done, 0.0, key, loss=loss if math.isfinite(loss) else math.inf), metrics)


class EpochReporter(pl.Callback):
    """Reports what is searched for after each validation, and ends the run where the search says so.

    Args:
        job: What is trained.
        link: Who is told.

    Attributes:
        done: Epochs that are validated.
        is_pruned: Whether the run was ended early.
        key: Key of the run; "" before it is opened.
    """

    def __init__(self, job: Job, link: Link) -> None:
        self._job = job
        self._link = link
        self.done = 0
        self.is_pruned = False
        self.key = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the run; one that was told to end before a kill ends where its checkpoint is."""
        self.key = next(each.key for each in trainer.loggers if isinstance(each, JournalLogger))
        self.done = trainer.current_epoch
        if self._job.stopped is not None and self.done >= self._job.stopped:
            self._prune(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reports the epoch."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.done = trainer.current_epoch + 1
        value = float(trainer.callback_metrics[self._job.monitor])
        if self._job.reports and self._link.report(self._job.name, self.done, value):
            self._prune(trainer)

    def _prune(self, trainer: pl.Trainer) -> None:
        self.is_pruned = trainer.should_stop = True
        for logger in trainer.loggers:
            if isinstance(logger, JournalLogger):
                logger.set_tags({PRUNED: f"after epoch {self.done} of {trainer.max_epochs}"})


class FoldReporter(pl.Callback):
    """Reports what the folds so far come to when one is trained; the search may end the trial there.

    Args:
        job: What is trained.
        link: Who is told.

    Attributes:
        measure: What is reported.
        is_pruned: Whether no more folds are to be trained.
    """

    def __init__(self, job: Job, link: Link) -> None:
        self._job = job
        self._link = link
        self.measure = Measure(job.monitor, job.num_folds)
        self.is_pruned = False
        self._keys: list[str] = []
        self._folds: list[Mapping[str, float]] = []
        self._sizes: list[int] = []

    @property
    def key(self) -> str:
        """Keys of the runs of the folds, a space between two."""
        return " ".join(self._keys)

    @property
    def done(self) -> int:
        """Folds that are trained."""
        return len(self._folds)

    @property
    def value(self) -> float:
        """What they come to."""
        return self.measure.of_folds(self._folds, self._sizes)

    def add(self, key: str, metrics: Mapping[str, float], num_images: int) -> None:
        """Takes a fold into account that is trained."""
        self._keys.append(key)
        self._folds.append(metrics)
        self._sizes.append(num_images)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reports; it is still open what becomes of the run, so it can be marked."""
        logger = next(each for each in trainer.loggers if isinstance(each, JournalLogger))
        of_trainer: Any = trainer  # some of what it has is set by connectors
        best = next(each.best for each in of_trainer.callbacks if isinstance(each, RunCheckpoints))
        data = of_trainer.datamodule
        self.add(logger.key, {f"best/{name}": value for name, value in best.items()}, len(data.splits.val))
        if not math.isfinite(self.value):
            return
        if self._link.report(self._job.name, self.done, self.value):
            self.is_pruned = True
            logger.set_tags({PRUNED: f"after fold {self.done} of {self._job.num_folds}"})


@dataclass(frozen=True)
class Child:
    """A run below a search's, as its journal has it.

    Attributes:
        folder: Its own.
        status: FINISHED, FAILED or KILLED; None if it has not come to its end.
        metrics: Name -> last value.
        pruned: Whether it was ended early.
        epochs: That are validated.
    """

    folder: Path
    status: str | None
    metrics: Mapping[str, float]
    pruned: bool
    epochs: int


def find_child(journal_dir: Path, parent_key: str, tags: Mapping[str, str]) -> Child | None:
    """Returns the run that a search has begun with these tags; None if there is none.

    Args:
        journal_dir: Where runs are kept.
        parent_key: Key of the search's run.
        tags: The job's.
    """
    for folder in sorted(journal_dir.iterdir()) if journal_dir.is_dir() else ():
        header = read_header(folder)
        if header is not None and header.parent_key == parent_key:
            child, of_run = _read(folder)
            if tags.items() <= of_run.items():
                return child
    return None


def _read(folder: Path) -> tuple[Child, dict[str, str]]:
    status, tags, metrics, epochs = None, dict[str, str](), dict[str, float](), 0
    for record, _ in read_journal(folder):
        kind = record["kind"]
        if kind == "tags":
            tags |= record["values"]
        elif kind == "metrics":
            metrics |= record["values"]
            epochs += "val/loss" in record["values"]
        elif kind in ("end", "attempt"):
            status = record.get("status")
    if (folder / UNFINISHED).exists():  # Lightning ends a stage; the test or what is kept of the fold may be missing
        status = None
    return Child(folder, status, metrics, PRUNED in tags, epochs), tags
