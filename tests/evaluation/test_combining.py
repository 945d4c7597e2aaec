"""Each way to combine, by hand or by other means; greedy selection against trying everything."""

from collections.abc import Iterator
from itertools import combinations_with_replacement

import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import mode
from sklearn.metrics import accuracy_score, log_loss

from lit_cnn.evaluation.combining import Outputs, Rule, combine, select_greedily

NUM_MEMBERS, NUM_IMAGES, NUM_CLASSES = 5, 300, 4


@pytest.fixture(scope="module")
def outputs() -> Outputs:
    """Five members of different strength that err apart, and in temper."""
    generator = np.random.default_rng(0)
    targets = generator.integers(0, NUM_CLASSES, NUM_IMAGES)
    strength = np.array([2.0, 1.8, 1.8, 1.0, 0.2])[:, None, None]
    temper = np.array([1.0, 6.0, 1.0, 0.3, 1.0])[:, None, None]
    noise = generator.normal(size=(NUM_MEMBERS, NUM_IMAGES, NUM_CLASSES))
    logits = temper * (noise + strength * np.eye(NUM_CLASSES)[targets])
    return Outputs(targets, softmax(logits, axis=-1), logits)


def test_mean_is_that_of_probabilities(outputs: Outputs) -> None:
    together = combine(outputs, "mean", np.ones(NUM_MEMBERS))
    assert together.probabilities == pytest.approx(outputs.probabilities.mean(axis=0), abs=1e-15)
    assert np.array_equal(together.labels, outputs.probabilities.mean(axis=0).argmax(axis=1))


def test_mean_of_logits_is_the_geometric_mean(outputs: Outputs) -> None:
    assert outputs.logits is not None
    together = combine(outputs, "logits", np.ones(NUM_MEMBERS))
    logarithm = (outputs.logits - logsumexp(outputs.logits, axis=2, keepdims=True)).mean(axis=0)
    expected = np.exp(logarithm - logsumexp(logarithm, axis=1, keepdims=True))
    assert together.probabilities == pytest.approx(expected, abs=1e-12)
    assert not np.array_equal(together.labels, combine(outputs, "mean", np.ones(NUM_MEMBERS)).labels)


def test_vote_is_the_most_frequent_class(outputs: Outputs) -> None:
    together = combine(outputs, "vote", np.ones(NUM_MEMBERS))
    labels = outputs.probabilities.argmax(axis=2)
    counts = np.stack([(labels == label).sum(axis=0) for label in range(NUM_CLASSES)])
    clear = (counts == counts.max(axis=0)).sum(axis=0) == 1
    assert 0 < clear.sum() < NUM_IMAGES
    assert np.array_equal(together.labels[clear], mode(labels, axis=0).mode[clear])
    assert together.probabilities is None


def test_tied_votes_go_to_the_larger_mean_probability() -> None:
    probabilities = np.array([[[0.5, 0.3, 0.2]], [[0.2, 0.1, 0.7]], [[0.3, 0.4, 0.3]]])
    outputs = Outputs(np.array([2]), probabilities, np.log(probabilities))
    assert combine(outputs, "vote", np.ones(3)).labels.tolist() == [2]  # of one vote each: means 0.33, 0.27, 0.40
    assert combine(outputs, "vote", [2, 1, 1]).labels.tolist() == [0]
    # 0.1 + 0.2 is more than 0.3 in floating point, and ties all the same.
    probabilities = np.array([[[0.6, 0.4]], [[0.6, 0.4]], [[0.0, 1.0]]])
    outputs = Outputs(np.array([1]), probabilities, probabilities)
    assert combine(outputs, "vote", [0.1, 0.2, 0.3]).labels.tolist() == [1]


@pytest.mark.parametrize("rule", ["mean", "logits", "vote"])
def test_weights_count_as_repetitions_and_one_member_alone_is_itself(outputs: Outputs, rule: Rule) -> None:
    repeated = [0, 0, 0, 1, 2]
    assert outputs.logits is not None
    often = Outputs(outputs.targets, outputs.probabilities[repeated], outputs.logits[repeated])
    by_weights = combine(outputs, rule, [3, 1, 1, 0, 0])
    by_repeating = combine(often, rule, np.ones(5))
    assert np.array_equal(by_weights.labels, by_repeating.labels)
    if rule != "vote":
        assert by_weights.probabilities == pytest.approx(by_repeating.probabilities, abs=1e-14)
    alone = combine(outputs, rule, np.eye(NUM_MEMBERS)[3])
    assert np.array_equal(alone.labels, outputs.logits[3].argmax(axis=1))


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 1, 1, -1], [0] * 5, [1, 1, 1, 1, np.nan]])
def test_weights_that_cannot_be_are_refused(outputs: Outputs, weights: list[float]) -> None:
    with pytest.raises(ValueError, match="combine: give"):
        combine(outputs, "mean", weights)


def test_greedy_selection_by_hand(outputs: Outputs) -> None:
    """The same, written as the paper says it: lists of members, sklearn's accuracy and log-loss."""
    nested: list[list[int]] = [[]]
    for _ in range(25):
        nested.append(
            max(([*nested[-1], member] for member in range(NUM_MEMBERS)), key=lambda bag: merit(bag, outputs))
        )
    best = max(nested[1:], key=lambda bag: merit(bag, outputs))
    counts = selected_from(outputs)
    assert counts.tolist() == np.bincount(best, minlength=NUM_MEMBERS).tolist()
    assert counts.max() > 1, "no member entered twice"


def test_greedy_selection_is_no_worse_than_any_single_and_close_to_the_best_of_three(outputs: Outputs) -> None:
    counts = selected_from(outputs)
    selected = (combine(outputs, "mean", counts).labels == outputs.targets).mean()
    singles = (outputs.probabilities.argmax(axis=2) == outputs.targets).mean(axis=1)
    threes = [merit(list(bag), outputs)[0] for bag in combinations_with_replacement(range(NUM_MEMBERS), 3)]
    assert selected >= singles.max() and selected >= max(threes) - 0.01
    assert selected_from(outputs, 1).tolist() == [1]


def test_of_equal_members_the_first_is_taken_once(outputs: Outputs) -> None:
    twins = Outputs(outputs.targets, outputs.probabilities[[0, 0, 0]])
    assert selected_from(twins, 3).tolist() == [1, 0, 0]


def selected_from(outputs: Outputs, num_members: int = NUM_MEMBERS) -> np.ndarray:
    """Selects of some members, which see the images in three parts of unequal size."""

    def blocks() -> Iterator[Outputs]:
        for part in (slice(0, 1), slice(1, 200), slice(200, None)):
            yield Outputs(outputs.targets[part], outputs.probabilities[:, part])

    return select_greedily(blocks, num_members)


def merit(bag: list[int], outputs: Outputs) -> tuple[float, float]:
    together = outputs.probabilities[bag].mean(axis=0)
    loss = log_loss(outputs.targets, together, labels=range(NUM_CLASSES))
    return accuracy_score(outputs.targets, together.argmax(axis=1)), -round(loss, 12)
