"""The study of a search: what a kill at any call leaves is gone on with, as if nothing had happened."""

import itertools
import math
from pathlib import Path

import pytest

from lit_cnn.core.errors import UsageError
from lit_cnn.search.space import read_space
from lit_cnn.search.study import Outcome, Plan, Sampler, State, Study, Trial

SPACE = read_space("model.lr: {low: 1e-4, high: 0.1, log: true}\nmodel.optimizer: [adamw, sgd]", "s.yaml")
PLAN = Plan(trials=12, max_epochs=9)


class Killed(BaseException):
    """Ends a search in the midst of it."""


def run(place: Path, plan: Plan, killed_after: int = 10**6) -> list[Trial]:
    """Makes up values by a formula, by which TPE and the pruner decide; is killed after so many calls of the study."""
    study, calls = Study(place, "digest", SPACE, plan), itertools.count(1)

    def count() -> None:
        if next(calls) > killed_after:
            raise Killed

    count()
    while (trial := study.next()) is not None:
        count()
        for epoch in range(1, plan.max_epochs + 1):
            value = 0.1 * epoch - abs(math.log10(trial.values["model.lr"]) + 2.5)
            stops = study.report(trial.number, epoch, value)
            count()
            if stops:
                break
        state: State = "pruned" if stops else "complete"
        study.tell(trial.number, Outcome(state, value, epoch, 1.0, f"run {trial.number}"), 3.0)
        count()
    return study.trials()


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "none"])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_is_killed_again_and_again_draws_the_same(sampler: Sampler, pruner: str, tmp_path: Path) -> None:
    plan = Plan(12, sampler, pruner, max_epochs=9)  # type: ignore[arg-type]
    whole = run(tmp_path_of(tmp_path, "whole"), plan)
    assert [trial.number for trial in whole] == list(range(1, 13))
    states = {trial.outcome.state for trial in whole}
    assert states == ({"complete"} if pruner == "none" else {"complete", "pruned"})
    assert len({str(trial.values) for trial in whole}) == 12
    place = tmp_path_of(tmp_path, "killed")
    for killed_after in (1, 2, 5, 7, 12, 3, 25, 20):
        with pytest.raises(Killed):
            run(place, plan, killed_after)
    assert run(place, plan) == whole
    if sampler == "tpe":
        assert run(tmp_path_of(tmp_path, "other seed"), Plan(12, sampler, seed=1, max_epochs=9))[0] != whole[0]


def tmp_path_of(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_a_torn_line_is_dropped_and_a_study_of_another_search_refused(tmp_path: Path) -> None:
    study = Study(tmp_path, "digest", SPACE, PLAN)
    first = study.next()
    assert first is not None
    with (tmp_path / "study.journal").open("a") as file:
        file.write('{"op_code": 4, "wor')
    again = Study(tmp_path, "digest", SPACE, PLAN).next()
    assert again is not None and (again.number, again.values, again.is_again) == (1, first.values, True)
    with pytest.raises(UsageError, match="this search has its trials in its own file; leave it out"):
        Study(tmp_path, "digest", SPACE, PLAN, f"sqlite:///{tmp_path}/study.db")


def test_a_database_has_the_study_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = Study(tmp_path_of(tmp_path, "one"), "digest", SPACE, PLAN, url)
    first = study.next()
    again = Study(tmp_path / "one", "digest", SPACE, PLAN, url).next()
    other = Study(tmp_path_of(tmp_path, "two"), "digest", SPACE, PLAN, url).next()
    assert first is not None and again is not None and other is not None
    assert (again.is_again, again.values) == (True, first.values) and not other.is_again
    with pytest.raises(UsageError, match=r"this search has its trials in sqlite:.*; give .?study=sqlite"):
        Study(tmp_path / "one", "digest", SPACE, PLAN)
    with pytest.raises(UsageError, match=r"study=nodb://there/x: cannot be opened .*; give a database's URL"):
        Study(tmp_path_of(tmp_path, "three"), "digest", SPACE, PLAN, "nodb://me:secret@there/x")


def test_a_finite_space_is_tried_whole_and_nothing_is_tried_twice(tmp_path: Path) -> None:
    space = read_space("model.optimizer: {adamw: , sgd: {model.weight_decay: [0.1, 0.2, 0.3]}}", "s.yaml")

    def drawn(name: str, plan: Plan) -> list[str]:
        study = Study(tmp_path_of(tmp_path, name), "digest", space, plan)
        found = []
        while (trial := study.next()) is not None:
            found.append(str(trial.values))
            study.tell(trial.number, Outcome("complete", 0.5), 1.0)
            assert len(study.trials()) == len(found)
        assert study.limit == min(plan.trials, 4) and study.is_grid == (plan.sampler == "grid" or plan.trials >= 4)
        return found

    for plan in (Plan(30), Plan(4, "random"), Plan(9, "grid")):
        assert len(set(drawn(f"{plan.sampler} {plan.trials}", plan))) == 4
    for plan in (Plan(3, "grid"), Plan(3, "random"), Plan(3, "tpe")):
        names = drawn(f"three by {plan.sampler}", plan)
        assert len(names) == len(set(names)) == 3


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_with_more_trials_than_at_first_a_finite_space_is_tried_whole(sampler: Sampler, tmp_path: Path) -> None:
    space = read_space("model.optimizer: [adamw, sgd, muon]\nmodel.dropout: {low: 0, high: 0.3, step: 0.1}", "s.yaml")
    found: list[str] = []
    for trials in (3, 11, 12, 20):
        study = Study(tmp_path, "digest", space, Plan(trials, sampler))
        if trials == 11 and sampler == "random":  # a kill after a draw of what was there, before it was seen
            study._study.enqueue_trial(study._study.trials[0].params)
            study._begin(4, study._study.ask().number, is_again=False)
            study = Study(tmp_path, "digest", space, Plan(trials, sampler))
        while (trial := study.next()) is not None:
            found.append(str(trial.values))
            study.tell(trial.number, Outcome("complete", 0.5), 1.0)
        assert len(set(found)) == len(found) == len(study.trials()) == min(trials, 12)


def test_what_matters_needs_enough_trials(tmp_path: Path) -> None:
    place = tmp_path_of(tmp_path, "few")
    run(place, Plan(5, "random", "none", max_epochs=3))
    assert Study(place, "digest", SPACE, Plan(5, "random", "none", max_epochs=3)).importance() == {}
    run(place, Plan(40, "random", "none", max_epochs=3))
    found = Study(place, "digest", SPACE, Plan(40, "random", "none", max_epochs=3)).importance()
    assert found["model.lr"] > 0.8 and sum(found.values()) == pytest.approx(1)
