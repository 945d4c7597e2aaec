"""Predictions of several networks become one, and which of them are worth combining."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Rule = Literal["mean", "logits", "vote"]

_NUM_ROUNDS = 25


@dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs of M members for the same N images with the same number of views.

    Attributes:
        targets: `(N,)` int labels in [0, K).
        probabilities: `(M, N, K)` float64, rows sum to 1: the mean over views of the softmax of the logits.
        logits: `(M, N, K)` float64, their mean over views; a row may be less a constant. None where no rule takes them.
    """

    targets: np.ndarray
    probabilities: np.ndarray
    logits: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Combined:
    """What members predict together.

    Attributes:
        labels: `(N,)` int, the class predicted.
        probabilities: `(N, K)` float64, rows sum to 1; None after a vote, which has none.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None


def combine(outputs: Outputs, rule: Rule, weights: Sequence[float] | np.ndarray) -> Combined:
    """Combines the members' predictions.

    - `mean`: the mean of their probabilities (Krizhevsky et al. 2012, section 4.1).
    - `logits`: the softmax of the mean of their logits: the geometric mean of probabilities, normalised.
    - `vote`: the class that most members predict; of tied ones that with the largest mean probability.

    Args:
        outputs: Of M members.
        rule: How.
        weights: `(M,)`, at least 0 and not all 0; a member of weight 0 is left out.

    Raises:
        ValueError: If the weights are not so.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (len(outputs.probabilities),) or not np.isfinite(weights).all():
        raise ValueError(f"combine: give {len(outputs.probabilities)} finite weights, not {weights}")
    if (weights < 0).any() or not weights.any():
        raise ValueError(f"combine: give weights of at least 0, not all 0, not {weights}")
    used = np.flatnonzero(weights)
    if rule == "logits":
        if outputs.logits is None:
            raise ValueError("combine: the mean of logits takes logits")
        return _most_probable(_softmax(_mean(outputs.logits, used, weights)))
    probabilities = _mean(outputs.probabilities, used, weights)
    if rule == "mean":
        return _most_probable(probabilities)
    votes = np.zeros_like(probabilities)
    for member in used:
        votes[np.arange(len(votes)), outputs.probabilities[member].argmax(axis=1)] += weights[member]
    # Weights such as 0.1 + 0.2 and 0.3 tie too.
    tied = votes >= votes.max(axis=1, keepdims=True) - 1e-9 * weights.sum()
    return Combined(np.where(tied, probabilities, -1).argmax(axis=1), None)


def select_greedily(blocks: Callable[[], Iterable[Outputs]], num_members: int) -> np.ndarray:
    """Forward selection with replacement (Caruana et al. 2004, "Ensemble selection from libraries of models", 2.1).

    In each of 25 rounds the member enters whose entry makes the mean of probabilities most accurate; of equally
    accurate ones the one with the least negative log-likelihood, then the first. The best of the 25 nested ensembles
    is kept, the smallest of equal ones. Give it val images: what is selected looks better there than it is.

    Args:
        blocks: Gives the outputs of the images, some at a time, as often as it is called.
        num_members: The first so many of the outputs' members may enter.

    Returns:
        `(num_members,)` int, how often each member entered.
    """
    chosen: list[int] = []
    best, num_best = (-1.0, 0.0), 0
    for _ in range(_NUM_ROUNDS):
        parts = [_with_each(outputs, chosen, num_members) for outputs in blocks()]
        correct, log_likelihood = (np.concatenate(found, axis=1) for found in zip(*parts, strict=True))
        # Rounded, or noise of 1e-16 would choose between equal ones.
        merits = [
            (float(right.mean()), round(float(of_image.mean()), 12))
            for right, of_image in zip(correct, log_likelihood, strict=True)
        ]
        chosen.append(max(range(num_members), key=lambda member: merits[member]))
        if merits[chosen[-1]] > best:
            best, num_best = merits[chosen[-1]], len(chosen)
    return np.bincount(chosen[:num_best], minlength=num_members)


def _with_each(outputs: Outputs, chosen: Sequence[int], num_members: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns of some images whether those chosen and each member are right, and their log-likelihood, `(M, n)`."""
    total = np.zeros(outputs.probabilities.shape[1:])
    for member in chosen:
        total += outputs.probabilities[member]
    places, targets = np.arange(len(outputs.targets)), outputs.targets
    correct = np.empty((num_members, len(targets)), bool)
    of_target = np.empty((num_members, len(targets)))
    for member in range(num_members):
        together = (total + outputs.probabilities[member]) / (len(chosen) + 1)
        correct[member] = together.argmax(axis=1) == targets
        of_target[member] = together[places, targets]
    return correct, np.log(np.maximum(of_target, np.finfo(np.float64).tiny))


def _mean(values: np.ndarray, used: np.ndarray, weights: np.ndarray) -> np.ndarray:
    # One at a time: no second copy of all members.
    total = np.zeros(values.shape[1:])
    for member in used:
        total += weights[member] * values[member]
    return total / weights[used].sum()


def _softmax(logits: np.ndarray) -> np.ndarray:
    from scipy.special import softmax

    probabilities: np.ndarray = softmax(logits, axis=-1)
    return probabilities


def _most_probable(probabilities: np.ndarray) -> Combined:
    return Combined(probabilities.argmax(axis=1), probabilities)
