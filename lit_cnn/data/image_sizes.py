"""Training images that grow from epoch to epoch: fewer pixels for about the same accuracy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import interpolate

from lit_cnn.core.errors import UsageError


def size_of_epoch(sizes: Sequence[int], epoch: int, num_epochs: int | None) -> int:
    """Returns the size of an epoch's training images: each size has an equal share of the epochs.

    Args:
        sizes: In their order, in pixels.
        epoch: From 0.
        num_epochs: Of the run; None or negative if nobody knows.

    Raises:
        UsageError: If there are not as many epochs as sizes.
    """
    if num_epochs is None or num_epochs < len(sizes):
        are_known = num_epochs is not None and num_epochs > 0
        reason = f"needs {len(sizes)} epochs, and there are {num_epochs}" if are_known else "needs to know the epochs"
        raise UsageError("image_sizes", sizes, reason, f"give `max_epochs={len(sizes)}` or more")
    return sizes[min(epoch * len(sizes) // num_epochs, len(sizes) - 1)]


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Returns images `(N, C, size, size)` uint8 of `(N, C, S, S)` uint8, averaged where they shrink."""
    if images.shape[-1] == size:
        return images
    if images.device.type == "cpu":
        return interpolate(images, (size, size), mode="bilinear", antialias=True)
    # On other devices only of floating-point numbers.
    return interpolate(images.float(), (size, size), mode="bilinear", antialias=True).round().clamp(0, 255).byte()


def resized_for(batch: Any, trainer: Any, sizes: Sequence[int] | None) -> Any:
    """Returns a batch with its images as large as the trainer's epoch is to have them; only training's are resized.

    The size is a function of the epoch, so a run that is gone on with has the same.

    Raises:
        UsageError: See `size_of_epoch`.
    """
    if not sizes or not trainer.training:
        return batch
    images, labels = batch
    return resized(images, size_of_epoch(sizes, trainer.current_epoch, trainer.max_epochs)), labels
