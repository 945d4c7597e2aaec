"""Which mean and standard deviation images are normalised with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lit_cnn.core.errors import UsageError
from lit_cnn.data.pixel_statistics import PixelStatistics

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Normalization:
    """What the user and the weights say about mean and standard deviation, per channel of pixels in [0, 1].

    Attributes:
        normalize: `train`, `imagenet`, or None for what suits the weights and the images.
        mean: Given by the user; wins.
        std: Given by the user; wins.
        expected_mean: What the weights that training starts from expect.
        expected_std: Likewise.
    """

    normalize: Literal["train", "imagenet"] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    expected_mean: Sequence[float] | None = None
    expected_std: Sequence[float] | None = None

    def given(self, option: Literal["mean", "std"], in_channels: int) -> list[float] | None:
        """Returns the user's own mean or standard deviation, None if there is none.

        Raises:
            UsageError: If it is not one number per channel, or a standard deviation is not above 0.
        """
        values = self.mean if option == "mean" else self.std
        if values is None:
            return None
        if option == "std" and min(values, default=1) <= 0:
            raise UsageError(option, str(values), "give numbers above 0")
        if len(values) != in_channels:
            raise UsageError(option, str(values), f"give {in_channels} numbers, one per channel")
        return list(values)

    def chosen(
        self, in_channels: int, in_memory: bool, measure: Callable[[], PixelStatistics]
    ) -> tuple[list[float], list[float]]:
        """Returns mean and standard deviation where the user gives none.

        Args:
            in_channels: Channels of the images.
            in_memory: Whether the images are in memory; those are measured by default, files are not.
            measure: Measures the training images.
        """
        if self.normalize is None and self.expected_mean and self.expected_std:
            return _for_channels(self.expected_mean, in_channels), _for_channels(self.expected_std, in_channels)
        if (self.normalize or ("train" if in_memory else "imagenet")) == "train":
            found = measure()
            # Images of one colour have a standard deviation of 0; dividing by 1 leaves them as they are.
            return [round(value, 6) for value in found.mean], [round(value, 6) or 1.0 for value in found.std]
        return _for_channels(IMAGENET_MEAN, in_channels), _for_channels(IMAGENET_STD, in_channels)


def _for_channels(values: Sequence[float], in_channels: int) -> list[float]:
    """Returns the values; for images of another number of channels their mean, for each."""
    return list(values) if len(values) == in_channels else [sum(values) / len(values)] * in_channels
