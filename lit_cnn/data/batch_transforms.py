"""What `TrainTransform` makes of images in memory, made of a whole batch at once, where transforms only move pixels.

To flip or crop a small image takes a microsecond, and albumentations' calls around that ten. Here a flip or a crop is
an index into the batch. Each image has the draws of its own key, in the order in which albumentations takes them: what
comes out is the same, bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lit_cnn.core.randomness import first_uniforms
from lit_cnn.data.transform_check import wrong_size
from lit_cnn.data.transforms import TrainTransform

Draws = Iterator[np.ndarray]
"""The draws that are still to be taken, each `(N,)` in [0, 1): one for each image."""


def slow_step(transform: TrainTransform) -> str | None:
    """Returns the name of the first transform that `BatchTransform` cannot do, or None if it can do them all."""
    return next((type(step).__name__ for step in transform.steps if not _can_move(step)), None)


class BatchTransform:
    """Crop and augmentation of a batch of images of one size, each drawn from its key alone.

    Args:
        transform: What happens to an image; its `slow_step` must be None.
    """

    def __init__(self, transform: TrainTransform) -> None:
        self._transform = transform
        self._steps = [step for step in transform.steps if step.p > 0]

    def __call__(self, images: np.ndarray, keys: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Returns the `(N, S, S, C)` uint8 views of `(N, H, W, C)` uint8 images that belong to the keys, one each.

        The images given are overwritten.
        """
        size, resize = self._transform.size, self._transform.resize
        if resize(images[0]).shape != images.shape[1:]:
            images = np.stack([resize(image) for image in images])
        most = sum((step.p < 1) + _OWN_DRAWS.get(type(step).__name__, 0) for step in self._steps)
        # The first is Compose's own: it draws to learn whether to do anything at all.
        draws = iter(first_uniforms("augment", keys, 1 + most).T[1:] if most else ())
        for step in self._steps:
            images = _MOVES[type(step).__name__](step, images, draws)
        if images.shape[1:3] != (size, size):
            raise wrong_size(", ".join(type(step).__name__ for step in self._steps), images[0], size)
        return np.ascontiguousarray(images)


def _can_move(step: Any) -> bool:
    name = type(step).__name__
    if not type(step).__module__.startswith("albumentations.") or name not in _MOVES:
        return False
    if name in ("HorizontalFlip", "VerticalFlip"):
        return True
    # Where some images are cropped and some not, no batch of one size comes of it; a random position is an integer
    # drawn in albumentations' own way.
    return (step.p <= 0 or step.p >= 1) and "random" not in (
        getattr(step, "position", ""),
        getattr(step, "pad_position", ""),
    )


def _flip(step: Any, images: np.ndarray, draws: Draws, flipped: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    if step.p >= 1:
        return flipped(images)
    chosen = next(draws) < step.p
    if chosen.any():
        images[chosen] = flipped(images[chosen])
    return images


def _mirrored(images: np.ndarray) -> np.ndarray:
    # The rows of all images make one tall picture: OpenCV mirrors one of three channels 20 times as fast as NumPy.
    rows = np.ascontiguousarray(images).reshape(-1, *images.shape[2:])
    return cv2.flip(rows, 1).reshape(images.shape)


def _pad(step: Any, images: np.ndarray, draws: Draws) -> np.ndarray:
    return _padded(step, images, step.get_params_dependent_on_data({"shape": images.shape[1:]}, {}))


def _crop(step: Any, images: np.ndarray, draws: Draws) -> np.ndarray:
    found = step.get_params_dependent_on_data({"shape": images.shape[1:]}, {})  # raises if the crop is the larger
    if found["pad_params"]:
        images = _padded(step, images, found["pad_params"])
    count, height, width, channels = images.shape
    if type(step).__name__ == "CenterCrop":
        left, top, right, bottom = found["crop_coords"]
        return images[:, top:bottom, left:right]
    tops = ((height - step.height + 1) * next(draws)).astype(np.int64)
    lefts = ((width - step.width + 1) * next(draws)).astype(np.int64)
    # Every window there is, as rows of bytes: the copy runs along them.
    rows = np.ascontiguousarray(images).reshape(count, height, width * channels)
    windows = sliding_window_view(rows, (step.height, step.width * channels), axis=(1, 2))
    return windows[np.arange(count), tops, lefts * channels].reshape(count, step.height, step.width, channels)


def _padded(step: Any, images: np.ndarray, pads: dict[str, int]) -> np.ndarray:
    from albumentations.augmentations.geometric.functional import pad_with_params

    count, height, width, channels = images.shape
    top, bottom, left, right = (pads[f"pad_{side}"] for side in ("top", "bottom", "left", "right"))
    if step.border_mode != cv2.BORDER_CONSTANT:
        rows = [cv2.borderInterpolate(row, height, step.border_mode) for row in range(-top, height + bottom)]
        columns = [cv2.borderInterpolate(column, width, step.border_mode) for column in range(-left, width + right)]
        return images[:, rows][:, :, columns]
    frame = pad_with_params(np.ascontiguousarray(images[0]), top, bottom, left, right, step.border_mode, step.fill)
    padded = np.empty((count, *frame.shape[:2], channels), np.uint8)
    padded[:] = frame.reshape(padded.shape[1:])
    padded[:, top : top + height, left : left + width] = images
    return padded


_MOVES: dict[str, Callable[[Any, np.ndarray, Draws], np.ndarray]] = {
    "CenterCrop": _crop,
    "HorizontalFlip": lambda step, images, draws: _flip(step, images, draws, _mirrored),
    "Pad": _pad,
    "PadIfNeeded": _pad,
    "RandomCrop": _crop,
    "VerticalFlip": lambda step, images, draws: _flip(step, images, draws, lambda some: np.flip(some, axis=1)),
}
_OWN_DRAWS = {"RandomCrop": 2}
