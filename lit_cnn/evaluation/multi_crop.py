"""Views of an image at test time, and the mean of the predictions for them."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.resize import Interpolation, center_crop, resize_and_center_crop, resize_shorter_side


class Block(NamedTuple):
    """Views of an image that are cut together; a number of views is one block or two.

    Attributes:
        cut: `center`, `corners` or `scales`: see `views_of` for 1, 5 and 144 views.
        mirrored: Whether each is mirrored horizontally.
    """

    cut: str
    mirrored: bool

    @property
    def num_views(self) -> int:
        """Views in this block."""
        return {"center": 1, "corners": 5, "scales": 72}[self.cut]


def views_of(
    image: np.ndarray, size: int, num_views: int, interpolation: Interpolation = "area", crop_pct: float = 1.0
) -> np.ndarray:
    """Cuts the views of one image that a network classifies.

    - 1: the validation view: shorter side to round(S / crop_pct), central square.
    - 2: the validation view and its horizontal mirror.
    - 5: shorter side to round(S / crop_pct); the S x S corners top left, top right, bottom left, bottom right, then
      the centre, which is the validation view. A network that was trained on whole images, with a crop_pct of 1, would
      see five times the same: there it is 224 / 256, and objects are larger than in training.
    - 10: those five, then the horizontal mirror of each in the same order (Krizhevsky et al. 2012, section 4.1, who
      cut them from a 256 x 256 square; here, as in Szegedy et al. 2014, section 7, the image keeps its aspect ratio).
    - 144: that shorter side times s / 256 for s = 256, 288, 320, 352; of each the left, central and right square, or
      top, central and bottom; of each square the four corners and the centre as above, S x S, then the whole square
      resized to S x S; after these 72 the mirror of each (Szegedy et al. 2014, section 7). The three squares of a
      square image are one: of its 144 views 48 are distinct.

    Args:
        image: `(H, W, C)` uint8 of any size; smaller ones are enlarged.
        size: S, pixels of the square that the network takes.
        num_views: V, one of `VIEWS`.
        interpolation: See `lit_cnn.core.resize.resize_shorter_side`.
        crop_pct: Share of the shorter side that the validation view shows, in (0, 1].

    Returns:
        `(V, S, S, C)` uint8, contiguous.

    Raises:
        UsageError: If the number of views is not known.
    """
    if num_views not in VIEWS:
        raise UsageError("views", num_views, f"known numbers of crops are {', '.join(map(str, VIEWS))}")
    return blocks_of(image, size, VIEWS[num_views], interpolation, crop_pct)


def blocks_of(
    image: np.ndarray, size: int, blocks: Sequence[Block], interpolation: Interpolation, crop_pct: float
) -> np.ndarray:
    """Cuts the views of several blocks, each cut once: `(V, S, S, C)` uint8, contiguous, block after block."""
    # A mirrored block needs the same resized images as the other.
    views = {cut: _CUTS[cut](image, size, interpolation, crop_pct) for cut in {block.cut for block in blocks}}
    parts = [views[block.cut][:, :, ::-1] if block.mirrored else views[block.cut] for block in blocks]
    return np.concatenate(parts)


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
        raise UsageError(None, None, "logits hold NaN or infinity: this network has diverged", "leave it out")
    total = np.zeros(logits.shape[1:], dtype=np.float64)
    for of_view in logits:  # one at a time: in float64 all views may not fit into memory
        total += softmax(of_view.astype(np.float64), axis=-1)
    return total / len(logits)


def _center(image: np.ndarray, size: int, interpolation: Interpolation, crop_pct: float) -> np.ndarray:
    return resize_and_center_crop(image, size, interpolation, crop_pct)[None]


def _corners(image: np.ndarray, size: int, interpolation: Interpolation, crop_pct: float) -> np.ndarray:
    return np.stack(_five(resize_shorter_side(image, round(size / _share_of_crop(crop_pct)), interpolation), size))


def _scales(image: np.ndarray, size: int, interpolation: Interpolation, crop_pct: float) -> np.ndarray:
    views = []
    for scale in (256, 288, 320, 352):
        side = round(size * scale / (256 * _share_of_crop(crop_pct)))
        resized = resize_shorter_side(image, side, interpolation)
        # One of the two sides is the shorter one: on it all three squares begin at 0.
        for square in (resized[:side, :side], center_crop(resized, side), resized[-side:, -side:]):
            views += [*_five(square, size), resize_shorter_side(square, size, interpolation)]
    return np.stack(views)


def _share_of_crop(crop_pct: float) -> float:
    """Returns how much of the shorter side a crop shows: of the whole there would be but one."""
    return crop_pct if crop_pct < 1 else 224 / 256


def _five(image: np.ndarray, size: int) -> list[np.ndarray]:
    top_left, top_right = image[:size, :size], image[:size, -size:]
    bottom_left, bottom_right = image[-size:, :size], image[-size:, -size:]
    return [top_left, top_right, bottom_left, bottom_right, center_crop(image, size)]


_CUTS: Mapping[str, Callable[[np.ndarray, int, Interpolation, float], np.ndarray]] = MappingProxyType(
    {"center": _center, "corners": _corners, "scales": _scales}
)

VIEWS: Mapping[int, tuple[Block, ...]] = MappingProxyType(
    {
        1: (Block("center", False),),
        2: (Block("center", False), Block("center", True)),
        5: (Block("corners", False),),
        10: (Block("corners", False), Block("corners", True)),
        144: (Block("scales", False), Block("scales", True)),
    }
)
"""The known numbers of views and their blocks: 1 is the first of 2, and 5 are the first of 10."""
