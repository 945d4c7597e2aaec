"""Mixup and CutMix, on a batch that is on its device already."""

from collections.abc import Callable

import torch

from lit_cnn.core.errors import UsageError

Mixing = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def build_mixing(mixup: float, cutmix: float, num_classes: int) -> Mixing | None:
    """Returns what mixes a batch, or None if both are off.

    It takes images `(N, C, H, W)`, float, and labels `(N,)`, int64; and returns images of the same shape, and targets
    `(N, num_classes)`, float, that add up to 1. It draws from torch's own stream on the CPU, which the classifier sets
    for each step, so what is mixed is a function of (seed, step). With several devices each mixes its share of the
    batch, with draws of its own.

    Args:
        mixup: Alpha of mixup (Zhang et al. 2017, "mixup: beyond empirical risk minimization", section 2); 0 is off.
        cutmix: Alpha of CutMix (Yun et al. 2019, "CutMix", section 3.1); 0 is off.
        num_classes: Number of classes.

    Raises:
        UsageError: If an alpha is below 0 or not finite.
    """
    for option, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        if not 0 <= alpha < float("inf"):
            raise UsageError(option, alpha, "give 0 (off) or a number above, for example 0.2")
    if not mixup and not cutmix:
        return None
    # torchvision's transforms take a second to import.
    from torchvision.transforms import v2

    kinds = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
    kinds += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []
    mix: Mixing = kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)
    # A function, so that no module of torchvision's becomes a part of the network.
    return lambda images, labels: mix(images, labels)
