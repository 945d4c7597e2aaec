"""Predictions of several networks become one, and which of them are worth combining."""

from collections.abc import Sequence
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
        logits: `(M, N, K)` float64, their mean over views.
    """

    targets: np.ndarray
    probabilities: np.ndarray
    logits: np.ndarray


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


def select_greedily(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Forward selection with replacement (Caruana et al. 2004, "Ensemble selection from libraries of models", 2.1).

    In each of 25 rounds the member enters whose entry makes the mean of probabilities most accurate; of equally
    accurate ones the one with the least negative log-likelihood, then the first. The best of the 25 nested ensembles
    is kept, the smallest of equal ones. Give it val images: what is selected looks better there than it is.

    Args:
        probabilities: `(M, N, K)`, rows sum to 1.
        targets: `(N,)` int labels in [0, K).

    Returns:
        `(M,)` int, how often each member entered.
    """
    counts = np.zeros(len(probabilities), dtype=np.int64)
    total = np.zeros(probabilities.shape[1:])
    best, best_counts = (-1.0, 0.0), counts
    for num_members in range(1, _NUM_ROUNDS + 1):
        merits = [_merit((total + one) / num_members, targets) for one in probabilities]
        chosen = max(range(len(merits)), key=lambda member: merits[member])
        counts[chosen] += 1
        total += probabilities[chosen]
        if merits[chosen] > best:
            best, best_counts = merits[chosen], counts.copy()
    return best_counts


def _merit(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Returns accuracy, then mean log-likelihood; rounded, or noise of 1e-16 would choose between equal ones."""
    of_target = probabilities[np.arange(len(targets)), targets]
    log_likelihood = np.log(np.maximum(of_target, np.finfo(np.float64).tiny)).mean()
    return float((probabilities.argmax(axis=1) == targets).mean()), round(float(log_likelihood), 12)


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
