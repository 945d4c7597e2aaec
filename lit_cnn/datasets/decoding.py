"""From a file's bytes to an (H, W, C) uint8 array: one rule for every format and every source."""

import io
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from lit_cnn.errors import UsageError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".pgm", ".ppm", ".gif"})


def read_image(path: Path, in_channels: int) -> np.ndarray:
    """Decodes one image file; see `decode_image`.

    Args:
        path: Any file that Pillow reads.
        in_channels: 1 (gray) or 3 (RGB).

    Returns:
        `(H, W, in_channels)` uint8.

    Raises:
        UsageError: If the file is truncated, no image, or of floating-point or 32-bit pixels; the message names it.
    """
    return _decode(path, in_channels, str(path))


def decode_image(content: bytes, in_channels: int, name: str) -> np.ndarray:
    """Decodes an image held in memory: upright, 8 bits a channel, gray or RGB.

    The orientation in EXIF is applied. Of an animation or a file of several pages, the first image counts. Sixteen bits
    are scaled to eight, not clipped. Transparency is dropped and the colour under it kept, as `PIL.Image.convert` and
    torchvision do: what a fully transparent pixel shows is up to the program that wrote it. CMYK and palettes become
    RGB; colour profiles are passed over.

    Args:
        content: The bytes of a file that Pillow reads.
        in_channels: 1 (gray, Rec. 601 luma) or 3 (RGB).
        name: What an error calls it.

    Returns:
        `(H, W, in_channels)` uint8.

    Raises:
        UsageError: As for `read_image`.
    """
    return _decode(io.BytesIO(content), in_channels, name)


def to_array(image: Image.Image, in_channels: int) -> np.ndarray:
    """Returns a decoded image of at most 8 bits a channel as `(H, W, in_channels)` uint8."""
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the colours are the same either way; from a palette Pillow would warn
    array = np.asarray(image.convert("L" if in_channels == 1 else "RGB"))
    return array[..., None] if array.ndim == 2 else array


def _decode(source: Path | BinaryIO, in_channels: int, name: str) -> np.ndarray:
    try:
        with Image.open(source) as file:
            return to_array(_as_8_bit(ImageOps.exif_transpose(file), file.format), in_channels)
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        RuntimeError,  # AVIF's
        struct.error,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        reason = str(error)
        if name.lower().endswith(".avif") and not features.check("avif"):
            reason = "the installed Pillow was built without AVIF"
        raise UsageError(f"{name}: this image cannot be decoded ({reason}); mend it or take it away") from error


def _as_8_bit(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no range to scale from: save it with 8 or 16 bits a channel")
    if not image.mode.startswith("I"):
        return image  # Pillow has taken the high byte of 16-bit colour already
    if image.mode == "I" and file_format == "TIFF":
        raise ValueError("signed or 32-bit pixels have no range to scale from: save it with 8 or 16 bits a channel")
    # The high byte, as Pillow does for colour: a gray image and its copy in RGB come out alike. Its convert() clips.
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
