"""Successive halving under a budget of time, on trainings whose times and accuracies are given."""

import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_cnn.search.best import Budget
from lit_cnn.search.halving import Candidate, Clock, Extent, Trained, extent_of, halve, name_of

NUM_IMAGES, NUM_CLASSES, NUM_VAL = 1000, 10, 100


def candidate(name: str, work: float, constant_work: float = 0.0, epochs: int = 20) -> Candidate:
    return Candidate(name, name, "full", None, (), epochs, work, constant_work)


@dataclass
class Machine:
    """Takes `overhead` seconds for a training, and `seconds` for a unit of work; knows how good each can become."""

    quality: dict[str, float]
    seconds: float = 1e-4
    overhead: float = 2.0
    warm_up: float = 0.0
    time: float = 0.0
    trained: list[tuple[str, Extent]] = field(default_factory=list)
    clock: Clock = field(default_factory=lambda: Clock(NUM_VAL))

    def train(self, one: Candidate, extent: Extent, name: str) -> Trained:
        work = one.work * extent.epochs * (extent.num_images + NUM_VAL / 3)
        of_epochs = self.seconds * work
        of_fit = of_epochs + self.seconds * one.constant_work * extent.num_images
        seconds = self.overhead + of_fit
        seconds += self.warm_up if not self.trained else 0.0
        self.time += seconds
        self.trained.append((one.name, extent))
        share = extent.passes / (one.epochs * NUM_IMAGES)
        correct = round(NUM_VAL * self.quality[one.name] * (0.5 + 0.5 * share))
        outcome = Trained(one, extent, correct, NUM_VAL, 1.0, seconds, of_fit, f"{len(self.trained):032x}")
        self.clock.add(outcome)
        return outcome

    def halve(self, candidates: list[Candidate], budget: float) -> tuple[list[Trained], list[str]]:
        said: list[str] = []
        left = lambda: budget - self.time  # noqa: E731
        found = halve(candidates, left, self.train, self.clock, NUM_IMAGES, NUM_CLASSES, said.append)
        return found, said


@pytest.mark.parametrize("warm_up", [0.0, 20.0])
def test_the_best_is_trained_most_and_the_time_is_kept(warm_up: float) -> None:
    names = [f"net{number}" for number in range(9)]
    machine = Machine({name: 0.5 + 0.05 * place for place, name in enumerate(names)}, warm_up=warm_up)
    tried = [candidate(name, 1.0 + place) for place, name in enumerate(names)]
    found, said = machine.halve(tried, 120)
    assert found[0].candidate.name == "net8"
    assert {each.candidate.name for each in found} == set(names)
    # What it was given is the most, and each round trains fewer.
    assert found[0].extent.passes == max(extent.passes for _, extent in machine.trained)
    of_rounds = [line for line in said if line.startswith("round")]
    assert len(of_rounds) == 2 and "9 configurations" in of_rounds[0] and "3 configurations" in of_rounds[1]
    assert machine.time < 1.3 * 120


def test_what_there_is_no_time_for_is_left_out_and_named() -> None:
    machine = Machine({"small": 0.6, "other": 0.7, "huge": 0.9})
    found, said = machine.halve([candidate("huge", 1e5), candidate("small", 1.0), candidate("other", 2.0)], 60)
    assert [each.candidate.name for each in found] == ["other", "small"]
    assert [line for line in said if "left out" in line] == ["left out: huge; there is no time to try it"]


def test_one_candidate_and_equal_ones() -> None:
    machine = Machine({"only": 0.9})
    found, _ = machine.halve([candidate("only", 1.0)], 60)
    assert [each.candidate.name for each in found] == ["only"]
    # Of equally accurate ones that with the lower loss comes first, else the order stays.
    machine = Machine({"a": 0.9, "b": 0.9})
    found, _ = machine.halve([candidate("a", 1.0), candidate("b", 1.0)], 1e6)
    assert len(found) == 2
    assert all(each.extent == Extent(20, NUM_IMAGES) for each in found)


@given(share=st.floats(0, 1), images=st.integers(1, 100_000), epochs=st.integers(1, 100))
def test_a_share_is_epochs_first_then_images(share: float, images: int, epochs: int) -> None:
    one = candidate("net", 1.0, epochs=epochs)
    extent = extent_of(share, one, images, NUM_CLASSES)
    assert 1 <= extent.epochs <= epochs and 1 <= extent.num_images <= images
    whole = epochs * images
    # Never more than the share, but for the least that is trained and an epoch's rounding.
    assert extent.passes <= share * whole + images + 3 * min(images, 5 * NUM_CLASSES) + epochs
    if share == 1:
        assert extent == Extent(epochs, images)


def test_one_that_fails_is_left_out_and_one_that_fails_later_keeps_what_it_had() -> None:
    machine = Machine(dict.fromkeys("abc", 0.5))
    trained = machine.train

    def train(one: Candidate, extent: Extent, name: str) -> Trained | None:
        fails = one.name == "a" or (one.name == "c" and name.startswith("round"))
        return None if fails else trained(one, extent, name)

    machine.train = train  # type: ignore[method-assign, assignment]
    found, _ = machine.halve([candidate(name, 1.0) for name in "abc"], 1000)
    assert {each.candidate.name: each.extent.epochs for each in found} == {"b": 20, "c": 3}
    machine = Machine({"a": 0.5})
    machine.train = lambda *_: None  # type: ignore[method-assign, assignment]
    assert machine.halve([candidate("a", 1.0)], 100)[0] == []


def test_names() -> None:
    one = Trained(candidate("net, full", 1.0), Extent(1, 1), 1, 2, 0.0, 1.0, 1.0, "a" * 32)
    assert name_of(one) == "net, full"
    assert one.accuracy.mean == 0.5


def test_a_second_candidate_is_tried_only_if_all_that_is_left_bears_it() -> None:
    # The first takes 20 s for what a process prepares once, which say nothing of the second.
    tried = [candidate("small", 1.0), candidate("large", 2.0), candidate("larger", 3.0)]
    for budget, names in ((25.0, ["small"]), (90.0, ["small", "large"])):
        machine = Machine({"small": 0.6, "large": 0.7, "larger": 0.8}, warm_up=20.0)
        said: list[str] = []
        shape = (machine.clock, NUM_IMAGES, NUM_CLASSES, said.append)
        halve(tried, lambda machine=machine: 30 - machine.time, machine.train, *shape, lambda: budget - machine.time)  # type: ignore[misc]  # noqa: B023
        assert list(dict.fromkeys(name for name, _ in machine.trained))[:2] == names
        assert ("left out: large; there is no time to try it" in said) is (names == ["small"])
    # What was trained before a resume is not left out, however little time there is.
    machine = Machine({"small": 0.6, "large": 0.7, "larger": 0.8})
    shape = (machine.clock, NUM_IMAGES, NUM_CLASSES, said.append)
    found = halve(tried, lambda: -1.0, machine.train, *shape, is_trained=lambda name: name.startswith("first"))
    assert {each.candidate.name for each in found} == {"small", "large", "larger"}


def test_the_end_has_its_time_whatever_the_shares_are() -> None:
    budget = Budget(60.0, began=time.monotonic() - 20)
    assert budget.left() == pytest.approx(40, abs=0.5) and budget.left(0.5) == pytest.approx(10, abs=0.5)
    budget.ending = 35.0
    assert budget.left() == pytest.approx(5, abs=0.5) and budget.left(0.5) == pytest.approx(5, abs=0.5)
