"""The metrics of an evaluation: loss, accuracy, and what classes of unequal size ask for."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torchmetrics import MetricCollection
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassStatScores

from lit_cnn.core.errors import UsageError


class BalancedAccuracy(MulticlassStatScores):
    """The mean of the classes' recalls, over the classes that there are images of.

    torchmetrics' macro accuracy counts a class without images, once it is predicted, as one that is never found.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> torch.Tensor:
        """Returns the balanced accuracy in [0, 1]."""
        found, _, _, _, support = super().compute().unbind(-1)
        there = support > 0
        return (found[there] / support[there]).mean()


def balanced_weights(class_counts: Sequence[int] | None) -> torch.Tensor:
    """Returns the weight of each class, `(num_classes,)` float32: n / (num_classes * count), and 0 for a class of none.

    Over the n images the mean weight is 1.

    Raises:
        UsageError: If there are no counts to tell them from.
    """
    if not class_counts:
        raise UsageError("--model.class_weights balanced: needs class_counts, which lit-cnn fit takes from the data")
    counts = torch.tensor(class_counts, dtype=torch.float64)
    there = counts > 0
    return torch.where(there, counts.sum() / (there.sum() * counts.clamp(min=1)), 0.0).float()


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, label_smoothing: float
) -> torch.Tensor:
    """Returns the mean cross-entropy of a batch in training.

    Args:
        logits: `(N, num_classes)`, float.
        targets: `(N,)`, int64, or `(N, num_classes)`, float, that add up to 1.
        weights: Of each class, see `balanced_weights`; None is equal ones.
        label_smoothing: Share of the target spread evenly over all classes.
    """
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    # Not torch's weighted mean, which divides by the batch's own sum of weights: that depends on who shares a batch,
    # and so on the number of devices.
    return F.cross_entropy(logits, targets, weights, reduction="none", label_smoothing=label_smoothing).mean()


def evaluation_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Returns `loss` (a mean of given values), `acc`, `balanced_acc`, `f1` and, with more than five classes, `acc5`.

    Args:
        num_classes: Number of classes.
        prefix: What their names start with, such as `val/`.
    """
    metrics: dict[str, Any] = {
        "loss": MeanMetric(),
        "acc": MulticlassAccuracy(num_classes, average="micro"),
        "balanced_acc": BalancedAccuracy(num_classes),
        # The mean of the classes' F1 scores, over the classes that occur or are predicted.
        "f1": MulticlassF1Score(num_classes, average="macro"),
    }
    if num_classes > 5:
        metrics["acc5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
