"""The trials of a search: Optuna's study, which one process alone asks and tells.

A trial whose process is gone is neither failed nor drawn again: it stays as it is, and goes to whoever asks next. So
the study has each draw once, however often the search was killed. What is drawn depends on the seed, the trial's number
and what the study holds by then.
"""

import itertools
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lit_cnn.core.credentials import without_credentials
from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import write_text_atomically
from lit_cnn.core.randomness import generator, torch_seed
from lit_cnn.search.space import Space, Values
from lit_cnn.search.storage import open_storage

if TYPE_CHECKING:
    import optuna

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["asha", "hyperband", "none"]
State = Literal["running", "complete", "pruned", "failed"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
PRUNERS: tuple[Pruner, ...] = get_args(Pruner)

LEAST_FOR_IMPORTANCE = 10
"""Complete trials without which nothing is said of what matters."""

_PLACE = "study.json"
_STOPPED = "stopped"  # what a trial is told in the study: after which epoch to end
_REDUCTION = 3  # of three trials that come to a rung one goes on
_RUNGS = 2  # where a trial of all epochs is judged before its end
_REPEATS = 20  # draws one after another that were there before; what follows is drawn at random


@dataclass(frozen=True)
class Plan:
    """How a search draws and prunes.

    Attributes:
        trials: How many, at most.
        sampler: Who draws.
        pruner: Who ends trials early.
        seed: Of the draws.
        mode: Whether the largest (max) or the smallest (min) value is best.
        max_epochs: The most that a trial trains.
        num_folds: Networks a trial, each on a fold; 0 for one.
    """

    trials: int = 30
    sampler: Sampler = "tpe"
    pruner: Pruner = "asha"
    seed: int = 0
    mode: Literal["max", "min"] = "max"
    max_epochs: int = 10
    num_folds: int = 0

    @property
    def steps(self) -> int:
        """After how many a trial has come to its end: folds, or epochs."""
        return self.num_folds or self.max_epochs


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        state: complete, pruned or failed.
        value: What is searched for, of its best epoch or of its folds; None if it failed.
        epochs: That it has trained; of folds, how many these are.
        seconds: That it took in the process that ended it.
        run: Key of its run, of folds those of all with a space between two; "" if it has none.
        reason: Why it failed.
        loss: On val, of its best epoch: of trials with the same value the one with the lower loss is better.
    """

    state: State
    value: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    run: str = ""
    reason: str = ""
    loss: float = math.inf


@dataclass(frozen=True)
class Trial:
    """One draw.

    Attributes:
        number: From 1 on.
        values: Option -> value.
        outcome: How it ended; its state is `running` before that.
        elapsed: Seconds of the search until it ended, those in which nothing ran left out.
        is_again: Whether another process may have begun it.
        stopped: The epoch after which it was told to end, if it was.
    """

    number: int
    values: Values
    outcome: Outcome = Outcome("running")
    elapsed: float = 0.0
    is_again: bool = False
    stopped: int | None = None


class Study:
    """Draws trials, says which to end early, and keeps what they came to.

    Args:
        place: The parent's folder, which keeps the study where no URL is given.
        digest: Of the search; a study of another one is refused.
        space: What is tried.
        plan: How.
        url: A database for the study, `postgresql://…`; default: a file in `place`.

    Raises:
        UsageError: If the database cannot be reached, or the study there is another one.
    """

    def __init__(self, place: Path, digest: str, space: Space, plan: Plan, url: str | None = None) -> None:
        self.space = space
        self.plan = plan
        combinations = space.combinations()
        self._grid = None
        if combinations is not None and (plan.sampler == "grid" or len(combinations) <= plan.trials):
            order = generator("grid of a search", plan.seed).permutation(len(combinations))
            self._grid = [combinations[number] for number in order]
        self._study = _open(place, digest, plan, url)
        self._live: dict[int, optuna.Trial] = {}
        self._left = [trial.number for trial in self.trials() if trial.outcome.state == "running"]

    @property
    def limit(self) -> int:
        """How many trials there will be, at most."""
        return most_trials(self.space, self.plan)

    @property
    def is_grid(self) -> bool:
        """Whether every combination is tried once, or as many of them as there are trials."""
        return self._grid is not None

    @property
    def seconds(self) -> float:
        """How long the search has run until its last trial ended."""
        return max((trial.elapsed for trial in self.trials()), default=0.0)

    def trials(self) -> list[Trial]:
        """Returns all trials, in the order in which they were drawn."""
        return [self._as_trial(place, frozen) for place, frozen in enumerate(self._own(), start=1)]

    def best(self) -> Trial | None:
        """Returns the best of the complete trials; None if there is none."""
        complete = [trial for trial in self.trials() if trial.outcome.state == "complete"]
        return next(iter(ranked(complete, self.plan.mode)), None)

    def importance(self) -> dict[str, float]:
        """Returns by what share each option decides whether a trial is among the best: Optuna's PED-ANOVA.

        Empty where there are too few complete trials to tell, or all came to the same.
        """
        import optuna

        complete = self._study.get_trials(deepcopy=False, states=(_state("complete"),))
        if len(complete) < LEAST_FOR_IMPORTANCE or len({each.value for each in complete}) == 1:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that values were tried once only, which pictures show
            return dict(optuna.importance.get_param_importances(self._study))

    def next(self) -> Trial | None:
        """Returns the trial to train next: one that was left, else a new one; None if there are enough."""
        for repeats in itertools.count():
            own = self._own()
            if self._left:
                number = self._left.pop(0)
                trial = self._begin(number, own[number - 1].number, is_again=True)
            elif len(own) >= self.plan.trials or (self._grid is not None and self._missing() is None):
                return None
            else:
                trial = self._begin(len(own) + 1, self._ask(), is_again=False)
            drawn = self.trials()
            # A kill may have come between the draw and this look at it: then it is the last one.
            if trial.number < len(drawn) or not any(each.values == trial.values for each in drawn[:-1]):
                return trial
            # Trained before, with the same seed: it would come to the same.
            repeated = self._live.pop(trial.number)
            repeated.set_user_attr("repeats", True)
            self._study.tell(repeated, state=_state("failed"))
            if repeats > 10 * _REPEATS:
                return None
        return None

    def put_back(self, number: int) -> None:
        """Takes back a trial whose process is gone: it is the next to be given out."""
        self._left.append(number)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Notes a trial's value after an epoch, or a fold, from 1 on; returns whether to end it."""
        drawn = self._live[number]
        kept = self._study.trials[drawn.number]
        if epoch in kept.intermediate_values:  # before a kill
            # One that came before the last epoch was judged: that is done now. A pruner judges a rung once.
            if _STOPPED in kept.user_attrs or epoch < max(kept.intermediate_values):
                return bool(epoch >= kept.user_attrs.get(_STOPPED, math.inf))
        else:
            drawn.report(value, epoch)
        stops = self.plan.pruner != "none" and epoch < self.plan.steps and drawn.should_prune()
        if stops:
            drawn.set_user_attr(_STOPPED, epoch)
        return stops

    def tell(self, number: int, outcome: Outcome, elapsed: float) -> None:
        """Notes how a trial ended.

        Args:
            number: Its own.
            outcome: How.
            elapsed: Seconds of the search until now, those in which nothing ran left out.
        """
        drawn = self._live.pop(number)
        drawn.set_user_attr("outcome", asdict(outcome))
        drawn.set_user_attr("elapsed", elapsed)
        value = outcome.value if outcome.state == "complete" else None
        self._study.tell(drawn, value, state=_state(outcome.state))

    def _own(self) -> "list[optuna.trial.FrozenTrial]":
        """Returns Optuna's trials but those that repeat another, and one that was not begun."""
        waiting = _state("waiting")
        trials = self._study.get_trials(deepcopy=False)
        return [each for each in trials if "repeats" not in each.user_attrs and each.state != waiting]

    def _missing(self) -> dict[str, Any] | None:
        """Returns the first combination that was not drawn, by whomever: with fewer trials it was not the grid."""
        there = [trial.values for trial in self.trials()]
        return next((each for each in self._grid or () if self._values(each) not in there), None)

    def _ask(self) -> int:
        """Returns Optuna's number of a new trial; its values are drawn by `_begin`."""
        trials = self._study.get_trials(deepcopy=False)
        # A kill may have come after a combination was queued.
        if not any(each.state == _state("waiting") for each in trials) and (missing := self._missing()) is not None:
            self._study.enqueue_trial(missing)
        self._study.sampler = self._sampler(len(trials))
        return self._study.ask().number

    def _begin(self, number: int, of_optuna: int, is_again: bool) -> Trial:
        import optuna

        # So that what a kill kept from being drawn is drawn as it would have been.
        self._study.sampler = self._sampler(of_optuna)
        kept = self._study.trials[of_optuna]
        drawn = self._live[number] = optuna.Trial(self._study, kept._trial_id)
        return Trial(number, self.space.draw(drawn), is_again=is_again, stopped=kept.user_attrs.get(_STOPPED))

    def _sampler(self, number: int) -> "optuna.samplers.BaseSampler":
        """Returns the sampler of one trial: a sampler with one seed would draw the same again after a restart."""
        import optuna

        seed = torch_seed("search", self.plan.seed, number) % 2**32
        before = self._study.get_trials(deepcopy=False)[max(0, number - _REPEATS) : number]
        is_random = len(before) == _REPEATS and all("repeats" in each.user_attrs for each in before)
        if self.plan.sampler == "tpe" and self._grid is None and not is_random:
            return optuna.samplers.TPESampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)

    def _as_trial(self, number: int, frozen: "optuna.trial.FrozenTrial") -> Trial:
        kept = frozen.user_attrs
        is_ended = frozen.state.is_finished() and "outcome" in kept
        outcome = Outcome(**kept["outcome"]) if is_ended else Outcome("running", epochs=frozen.last_step or 0)
        return Trial(number, self._values(frozen.params), outcome, kept.get("elapsed", 0.0) if is_ended else 0.0)

    def _values(self, params: dict[str, Any]) -> Values:
        if frozen := _Drawn(params).complete_for(self.space):
            return frozen
        return {}


