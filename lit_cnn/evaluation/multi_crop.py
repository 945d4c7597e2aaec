"""Views of an image at test time, and the mean of what a network says of them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from lit_cnn.errors import UsageError
from lit_cnn.transforms import Interpolation, center_crop, resize_and_center_crop, resize_shorter_side


def views_of(image: np.ndarray, size: int, num_views: int, interpolation: Interpolation = "area") -> np.ndarray:
    """Cuts the views of one image that a network is asked about.

    - 1: the validation view: shorter side to S, central square.
    - 2: the validation view and its horizontal mirror.
    - 5: shorter side to round(S * 256 / 224); the S x S corners top left, top right, bottom left, bottom right, then
      the centre.
    - 10: those five, then the horizontal mirror of each in the same order (Krizhevsky et al. 2012, section 4.1, who
      cut them from a 256 x 256 square; here, as in Szegedy et al. 2014, section 7, the image keeps its aspect ratio).

    Args:
        image: `(H, W, C)` uint8 of any size; smaller ones are enlarged.
        size: S, pixels of the square that the network takes.
        num_views: V, one of `VIEWS`.
        interpolation: See `lit_cnn.transforms.resize_shorter_side`.

    Returns:
        `(V, S, S, C)` uint8, contiguous.

    Raises:
        UsageError: If the number of views is not known.
    """
    if num_views not in VIEWS:
        raise UsageError(f"--views {num_views}: the known numbers of views are {', '.join(map(str, VIEWS))}")
    return VIEWS[num_views](image, size, interpolation)


def average_probabilities(logits: np.ndarray) -> np.ndarray:
    """Mean over views or members of the softmax of their logits (Krizhevsky et al. 2012, section 4.1).

    Args:
        logits: `(V, N, K)` or `(M, N, K)`: views or members, images, classes. A net's several views count as several
            members, `(M * V, N, K)`.

    Returns:
        `(N, K)` float64, rows sum to 1.

    Raises:
        UsageError: If a logit is not finite: argmax would take NaN for the largest.
    """
    from scipy.special import softmax

    if not np.isfinite(logits).all():
        raise UsageError("logits hold NaN or infinity: this network has diverged; leave it out")
    total = np.zeros(logits.shape[1:], dtype=np.float64)
    for of_view in logits:  # one at a time: ten views of 1,000 classes in float64 would not fit beside the logits
        total += softmax(of_view.astype(np.float64), axis=-1)
    return total / len(logits)


def _one(image: np.ndarray, size: int, interpolation: Interpolation) -> np.ndarray:
    return np.ascontiguousarray(resize_and_center_crop(image, size, interpolation)[None])


def _five(image: np.ndarray, size: int, interpolation: Interpolation) -> np.ndarray:
    image = resize_shorter_side(image, round(size * 256 / 224), interpolation)
    top_left, top_right = image[:size, :size], image[:size, -size:]
    bottom_left, bottom_right = image[-size:, :size], image[-size:, -size:]
    return np.stack([top_left, top_right, bottom_left, bottom_right, center_crop(image, size)])


def _with_mirrors(views: np.ndarray) -> np.ndarray:
    return np.concatenate([views, views[:, :, ::-1]])


VIEWS: Mapping[int, Callable[[np.ndarray, int, Interpolation], np.ndarray]] = MappingProxyType(
    {
        1: _one,
        2: lambda *arguments: _with_mirrors(_one(*arguments)),
        5: _five,
        10: lambda *arguments: _with_mirrors(_five(*arguments)),
    }
)
"""The known numbers of views and what cuts them."""
