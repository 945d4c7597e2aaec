"""From an (H, W, C) uint8 image of any size to the square that validation sees."""

from typing import Literal

import cv2
import numpy as np

Interpolation = Literal["area", "bilinear", "bicubic"]
CV2_INTERPOLATION = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

LONGEST_SHAPE = 16
"""Times as long as wide: of a longer image the middle is shown."""


def resize_shorter_side(image: np.ndarray, size: int, interpolation: Interpolation) -> np.ndarray:
    """Scales an image so that its shorter side is `size` px, keeping its aspect ratio.

    Of an image more than 16 times as long as wide, the middle part of that shape is all that is kept: a line of a
    hundred thousand pixels would else take gigabytes.

    Args:
        image: `(H, W, C)` uint8.
        size: Pixels of the shorter side.
        interpolation: `area` averages when shrinking and is bilinear when enlarging.

    Returns:
        `(H', W', C)` uint8.
    """
    longest = LONGEST_SHAPE * min(image.shape[:2])
    image = center_crop(image, min(image.shape[0], longest), min(image.shape[1], longest))
    height, width, channels = image.shape
    shorter = min(height, width)
    if shorter == size:
        return image
    new_size = (max(size, round(width * size / shorter)), max(size, round(height * size / shorter)))
    method = cv2.INTER_LINEAR if interpolation == "area" and size > shorter else CV2_INTERPOLATION[interpolation]
    return cv2.resize(image, new_size, interpolation=method).reshape(new_size[1], new_size[0], channels)


def center_crop(image: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    """Cuts the middle `height` x `width` px, a square by default, out of an `(H, W, C)` image at least as large."""
    width = height if width is None else width
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def resize_and_center_crop(
    image: np.ndarray, size: int, interpolation: Interpolation = "area", crop_pct: float = 1.0
) -> np.ndarray:
    """The validation view: shorter side to round(S / crop_pct), then the central square.

    Args:
        image: `(H, W, C)` uint8.
        size: S, pixels of the square.
        interpolation: See `resize_shorter_side`.
        crop_pct: Share of the shorter side that the square shows, in (0, 1]; timm's name for it.

    Returns:
        `(S, S, C)` uint8.
    """
    return center_crop(resize_shorter_side(image, round(size / crop_pct), interpolation), size)
