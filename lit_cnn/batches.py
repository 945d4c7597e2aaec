"""Data sets whose items are whole batches, decoded and augmented in the worker process that was asked for them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from lit_cnn.datasets import ImageSet
from lit_cnn.sampling import Key
from lit_cnn.transforms import Interpolation, TrainTransform, resize_and_center_crop

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images `(N, C, S, S)` uint8 and labels `(N,)` int64."""


class TrainImages(Dataset[Batch]):
    """Augmented training images; `__getitems__` makes a whole batch at once, in a worker process.

    Args:
        image_set: All images.
        indices: `(n,)` the training images among them.
        transform: What happens to an image.
        seed: The training seed.
    """

    def __init__(self, image_set: ImageSet, indices: np.ndarray, transform: TrainTransform, seed: int) -> None:
        self.images = image_set.images
        self.labels = image_set.labels
        self.indices = indices
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Returns images `(N, C, S, S)` uint8 and labels `(N,)` int64 for (epoch, position) pairs."""
        num_images = len(self.indices)
        chosen = [int(self.indices[position % num_images]) for _, position in keys]
        # A balanced epoch asks for an image again as position + n: augmented by a key that belongs to no other image.
        views = [
            self.transform(self.images[index], self.seed, epoch, index + position // num_images * len(self.labels))
            for index, (epoch, position) in zip(chosen, keys, strict=True)
        ]
        return stack_images(views), torch.from_numpy(self.labels[chosen])


class EvalImages(Dataset[Batch]):
    """Images as validation sees them.

    Args:
        image_set: All images.
        indices: `(n,)` the images to give, in this order.
        size: S, pixels of the square.
        interpolation: How to resize.
    """

    def __init__(self, image_set: ImageSet, indices: np.ndarray, size: int, interpolation: Interpolation) -> None:
        self.images = image_set.images
        self.labels = image_set.labels
        self.indices = indices
        self.size = size
        self.interpolation = interpolation

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """Returns images `(N, C, S, S)` uint8 and labels `(N,)` int64."""
        chosen = self.indices[positions]
        views = [resize_and_center_crop(self.images[index], self.size, self.interpolation) for index in chosen]
        return stack_images(views), torch.from_numpy(self.labels[chosen])


def stack_images(views: Sequence[np.ndarray]) -> torch.Tensor:
    """Stacks `(S, S, C)` uint8 arrays to one contiguous `(N, C, S, S)` uint8 tensor."""
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()