class _Drawn:
    """Gives the values that were drawn before."""

    def __init__(self, params: dict[str, Any]) -> None:
        self._params = params

    def complete_for(self, space: Space) -> dict[str, Any] | None:
        """Returns the values; None where not all were drawn before a kill."""
        try:
            return space.draw(self)
        except KeyError:
            return None

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        """Gives a number."""
        return float(self._params[name])

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """Gives a whole number."""
        return int(self._params[name])

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """Gives a choice."""
        return self._params[name]


def ranked(trials: Sequence[Trial], mode: Literal["max", "min"]) -> list[Trial]:
    """Returns trials from the best on: complete ones, then pruned, then failed ones.

    With a dozen val images many come to the same value: then the loss decides, as between epochs, and then the order.
    """
    states, sign = ("complete", "pruned", "failed", "running"), -1 if mode == "max" else 1

    def key(trial: Trial) -> tuple[float, ...]:
        """Returns what comes first."""
        outcome = trial.outcome
        return states.index(outcome.state), sign * (outcome.value or 0.0), outcome.loss, trial.number

    return sorted(trials, key=key)


def most_trials(space: Space, plan: Plan) -> int:
    """Returns how many trials there will be, at most: no combination is tried twice."""
    combinations = space.combinations()
    return plan.trials if combinations is None else min(plan.trials, len(combinations))


