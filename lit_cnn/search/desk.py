"""What a search hands out and takes in: its trials, then the best of them with new seeds."""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lit_cnn.core.words import about, counted, duration
from lit_cnn.search.measure import Measure
from lit_cnn.search.space import arguments_of, in_words
from lit_cnn.search.study import Outcome, Study, Trial
from lit_cnn.search.worker import Ended, Job
from lit_cnn.training.process import RunFailedError

KNOWN_BY = ("trial_number", "final_seed", "final_of", "fold")
"""Tags by which a run is known again as one of a search's."""

_OF_A_TRIAL = ("--test_after_fit=false", "--report=false", "--log_preview=false", "--trainer.enable_progress_bar=false")
_MOST_DEATHS = 3  # of a trial's process, without an epoch in between
_FAILURES = 3  # of the first trials, all in the same way


@dataclass(frozen=True)
class Final:
    """The best trial's values with another training seed.

    Attributes:
        seed: Which.
        metrics: Of its best epoch and its test, or of its folds together; empty if it failed.
        run: Key of its run, or those of its folds with a space between two.
        reason: Why it failed.
    """

    seed: int
    metrics: Mapping[str, float]
    run: str = ""
    reason: str = ""


@dataclass
class SearchDesk:
    """Hands out jobs and takes in how they ended.

    Args:
        study: Has the trials.
        arguments: Options of `lit-cnn fit` that all trials have.
        parent_key: Key of the search's run.
        monitor: The metric that is searched for.
        val_digest: Digest of the val images.
        num_workers: How many work at once.
        budget: Seconds after which no trial ends, the last trainings included; None for any.
        final_seeds: Training seeds for the best trial.
        say: Prints a line.
        after_each: Called with each trial that has ended.
    """

    study: Study
    arguments: Sequence[str]
    parent_key: str
    monitor: str
    val_digest: str
    num_workers: int = 1
    budget: float | None = None
    final_seeds: Sequence[int] = (1, 2, 3)
    say: Callable[[str], None] = print
    after_each: Callable[[Trial, Trial | None], None] = lambda trial, best: None
    finals: dict[int, Final] = field(default_factory=dict)
    winner: Trial | None = None
    is_budget_spent: bool = False

    def __post_init__(self) -> None:
        self.num_folds = self.study.plan.num_folds
        self.measure = Measure(self.monitor, self.num_folds)
        self._before = self.study.seconds
        self._began = time.monotonic()
        self._running: dict[str, Trial | int] = {}
        self._deaths: Counter[str] = Counter()
        self._seeds_left: list[int] = []
        self._are_trials_over = False

    @property
    def seconds(self) -> float:
        """How long the search has run, those in which nothing ran left out."""
        return self._before + time.monotonic() - self._began

    @property
    def is_done(self) -> bool:
        """Whether all that was to be trained is."""
        return self._are_trials_over and not self._running and not self._seeds_left

    def ask(self) -> Job | None:
        """Returns the next job; None if there is none, now or at all."""
        if not self._are_trials_over:
            trial = None if self._would_end_late() else self.study.next()
            if trial is not None:
                name = f"trial {trial.number}"
                self._running[name] = trial
                return self._job(name, trial, {"trial": "search", "trial_number": str(trial.number)})
            if not self._running:
                self._choose()
        if not self._seeds_left:
            return None
        seed = self._seeds_left.pop(0)
        assert self.winner is not None
        job = self._final_job(seed, self.winner)
        self._running[job.name] = seed
        return job

    def report(self, name: str, epoch: int, value: float) -> bool:
        """Notes a trial's value after an epoch, or a fold, which is said; returns whether it is to end."""
        trial = self._running[name]
        del self._deaths[name]
        stops = isinstance(trial, Trial) and self.study.report(trial.number, epoch, value)
        if epoch < self.num_folds:
            so_far = f"{self.measure.label} {self.measure.words(value)} so far"
            self.say(f"{name}: fold {epoch} of {self.num_folds}, {so_far}")
        return stops

    def tell(self, name: str, ended: Ended) -> None:
        """Notes how a job ended, and says so.

        Raises:
            RunFailedError: If the first trials have all failed in the same way.
        """
        job = self._running.pop(name)
        if isinstance(job, int):
            reason = ended.outcome.reason
            self.finals[job] = Final(job, {} if reason else ended.metrics, ended.outcome.run, reason)
            self.say(f"seed {job}: {reason or self._in_words(ended.metrics)}")
            return
        self.study.tell(job.number, ended.outcome, self.seconds)
        trials = self.study.trials()
        self.say(self._line(trials[job.number - 1], trials))
        self.after_each(trials[job.number - 1], self.study.best())
        check_failures([trial.outcome for trial in trials])

    def lose(self, name: str, how: str, is_its_own: bool = True) -> None:
        """Takes back a job whose process has ended; it is given out again, or has failed if that happens too often.

        Args:
            name: The job's.
            how: In words.
            is_its_own: Whether what it did may be why.
        """
        self._deaths[name] += is_its_own
        if reason := why_failed(self._deaths[name], how):
            self.tell(name, Ended(Outcome("failed", reason=reason)))
            return
        self.say(f"{name}: its process was {how}; another one goes on with it")
        job = self._running.pop(name)
        if isinstance(job, int):
            self._seeds_left.insert(0, job)
        else:
            self.study.put_back(job.number)

    def _would_end_late(self) -> bool:
        """Whether a trial that is begun now, and the best with new seeds after it, would end after the budget."""
        if self.budget is None:
            return False
        whole = [trial.outcome.seconds for trial in self.study.trials() if trial.outcome.state == "complete"]
        longest = max(whole, default=0.0)
        last = longest * -(-len(self.final_seeds) // self.num_workers)
        self.is_budget_spent = bool(whole) and self.seconds + sum(whole) / len(whole) + last > self.budget
        return self.is_budget_spent

    def _choose(self) -> None:
        """Ends the trials, and takes the best of them.

        Raises:
            RunFailedError: If there is none.
        """
        self._are_trials_over = True
        trials = self.study.trials()
        if self.is_budget_spent and len(trials) < self.study.limit:
            self.say(f"the budget is spent after {counted(len(trials), 'trial')} of {self.study.limit}")
        self.winner = self.study.best()
        if self.winner is None:
            failed = [trial.outcome.reason for trial in trials if trial.outcome.reason]
            raise RunFailedError(f"no trial came to its end: {failed[0] if failed else 'all were pruned'}")
        self._seeds_left = list(self.final_seeds)
        if self._seeds_left:
            seeds = " ".join(map(str, self._seeds_left))
            on = f" on {self.num_folds} folds" if self.num_folds else ""
            self.say(f"trial {self.winner.number} is the best; trained anew{on} with seeds {seeds}, and tested")

    def _job(self, name: str, trial: Trial, tags: Mapping[str, str]) -> Job:
        arguments = [*self.arguments, *arguments_of(trial.values), *_OF_A_TRIAL]
        place = (self.parent_key, tags, self.monitor, self.val_digest)
        return Job(name, arguments, *place, True, trial.is_again, trial.stopped, self.num_folds)

    def _final_job(self, seed: int, of: Trial) -> Job:
        arguments = [*self.arguments, *arguments_of(of.values), f"--seed_everything={seed}", _OF_A_TRIAL[-1]]
        # With more trials another one may be the best: what was trained for the former is none of its runs.
        tags = {"final_seed": str(seed), "final_of": str(of.number), **({"trial": "fold"} if self.num_folds else {})}
        place = (self.parent_key, tags, self.monitor, self.val_digest)
        name = f"trial {of.number} seed {seed}"
        return Job(name, arguments, *place, reports=False, is_again=True, num_folds=self.num_folds)

    def _line(self, trial: Trial, trials: Sequence[Trial]) -> str:
        outcome, best = trial.outcome, self.study.best()
        said = f"trial {trial.number} of {self.study.limit}: {in_words(trial.values)}: "
        if outcome.state == "failed":
            return f"{said}failed: {outcome.reason}"
        said += f"{self.measure.words(outcome.value)} after {counted(outcome.epochs, self.measure.unit)}"
        said += ", pruned" if outcome.state == "pruned" else ""
        if best is not None:
            is_own = best.number == trial.number
            of_best = self.measure.words(best.outcome.value)
            said += "; the best so far" if is_own else f"; best {of_best}, trial {best.number}"
        return f"{said}; {duration(outcome.seconds)}{self._left_words(trials)}"

    def _left_words(self, trials: Sequence[Trial]) -> str:
        ended = [each.outcome for each in trials if each.outcome.state != "running"]
        whole = [each.seconds for each in ended if each.state == "complete"] or [each.seconds for each in ended]
        mean = sum(each.seconds for each in ended) / len(ended)
        seconds = (self.study.limit - len(ended)) * mean / self.num_workers
        # The best is trained anew to its end.
        seconds += max(whole) * -(-len(self.final_seeds) // self.num_workers)
        if self.budget is not None:
            seconds = min(seconds, max(0.0, self.budget - self.seconds))
        return f", about {about(seconds)} left" if seconds > 20 else ""

    def _in_words(self, metrics: Mapping[str, float]) -> str:
        said = f"{self.measure.label} {self.measure.words(metrics[self.measure.metric])}"
        return f"{said}, test {100 * metrics['test/acc']:.1f} %" if "test/acc" in metrics else said


def why_failed(num_deaths: int, how: str) -> str:
    """Returns why a job has failed whose process has ended so often; "" if another one is to go on with it."""
    is_too_often = num_deaths >= _MOST_DEATHS
    return f"its process was {how} {num_deaths} times (is the memory too small?)" if is_too_often else ""


def check_failures(outcomes: Sequence[Outcome]) -> None:
    """Ends a search whose first trials all failed in the same way.

    Raises:
        RunFailedError: With that way.
    """
    ended = [outcome for outcome in outcomes if outcome.state != "running"]
    if len(ended) < _FAILURES or any(outcome.state != "failed" for outcome in ended):
        return
    ways = {re.sub(r"[-+\d.e]+", "", outcome.reason) for outcome in ended[:_FAILURES]}
    if len(ways) == 1:
        raise RunFailedError(f"the first {_FAILURES} trials failed in the same way: {ended[0].reason}")
