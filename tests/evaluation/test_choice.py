"""What is chosen on val: the cheapest that is not measurably worse than the best."""

from pathlib import Path

import numpy as np

from lit_cnn.evaluation.choice import Choice, choices_on, choose
from lit_cnn.evaluation.outputs import SplitOutputs


def choice(name: str, correct: np.ndarray, log_likelihood: np.ndarray, cost: float) -> Choice:
    return Choice(name, np.ones(1), 1, correct, log_likelihood, cost)


def test_the_cheapest_that_is_not_worse() -> None:
    rng = np.random.default_rng(0)
    right = np.ones(200, bool)
    sure, unsure = np.full(200, -0.1), np.full(200, -0.3) + rng.normal(0, 0.01, 200)
    cheap, dear = choice("cheap", right, sure, 1.0), choice("dear", right, sure + 1e-3 * rng.normal(size=200), 9.0)
    assert choose([dear, cheap]) is cheap
    # As accurate, but measurably less sure: then it pays to run more.
    vague = choice("vague", right, unsure, 1.0)
    assert choose([vague, dear]) is dear
    # Measurably less accurate.
    wrong = right.copy()
    wrong[:30] = False
    assert choose([choice("wrong", wrong, sure, 1.0), dear]) is dear
    # Of what 12 images can tell nothing is measurable: the cheap one is taken, though the other has one more right.
    few = right[:12].copy()
    few[0] = False
    less = choice("less", few, np.where(few, -0.1, -0.7), 1.0)
    assert choose([less, choice("more", right[:12], sure[:12], 5.0)]) is less


def test_networks_alone_together_and_selected(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 3, 300)

    def reader(quality: float, seed: int):  # type: ignore[no-untyped-def]
        logits = np.random.default_rng(seed).normal(size=(300, 3))
        logits[np.arange(300), targets] += quality

        def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            part = logits[start:stop]
            exp = np.exp(part - part.max(axis=1, keepdims=True))
            return exp / exp.sum(axis=1, keepdims=True), part

        return read

    outputs = {1: SplitOutputs(targets, [reader(1.5, 2), reader(1.5, 3), reader(-1.0, 4)], 1, 3)}
    found = {each.name: each for each in choices_on(outputs, ["a", "b", "bad"], [1.0, 2.0, 4.0], tmp_path)}
    assert {"a", "b", "bad", "mean of 3"} < set(found)
    (selected,) = [name for name in found if "+" in name]
    assert "bad" not in selected
    assert found["mean of 3"].cost == 7 and found[selected].cost == 3
    assert found[selected].accuracy.mean > max(found[name].accuracy.mean for name in ("a", "b", "bad"))
    np.testing.assert_array_equal(found["a"].correct, outputs[1].readers[0](0, 300)[0].argmax(axis=1) == targets)
    assert choose(list(found.values())).name == selected
