"""The network that is exported: the members, and all that is done before and after them."""

from collections.abc import Sequence

import torch
from torch import nn

from lit_cnn.portable import ModelCard
from lit_cnn.training.classifier import LitClassifier


class CombinedNet(nn.Module):
    """The members and all that is done before and after them: from uint8 images to probabilities.

    Args:
        models: The members, on the CPU.
        card: Their weights, what is averaged, temperature and views.
    """

    def __init__(self, models: Sequence[LitClassifier], card: ModelCard) -> None:
        super().__init__()
        self.members = nn.ModuleList(_NormalizedNet(model) for model in models)
        self.weights = [float(member["weight"]) for member in card.members]
        self.combine = card.combine
        self.temperature = card.temperature
        self.views = card.views

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns probabilities `(N, num_classes)` float32 of images `(N, C, S, S)` uint8."""
        views = torch.cat([images, images.flip(3)]) if self.views == 2 else images
        total = None
        for weight, member in zip(self.weights, self.members, strict=True):
            logits = member(views).float().unflatten(0, (self.views, -1))  # V x N x K
            outputs = (logits if self.combine == "logits" else logits.softmax(-1)).mean(0)
            total = outputs * weight if total is None else total + outputs * weight
        assert total is not None
        if self.combine == "mean":
            if self.temperature == 1:
                return total
            # What is averaged has no logits: see `calibration.with_temperature`.
            total = total.clamp_min(torch.finfo(torch.float32).tiny).log()
        return (total / self.temperature).softmax(-1)


class _NormalizedNet(nn.Module):
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: LitClassifier) -> None:
        super().__init__()
        self.net = model.net
        self.register_buffer("mean", model.mean)
        self.register_buffer("std", model.std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net((images.float() / 255 - self.mean) / self.std)
