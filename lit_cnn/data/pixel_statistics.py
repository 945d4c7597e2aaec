"""Mean, standard deviation and RGB covariance of many images, in one pass that holds one batch at a time."""

import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lit_cnn.core.file_hashes import default_cache_file
from lit_cnn.core.files import write_text_atomically
from lit_cnn.data.image_set import ArrayImages, ImageSet
from lit_cnn.data.pixel_values import AS_IS, PixelOptions

_VERSION = 1  # raised when the same images would give other figures


@dataclass(frozen=True)
class PixelStatistics:
    """Statistics over all pixels of all images, pixels in [0, 1].

    Attributes:
        num_images: How many images were measured.
        mean: Of each channel.
        covariance: `(C, C)` between the channels; divided by the number of pixels.
    """

    num_images: int
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel."""
        return tuple(math.sqrt(max(0.0, row[channel])) for channel, row in enumerate(self.covariance))


def measure_pixels(batches: Iterable[np.ndarray]) -> PixelStatistics:
    """Measures images batch by batch; the result does not depend on how they are batched or ordered, to the last bit.

    Args:
        batches: Images `(N, H, W, C)`, uint8; sizes may differ between batches.

    Raises:
        ValueError: If there are no images.
    """
    num_images = num_pixels = 0
    sums: list[int] = []
    products: list[list[int]] = []
    for batch in batches:
        # Sums of whole numbers, exact in float64 up to 2**53 and here as Python's integers beyond.
        pixels = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
        own_sums, own_products = pixels.sum(0), pixels.T @ pixels
        if not sums:
            sums, products = [0] * len(own_sums), [[0] * len(own_sums) for _ in own_sums]
        num_images, num_pixels = num_images + len(batch), num_pixels + len(pixels)
        for channel, row in enumerate(own_products):
            sums[channel] += int(own_sums[channel])
            products[channel] = [total + int(own) for total, own in zip(products[channel], row, strict=True)]
    if not num_images:
        raise ValueError("measure_pixels: give at least one image")
    squares = 255**2 * num_pixels**2
    return PixelStatistics(
        num_images=num_images,
        mean=tuple(total / (255 * num_pixels) for total in sums),
        covariance=tuple(
            tuple((num_pixels * product - a * b) / squares for product, b in zip(row, sums, strict=True))
            for row, a in zip(products, sums, strict=True)
        ),
    )


def statistics_of(
    image_set: ImageSet,
    indices: np.ndarray,
    image_size: int,
    interpolation: str,
    crop_pct: float,
    pixels: PixelOptions,
    loader: Callable[[], Any],
) -> PixelStatistics:
    """Returns the statistics of images: in memory as they are, from files as validation sees them; remembered.

    Args:
        image_set: The images.
        indices: `(n,)` which of them.
        image_size: Pixels of the square that validation sees.
        interpolation: How it is resized.
        crop_pct: Share of the shorter side that it sees.
        pixels: What values of more than 8 bits, and transparent pixels, become.
        loader: Makes a loader of what validation sees of these images.
    """
    images = image_set.images
    if isinstance(images, ArrayImages):
        parts = np.array_split(np.sort(indices), -(-len(indices) // 4096))
        return measure_pixels(images.array[part] for part in parts)
    view = [str(crop_pct)] if crop_pct != 1 else []
    view += [str(pixels)] if pixels != AS_IS else []
    key: tuple[str | int, ...] = (image_set.digest_of(indices), image_set.in_channels, image_size)
    return remembered((*key, interpolation, *view), loader)


def remembered(key: Sequence[str | int], loader: Callable[[], Any]) -> PixelStatistics:
    """Returns what is kept under a key; else measures batches of images, and keeps that.

    Args:
        key: See `cached`.
        loader: Makes a loader of images `(N, C, S, S)` uint8 with labels.
    """
    if (statistics := cached(key)) is None:
        batches = loader()
        shown = tqdm(batches, desc="measuring pixels", unit="batch", file=sys.stderr, disable=len(batches) < 10 or None)
        statistics = measure_pixels(views.permute(0, 2, 3, 1).numpy() for views, _ in shown)
        keep(key, statistics)
    return statistics


def cached(key: Iterable[str | int], folder: Path | None = None) -> PixelStatistics | None:
    """Returns what was kept under a key, or None.

    Args:
        key: Everything that the statistics depend on: the images' digest, their size and so on.
        folder: Where they are kept; by default `lit_cnn/pixel_statistics` in the user's cache folder.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(_file(key, folder).read_text(encoding="utf-8"))
        covariance = tuple(tuple(map(float, row)) for row in found["covariance"])
        return PixelStatistics(int(found["num_images"]), tuple(map(float, found["mean"])), covariance)
    return None


def keep(key: Iterable[str | int], statistics: PixelStatistics, folder: Path | None = None) -> None:
    """Keeps statistics under a key; see `cached`. A cache that cannot be written costs another pass, nothing else."""
    with contextlib.suppress(OSError):
        write_text_atomically(_file(key, folder), json.dumps(asdict(statistics)))


def _file(key: Iterable[str | int], folder: Path | None) -> Path:
    digest = hashlib.sha256("\n".join(map(str, (_VERSION, *key))).encode()).hexdigest()
    return (folder or default_cache_file().parent / "pixel_statistics") / f"{digest}.json"
