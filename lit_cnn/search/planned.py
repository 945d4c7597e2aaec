"""Hands out trainings that are planned beforehand, one after the other."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lit_cnn.core.errors import UsageError, as_printed
from lit_cnn.core.words import duration
from lit_cnn.search.crew import Crew
from lit_cnn.search.desk import check_failures, why_failed
from lit_cnn.search.measure import judging_digest
from lit_cnn.search.parent import WORKERS_LOCK, wait_for_workers
from lit_cnn.search.study import Outcome
from lit_cnn.search.worker import Ended, Job
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.tracking.progress import MlflowRun
from lit_cnn.tracking.run import Run
from lit_cnn.tracking.supervisor import supervisor_of
from lit_cnn.training.callbacks import RunInterrupted
from lit_cnn.training.parents import ParentRun
from lit_cnn.training.process import RunFailedError
from lit_cnn.training.run import open_parent
from lit_cnn.training.setup import Setup
from lit_cnn.training.start import find_start


@dataclass(frozen=True)
class Planned:
    """A training that is planned.

    Attributes:
        name: By which it is known, unique.
        words: What it is called for who reads along.
        kind: Of several of one kind, each takes at least as long as the one before.
        arguments: Options of `lit-cnn fit`.
    """

    name: str
    words: str
    kind: str
    arguments: Sequence[str]


def train_planned(
    parent: ParentRun,
    setup: Setup,
    planned: Sequence[Planned],
    crew: Crew,
    budget: float | None = None,
    say: Callable[[str], None] = print,
) -> Run:
    """Trains what is planned below one run, and returns that; what was trained before it was resumed is not again.

    Args:
        parent: That run, not yet opened.
        setup: Of one of the trainings.
        planned: The trainings, in their order.
        crew: The workers.
        budget: Seconds after which none is begun that would end later; None for any.
        say: Prints a line of progress.

    Raises:
        UsageError: If the budget ended before the first training did.
        RunFailedError: If none could be trained.
        RunInterrupted: If a signal stopped it; it can be resumed.
    """
    setup, _ = find_start(setup, parent)
    key, digest = open_parent(parent, setup), judging_digest(setup.data)
    logger = parent.logger
    assert logger is not None
    as_begun = [f"--data.{name}={json.dumps(value)}" for name, value in parent.data_options.items()]

    def job_of(each: Planned, number: int) -> Job:
        """Returns what a worker is told."""
        tags = {**parent.child_tags, "trial_number": str(number)}
        arguments = [*each.arguments, *as_begun]
        return Job(each.name, arguments, key, tags, setup.options.monitor, digest, is_again=True)

    def keep(each: Planned, ended: Ended) -> None:
        """Keeps what one came to, so that it is not trained again."""
        parent.add(each.name, Run(ended.outcome.run, each.name, ended.metrics, seconds=ended.outcome.seconds))

    status = "FAILED"
    try:
        wait_for_workers(logger.run_folder / WORKERS_LOCK)
        ended = {label: run.seconds or 0.0 for label, run in parent.children.items()}
        desk = PlannedDesk(planned, ended, job_of, budget, say, keep)
        crew.serve(desk, logger.run_folder, logger.check_sender)
        if not parent.children and desk.failed:
            raise RunFailedError(f"no trial came to its end: {next(iter(desk.failed.values()))}")
        if not parent.children:
            raise UsageError("budget", duration(budget or 0.0), "ended before the first trial did", "give more")
        _take_ids(parent, logger)
        status = "FINISHED"
    except (RunInterrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        run = parent.end(status)
    return run


def _take_ids(parent: ParentRun, logger: JournalLogger) -> None:
    """Names the children by their ids in MLflow, once it has them."""
    journals, supervisor = logger.store.journal_dir, supervisor_of(logger.store)
    here = {label: run for label, run in parent.children.items() if (journals / run.id).is_dir()}
    for run in here.values():
        supervisor.add(journals / run.id)
    logger.wait_until_sent(timeout=60)
    for label, run in here.items():
        if found := MlflowRun.read(journals / run.id):
            parent.add(label, replace(run, id=found.run_id))


class PlannedDesk:
    """Hands out trainings in their order, and takes in how they ended.

    Args:
        planned: All of them.
        ended: Name -> seconds of those that were trained before.
        job_of: From one of them, and its number from 1 on, to what a worker is told.
        budget: Seconds after which none is begun that would end later; None for any.
        say: Prints a line.
        after_each: Called with each that has ended, and how, unless it failed.

    Attributes:
        failed: Name -> why, of those that failed.
    """

    def __init__(
        self,
        planned: Sequence[Planned],
        ended: Mapping[str, float],
        job_of: Callable[[Planned, int], Job],
        budget: float | None,
        say: Callable[[str], None],
        after_each: Callable[[Planned, Ended], None],
    ) -> None:
        self._numbers = {each.name: number for number, each in enumerate(planned, start=1)}
        self._left = [each for each in planned if each.name not in ended]
        self._taken = {each.kind: ended[each.name] for each in planned if each.name in ended}
        self._job_of, self._budget, self._say, self._after_each = job_of, budget, say, after_each
        self._running: dict[str, Planned] = {}
        self._since: dict[str, float] = {}
        self._deaths: Counter[str] = Counter()
        self._outcomes: list[Outcome] = []
        self._began = time.monotonic()
        self.failed: dict[str, str] = {}

    @property
    def is_done(self) -> bool:
        """Whether all that was to be trained is."""
        return not self._left and not self._running

    def ask(self) -> Job | None:
        """Returns the next job; None if there is none. Those that there is no time for are left out, and said to be."""
        while self._left:
            planned = self._left.pop(0)
            spent = time.monotonic() - self._began
            if self._budget is not None and spent + self._least_seconds(planned) >= self._budget:
                self._say(as_printed(f"{planned.words}: left out, `budget={duration(self._budget)}` is spent"))
                continue
            self._running[planned.name] = planned
            self._since[planned.name] = time.monotonic()
            number = self._numbers[planned.name]
            self._say(f"trial {number} of {len(self._numbers)}: {planned.words}")
            return self._job_of(planned, number)
        return None

    def _least_seconds(self, planned: Planned) -> float:
        """Returns how long one takes at the least: as the last, smaller one of its kind, or as that has run by now."""
        running = [name for name, each in self._running.items() if each.kind == planned.kind]
        since = [time.monotonic() - self._since[name] for name in running]
        return max([self._taken.get(planned.kind, 0.0), *since])

    def report(self, name: str, epoch: int, value: float) -> bool:
        """Ends none."""
        del self._deaths[name]
        return False

    def tell(self, name: str, ended: Ended) -> None:
        """Notes how one ended.

        Raises:
            RunFailedError: If the first ones have all failed in the same way.
        """
        planned = self._running.pop(name)
        self._outcomes.append(ended.outcome)
        if ended.outcome.reason:
            self.failed[name] = ended.outcome.reason
            self._say(f"{planned.words}: failed: {ended.outcome.reason}")
            check_failures(self._outcomes)
            return
        self._taken[planned.kind] = ended.outcome.seconds
        right = f"{100 * ended.metrics['best/val/acc']:.1f} % of val"
        self._say(f"{planned.words}: {right}, {duration(ended.outcome.seconds)}")
        self._after_each(planned, ended)

    def lose(self, name: str, how: str, is_its_own: bool = True) -> None:
        """Takes back one whose process has ended; it is the next, or has failed if that happens too often."""
        self._deaths[name] += is_its_own
        if reason := why_failed(self._deaths[name], how):
            self.tell(name, Ended(Outcome("failed", reason=reason)))
            return
        self._say(f"{self._running[name].words}: its process was {how}; another one goes on with it")
        self._left.insert(0, self._running.pop(name))
