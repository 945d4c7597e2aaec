"""From a file's bytes to an (H, W, C) uint8 array: one rule for every format and every source."""

import io
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

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
    mode = "L" if in_channels == 1 else "RGB"
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array[..., None] if array.ndim == 2 else array


def _decode(source: Path | BinaryIO, in_channels: int, name: str) -> np.ndarray:
    try:
        with Image.open(source) as file:
            turned = file.getexif().get(ExifTags.Base.Orientation, 1) != 1
            if not turned and in_channels == 3 and (array := _jpeg_pixels(file)) is not None:
                return array
            # exif_transpose copies whatever it does not turn.
            upright = ImageOps.exif_transpose(file) if turned else file
            return to_array(_as_8_bit(upright, file.format), in_channels)
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


def _jpeg_pixels(file: Image.Image) -> np.ndarray | None:
    """Returns the `(H, W, 3)` uint8 pixels of a colour JPEG without a fault; None leaves the file to Pillow.

    simplejpeg gives the same pixels as Pillow in two thirds of the time, and refuses what is damaged; but only Pillow
    says how.
    """
    if file.format != "JPEG" or file.mode != "RGB":
        return None
    stream: BinaryIO = file.fp  # type: ignore[attr-defined]
    stream.seek(0)
    try:
        return simplejpeg.decode_jpeg(stream.read())
    except ValueError:
        return None


def _as_8_bit(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no range to scale from: save it with 8 or 16 bits a channel")
    if not image.mode.startswith("I"):
        return image  # Pillow has taken the high byte of 16-bit colour already
    if image.mode == "I" and file_format == "TIFF":
        raise ValueError("signed or 32-bit pixels have no range to scale from: save it with 8 or 16 bits a channel")
    # The high byte, as Pillow does for colour: a gray image and its copy in RGB come out alike. Its convert() clips.
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
