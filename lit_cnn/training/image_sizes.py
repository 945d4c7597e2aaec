"""Training images that grow from epoch to epoch: fewer pixels for about the same accuracy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import interpolate

from lit_cnn.core.errors import UsageError


def size_of_epoch(sizes: Sequence[int], epoch: int, num_epochs: int) -> int:
    """Returns the size of an epoch's training images: each size has an equal share of the epochs.

    Args:
        sizes: In their order, in pixels.
        epoch: From 0.
        num_epochs: Of the run.
    """
    return sizes[min(epoch * len(sizes) // num_epochs, len(sizes) - 1)]


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Returns images `(N, C, size, size)` uint8 of `(N, C, S, S)` uint8, averaged where they shrink."""
    if images.shape[-1] == size:
        return images
    if images.device.type == "cpu":
        return interpolate(images, (size, size), mode="bilinear", antialias=True)
    # On other devices only of floating-point numbers.
    return interpolate(images.float(), (size, size), mode="bilinear", antialias=True).round().clamp(0, 255).byte()


def check_image_sizes(data: Any, hparams: Any, max_epochs: int | None) -> None:
    """Refuses sizes that a run cannot go through.

    Args:
        data: The data module.
        hparams: The classifier's.
        max_epochs: Of the run.

    Raises:
        UsageError: If there are no more epochs than sizes, or the network trains otherwise than in epochs of images.
    """
    sizes = data.options["image_sizes"]
    if not sizes:
        return
    if hparams["head_solver"] == "lbfgs":
        reason = "a head that lbfgs solves for sees its images once"
        raise UsageError("image_sizes", sizes, reason, "leave it out")
    if max(sizes) > data.image_size:
        raise UsageError("image_sizes", sizes, f"are to be at most `image_size={data.image_size}`", "give smaller ones")
    if max_epochs is None or max_epochs < len(sizes):
        are_known = max_epochs is not None and max_epochs > 0
        reason = f"needs {len(sizes)} epochs, and there are {max_epochs}" if are_known else "needs to know the epochs"
        raise UsageError("image_sizes", sizes, reason, f"give `max_epochs={len(sizes)}` or more")