def has_study(place: Path) -> bool:
    """Whether a search's folder has its study, or says in which database that is."""
    return (place / _PLACE).is_file()


def first_values(space: Space, seed: int) -> Values:
    """Returns values that a search may draw, without a study: to see whether they can be trained at all."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return space.draw(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask())


def _open(place: Path, digest: str, plan: Plan, url: str | None) -> "optuna.Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kept = place / _PLACE
    label = "" if url is None else without_credentials(url)
    if kept.is_file() and (before := json.loads(kept.read_text(encoding="utf-8"))["study"]) != label:
        remedy = f"give `study={before}`" if before else "leave it out"
        raise UsageError(
            "study",
            label or None,
            f"this search has its trials {f'in {before}' if before else 'in its own file'}",
            remedy,
        )
    # Hyperband deals trials out by the study's name: the same search is to come to the same.
    name = f"lit_cnn {digest[:16]}{f' {place.name}' if url else ''}"
    direction: Literal["maximize", "minimize"] = "maximize" if plan.mode == "max" else "minimize"
    study = optuna.create_study(
        study_name=name,
        storage=open_storage(place, url),
        direction=direction,
        pruner=_pruner(plan),
        load_if_exists=True,
    )
    if study.user_attrs.setdefault("search", digest) != digest:
        raise UsageError("study", label or None, "holds a study of another search", "leave `resume` out to start anew")
    study.set_user_attr("search", digest)
    write_text_atomically(kept, json.dumps({"study": label}))
    return study


def _pruner(plan: Plan) -> "optuna.pruners.BasePruner":
    import optuna

    least = max(1, math.ceil(plan.steps / _REDUCTION**_RUNGS))
    if plan.pruner == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=_REDUCTION)
    if plan.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(least, max(least, plan.steps), _REDUCTION)
    return optuna.pruners.NopPruner()


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    return {**states, "waiting": TrialState.WAITING}[name]
