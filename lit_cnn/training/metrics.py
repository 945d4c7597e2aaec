"""The metrics of training and of an evaluation, and the one way by which they reach the loggers during a fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torchmetrics import MetricCollection
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassStatScores


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


class TrainSums:
    """Sums over the training images of an epoch so far: how many, how many of them right, the losses.

    Summed by hand: torchmetrics costs more per step than LeNet-5's own backward pass. No buffer of the model: with
    several devices, those of the first would overwrite the others' at every step.

    Args:
        num_losses: The classifier's own and one for each side branch.
    """

    def __init__(self, num_losses: int) -> None:
        self.values = torch.zeros(2 + num_losses, dtype=torch.float64)

    def add(self, num_images: int, means: Sequence[float]) -> None:
        """Adds a batch of so many images, given its accuracy and its losses."""
        sums = [num_images, *(mean * num_images for mean in means)]
        self.values += torch.tensor(sums, dtype=torch.float64)

    def reset(self) -> None:
        """Starts anew."""
        self.values.zero_()

    def on_all_devices(self, trainer: pl.Trainer) -> list[float]:
        """Returns the sums over all devices; each of them has to call it."""
        own = self.values.to(trainer.strategy.root_device, copy=True)
        return torch.as_tensor(trainer.strategy.reduce(own, reduce_op="sum")).tolist()


def train_means(sums: Sequence[float]) -> dict[str, float]:
    """Returns `train/loss`, `train/loss_aux1` and so on for the side branches, and `train/acc`, from `TrainSums`."""
    count, accuracy, *losses = sums
    names = ["train/loss", *(f"train/loss_aux{number + 1}" for number in range(len(losses) - 1))]
    means = {name: loss / max(count, 1) for name, loss in zip(names, losses, strict=True)}
    return {**means, "train/acc": accuracy / max(count, 1)}


def log_now(trainer: pl.Trainer, metrics: Mapping[str, float]) -> None:
    """Gives metrics to all loggers at once, as those of the last step made.

    Lightning's `self.log` hands them on only after the epoch's checkpoint is written; a kill in between loses them.
    """
    for logger in trainer.loggers:
        logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
