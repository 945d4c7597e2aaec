"""The loss of a training step: cross-entropy, weighted by class, and with the losses of side branches."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from lit_cnn.core.errors import UsageError


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite.

    Args:
        loss: Its value.
        step: The optimizer step.
        epoch: The epoch.
        learning_rate: The largest learning rate then.
    """

    def __init__(self, loss: float, step: int, epoch: int, learning_rate: float) -> None:
        super().__init__(
            f"the loss is {loss} at step {step} (epoch {epoch}), learning rate {learning_rate:.3g}: the run stops; the "
            "last checkpoint is from before. Try a lower lr"
        )


def losses_of_step(model: Any, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Returns the loss that a classifier's training step minimises, and what it is made of.

    Args:
        model: The `LitClassifier`.
        images: `(N, C, S, S)`, uint8 in [0, 255]; or features, which go neither to a mixing nor to side branches.
        targets: `(N,)`, int64.

    Returns:
        The weighted sum of the classifier's loss and those of the side branches, which evaluation never computes;
        and the parts: accuracy, the classifier's loss, one for each side branch. Mixed images count as what the
        larger part of them is.
    """
    are_features = images.is_floating_point()
    views, soft_targets, aux_logits = images if are_features else model.normalize(images), targets, []
    if model.mix is not None:
        views, soft_targets = model.mix(views, targets)
        targets = soft_targets.argmax(1)
    if model.aux_weights:
        logits, aux_logits = model.net.forward_with_aux(views)
    else:
        logits = model(views) if are_features else model.net(views)
    # In float32: the exponentials of bfloat16's three digits would be coarse.
    losses = [model.loss(logits.float(), soft_targets, views)]
    smoothing = model.hparams["label_smoothing"]
    losses += [cross_entropy(each.float(), soft_targets, model.loss_weights, smoothing) for each in aux_logits]
    loss = losses[0]
    for weight, aux_loss in zip(model.aux_weights, losses[1:], strict=True):
        loss = loss + weight * aux_loss
    accuracy = (logits.argmax(1) == targets).double().mean()
    return loss, [accuracy, *losses]


def balanced_weights(class_counts: Sequence[int] | None) -> torch.Tensor:
    """Returns the weight of each class, `(num_classes,)` float32: n / (num_classes * count), and 0 for a class of none.

    Over the n images the mean weight is 1.

    Raises:
        UsageError: If there are no counts to tell them from.
    """
    if not class_counts:
        raise UsageError("class_weights", "balanced", "needs `class_counts`, the training images of each class")
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
