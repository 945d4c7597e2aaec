"""The ways to classify that a table has rows for, on the test images: a few images at a time, all ways of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lit_cnn.evaluation.calibration import Scores, with_temperature
from lit_cnn.evaluation.combining import Outputs, Rule, combine
from lit_cnn.evaluation.outputs import SplitOutputs
from lit_cnn.tracking.queries import RunInfo


@dataclass(frozen=True, eq=False)
class Way:
    """One way to classify: some of the networks, with weights `(M,)`, under a rule."""

    name: str
    kind: Literal["member", "ensemble", "baseline"]
    weights: np.ndarray
    rule: Rule = "mean"
    run: RunInfo | None = None
    composition: str = ""

    @property
    def num_models(self) -> int:
        """Networks that are run."""
        return int(np.count_nonzero(self.weights))


@dataclass(frozen=True, eq=False)
class WayOnTest:
    """What a way comes to on N test images.

    Attributes:
        correct: `(N,)` bool, whether it is right.
        scores: Of its probabilities; None if it has none.
        after: Of those after its temperature; None if there is none.
    """

    correct: np.ndarray
    scores: Scores | None = None
    after: Scores | None = None


@dataclass(frozen=True, eq=False)
class OnTest:
    """What all ways come to on N test images.

    Attributes:
        ways: Of each way.
        labels: `(N,)` int, the class that the way asked for predicts.
        confidence: `(N,)`, the probability of that class, or its mean over the members of a vote.
    """

    ways: Sequence[WayOnTest]
    labels: np.ndarray
    confidence: np.ndarray


def on_test(
    outputs: SplitOutputs, ways: Sequence[Way], temperatures: Sequence[tuple[float, str] | None], asked_for: Way
) -> OnTest:
    """Classifies test images in several ways.

    Args:
        outputs: Of the networks.
        ways: The ways.
        temperatures: Of the first of these ways, as `find_temperature` finds them, or None; the others have no scores.
        asked_for: The way whose predictions are kept.
    """
    of_ways: list[list[WayOnTest]] = [[] for _ in ways]
    labels, confidence = [], []
    for block in outputs.blocks():
        for place, way in enumerate(ways):
            combined = combine(block, way.rule, way.weights)
            correct, probabilities = combined.labels == block.targets, combined.probabilities
            if place < len(temperatures) and probabilities is not None:
                of_ways[place].append(_scored(correct, probabilities, block.targets, temperatures[place]))
            else:
                of_ways[place].append(WayOnTest(correct))
            if way is asked_for:
                labels.append(combined.labels)
                confidence.append(_confidence(block, way, combined.labels, probabilities))
    return OnTest([_joined(parts) for parts in of_ways], np.concatenate(labels), np.concatenate(confidence))


def _scored(
    correct: np.ndarray, probabilities: np.ndarray, targets: np.ndarray, temperature: tuple[float, str] | None
) -> WayOnTest:
    after = None
    if temperature is not None and not temperature[1]:
        after = Scores.of(with_temperature(probabilities, temperature[0]), targets)
    return WayOnTest(correct, Scores.of(probabilities, targets), after)


def _confidence(block: Outputs, way: Way, labels: np.ndarray, probabilities: np.ndarray | None) -> np.ndarray:
    if probabilities is None:  # of a vote
        probabilities = combine(block, "mean", way.weights).probabilities
    assert probabilities is not None
    return probabilities[np.arange(len(labels)), labels]


def _joined(parts: Sequence[WayOnTest]) -> WayOnTest:
    scores = [part.scores for part in parts if part.scores is not None]
    after = [part.after for part in parts if part.after is not None]
    return WayOnTest(
        np.concatenate([part.correct for part in parts]),
        Scores.joined(scores) if scores else None,
        Scores.joined(after) if after else None,
    )
