"""What augmentation makes of the training images, as one picture."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from lit_cnn.core.errors import at_least
from lit_cnn.core.files import replace_atomically
from lit_cnn.core.fonts import FONT_SIZE, LINE_HEIGHT, class_labels, draw_text, note_on_labels, text_width
from lit_cnn.core.resize import resize_and_center_crop
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.image_set import EncodedImages

_LEAST_CELL = 96  # pixels; smaller images are enlarged by a whole number
_GAP, _HEADER = 4, 18  # pixels


def preview(data: ImageDataModule, num_images: int = 8, num_draws: int = 7) -> np.ndarray:
    """Draws training images and their augmentations; the same picture for the same seed.

    Args:
        data: The images and what happens to them.
        num_images: Rows: training images, spread evenly over the classes.
        num_draws: Columns after the first: what an image becomes in epoch 1, 2 and so on.

    Returns:
        `(H, W, 3)` uint8. A row has the class name, the image as validation sees it, then the draws.

    Raises:
        UsageError: If a number is below 1, or the images are not there.
    """
    at_least(1, num_images=num_images, num_draws=num_draws)
    images, train, labels = data.train_images(), data.splits.train, data.image_set.labels
    rows, names, period = [], [], data.views or num_draws
    class_names = class_labels(data.class_names, longest=48)
    if isinstance(images.images, EncodedImages) and not images.reduced_decode:
        images.images = _LastDecoded(images.images)
        images.prepared = images.prepared and _LastDecoded(images.prepared)
    for position in _spread_over_classes(labels[train], num_images):
        image = images.images[train[position]]
        original = resize_and_center_crop(image, data.image_size, data.interpolation, data.crop_pct)
        draws, _ = images.__getitems__([(epoch % period, position) for epoch in range(num_draws)])
        rows.append([original, *draws.permute(0, 2, 3, 1).numpy()])
        names.append(class_names[labels[train[position]]])
    titles = ["original", *(f"epoch {epoch + 1}" for epoch in range(num_draws))]
    return _compose(rows, names, titles, note_on_labels(data.class_names, class_names))


def write_png(file: Path, picture: np.ndarray) -> None:
    """Writes an `(H, W, 3)` uint8 picture; whole, or not at all."""
    with replace_atomically(file) as temporary:
        Image.fromarray(picture).save(temporary, format="png")


class _LastDecoded(Sequence[np.ndarray]):
    """Images of which the last one stays decoded: all draws of an image are of one decoding."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._images = images
        self._last: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        if self._last is None or self._last[0] != int(index):
            self._last = (int(index), self._images[int(index)])
        return self._last[1].copy()


def _spread_over_classes(labels: np.ndarray, count: int) -> list[int]:
    """Returns places in `(n,)` labels, one of each class in turn, in their order."""
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    longest = max(map(len, by_class))
    in_turn = [own[place] for place in range(longest) for own in by_class if place < len(own)]
    return [int(place) for place in in_turn[:count]]


def _compose(
    rows: Sequence[Sequence[np.ndarray]], names: Sequence[str], titles: Sequence[str], note: str
) -> np.ndarray:
    size = rows[0][0].shape[0]
    factor = max(1, -(-_LEAST_CELL // size))
    step = size * factor + _GAP
    margin = _GAP + math.ceil(max(map(text_width, names))) + _GAP
    height, width = _HEADER + step * len(rows), margin + step * len(titles)
    notes = textwrap.wrap(note, width // FONT_SIZE, break_on_hyphens=False)
    picture = np.full((height + LINE_HEIGHT * len(notes), width, 3), 255, np.uint8)
    for row, views in enumerate(rows):
        for column, view in enumerate(views):
            cell = cv2.resize(view, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
            cell = cell.reshape(size * factor, size * factor, -1)
            top, left = _HEADER + step * row, margin + step * column
            picture[top : top + size * factor, left : left + size * factor] = cell
    image = Image.fromarray(picture)
    for row, name in enumerate(names):
        draw_text(image, _GAP, _HEADER + step * row + step // 2, name)
    for column, title in enumerate(titles):
        draw_text(image, margin + step * column, _HEADER // 2, title)
    for line, text in enumerate(notes):
        draw_text(image, _GAP, height + LINE_HEIGHT * line + LINE_HEIGHT // 2, text)
    return np.asarray(image)
