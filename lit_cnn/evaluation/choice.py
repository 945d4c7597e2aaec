"""Which networks to combine, and over how many views: chosen on val, so that the test is there for one estimate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_cnn.core.intervals import Interval
from lit_cnn.evaluation.combining import combine, select_greedily
from lit_cnn.evaluation.outputs import KeptOutputs, SplitOutputs
from lit_cnn.evaluation.statistics import accuracy_interval, mcnemar_exact

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Choice:
    """A way to classify, and what it does on the N val images.

    Attributes:
        name: What it is called.
        weights: `(M,)`, how much each network counts; 0 for those that are not run.
        num_views: Views of each image.
        correct: `(N,)` bool.
        log_likelihood: `(N,)` float64, of the true class.
        cost: Multiply-adds of one image.
    """

    name: str
    weights: np.ndarray
    num_views: int
    correct: np.ndarray
    log_likelihood: np.ndarray
    cost: float

    @property
    def accuracy(self) -> Interval:
        """On val, a fraction with its 95 % Wilson interval."""
        return accuracy_interval(self.correct)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood on val, in nats."""
        return -float(self.log_likelihood.mean())


def choices_on(
    outputs: Mapping[int, SplitOutputs], names: Sequence[str], costs: Sequence[float], folder: Path
) -> list[Choice]:
    """Returns what can be chosen: each network alone, the mean of all, and those that greedy selection takes.

    Args:
        outputs: Number of views -> what all M networks say of val.
        names: `M` names of the networks.
        costs: Multiply-adds of each for one view.
        folder: Where large outputs are kept meanwhile.
    """
    found = list[Choice]()
    num = len(names)
    for num_views, of_views in sorted(outputs.items()):
        with KeptOutputs(of_views, folder, has_logits=False) as kept:
            weightings = [(name, np.eye(num)[place]) for place, name in enumerate(names)]
            if num > 1:
                weightings.append((f"mean of {num}", np.ones(num)))
                counts = select_greedily(kept.blocks, num)
                if np.count_nonzero(counts) > 1 and len(set(counts)) > 1:
                    taken = [(count, name) for count, name in zip(counts, names, strict=True) if count]
                    composition = " + ".join(name if count == 1 else f"{count} x {name}" for count, name in taken)
                    weightings.append((composition, counts.astype(float)))
            for name, weights in weightings:
                called = {1: name, 2: f"{name}, the mirror image too"}.get(num_views, f"{name}, {num_views} views")
                cost = num_views * sum(each for each, weight in zip(costs, weights, strict=True) if weight)
                found.append(Choice(called, weights, num_views, *_on(kept, weights), cost))
    return found


def _on(outputs: KeptOutputs, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns whether the mean with these weights is right on each image, and its log-likelihoods."""
    correct, of_target = [], []
    for block in outputs.blocks():
        combined = combine(block, "mean", weights)
        assert combined.probabilities is not None
        correct.append(combined.labels == block.targets)
        of_target.append(combined.probabilities[np.arange(len(block.targets)), block.targets])
    log_likelihood = np.log(np.maximum(np.concatenate(of_target), np.finfo(np.float64).tiny))
    return np.concatenate(correct), log_likelihood


def choose(ways: Sequence[Choice]) -> Choice:
    """Returns the cheapest way to classify that is on val not measurably worse than the best.

    Worse is what McNemar's exact test says of right and wrong images, or Wilcoxon's signed-rank test of the
    log-likelihoods, at the level of 0.05: the latter sees what a few val images show of an ensemble.

    Args:
        ways: At least one.
    """
    best = max(ways, key=lambda way: (way.correct.mean(), -way.loss, -way.cost))
    equal = [way for way in ways if way.cost < best.cost and not _is_worse(way, best)]
    return min(equal, key=lambda way: (way.cost, way.loss), default=best)


def _is_worse(way: Choice, than: Choice) -> bool:
    from scipy.stats import wilcoxon

    if mcnemar_exact(way.correct, than.correct).p_value < ALPHA and way.correct.mean() < than.correct.mean():
        return True
    difference = way.log_likelihood - than.log_likelihood
    if not difference.any():
        return False
    return bool(difference.mean() < 0 and wilcoxon(difference, alternative="less").pvalue < ALPHA)
