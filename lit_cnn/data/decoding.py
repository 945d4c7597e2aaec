"""From a file's bytes to an (H, W, C) uint8 array: one rule for every format and every source."""

import io
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, features

from lit_cnn.core.errors import UsageError
from lit_cnn.core.words import counted
from lit_cnn.data.file_kinds import CONVERT, HAS_HEIF, HEAD_BYTES, TIFF, kind_of_bytes, looks_like_tga
from lit_cnn.data.pixel_values import (
    AS_IS,
    PixelOptions,
    UnsupportedPixelsError,
    as_8_bit,
    check_kind,
    on_background,
)

if HAS_HEIF:
    import pi_heif

    pi_heif.register_heif_opener(thumbnails=False)

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "PPM", "GIF", "JPEG2000", *(["HEIF"] if HAS_HEIF else []))
"""What is opened, whatever a file is called. Pillow knows more, and runs Ghostscript on what is PostScript."""
_USUAL_PIXELS = "save it with 1 or 3 channels of 8 or 16 bits"
_MEMORY = {"JPEG2000": 5}  # times as many bytes a pixel while it is decoded as others take
MAX_PIXELS = 89_478_485  # Pillow's: a quarter of a gigabyte as RGB


class TooManyPixelsError(ValueError):
    """An image has more pixels than are allowed."""


# Pillow itself warns above its limit and refuses above twice that; here both are refused.
TOO_MANY_PIXELS = (TooManyPixelsError, Image.DecompressionBombError, Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    RuntimeError,  # AVIF's
    struct.error,
    UnidentifiedImageError,
    *TOO_MANY_PIXELS,
)
"""What Pillow raises for files that are damaged, of another kind, or too large."""


def read_image(path: Path, in_channels: int, options: PixelOptions = AS_IS) -> np.ndarray:
    """Decodes one image file; see `decode_file`.

    Args:
        path: A file of one of `FORMATS`.
        in_channels: 1 (gray) or 3 (RGB).
        options: As for `decode_file`.

    Returns:
        `(H, W, in_channels)` uint8.

    Raises:
        UsageError: If the file cannot be read, is truncated, no image, or of floating-point or 32-bit pixels; the
            message names it.
    """
    with open_file(path) as file:
        return decode_file(file, in_channels, str(path), options=options)


class PathElsewhere(PurePosixPath):
    """The path of a file that is on no disk of this machine; `open_file` opens it like any other.

    Attributes:
        open_there: Opens it for reading.
    """

    open_there: Callable[[], BinaryIO]


def open_file(path: Path | str) -> BinaryIO:
    """Opens a file of images for reading.

    Raises:
        UsageError: If it is not there or cannot be read; the message names it.
    """
    if isinstance(path, PathElsewhere):
        return path.open_there()
    try:
        return open(path, "rb")
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(None, path, f"cannot be read ({reason})", "make it readable, or take it away") from error


def decode_image(content: bytes, in_channels: int, name: str, options: PixelOptions = AS_IS) -> np.ndarray:
    """Decodes an image held in memory; see `decode_file`.

    Args:
        content: The bytes of a file of one of `FORMATS`.
        in_channels: 1 (gray) or 3 (RGB).
        name: What an error calls it.
        options: As for `decode_file`.

    Returns:
        `(H, W, in_channels)` uint8.

    Raises:
        UsageError: As for `decode_file`.
    """
    return decode_file(io.BytesIO(content), in_channels, name, options=options)


def decode_file(
    file: BinaryIO,
    in_channels: int,
    name: str,
    reduction: Callable[[int, int], int] | None = None,
    options: PixelOptions = AS_IS,
) -> np.ndarray:
    """Decodes an image: upright, 8 bits a channel, gray or RGB.

    The orientation in EXIF is applied. Of an animation or a file of several pages, the first image counts. Sixteen bits
    are scaled to eight, not clipped. Transparency is dropped and the colour under it kept, as `PIL.Image.convert` and
    torchvision do: what a fully transparent pixel shows is up to the program that wrote it. The options say otherwise
    of both. CMYK and palettes become RGB; colour profiles are passed over.

    Args:
        file: The file, of one of `FORMATS`.
        in_channels: 1 (gray, Rec. 601 luma) or 3 (RGB).
        name: What an error calls it.
        reduction: From an image's height and width to 1, 2, 4 or 8: how many times smaller it may be decoded. Colour
            JPEGs that stand upright are; it saves most of the work. Others keep their size.
        options: What values of more than 8 bits, and transparent pixels, become.

    Returns:
        `(H, W, in_channels)` uint8.

    Raises:
        UsageError: If the file is truncated, no image, of more pixels than `limit_pixels` allows, or of floating-point
            or 32-bit pixels without a `pixel_range`; the message names it.
    """
    try:
        with open_image(file) as image:
            check_pixels(image, options)
            factor = reduction(image.height, image.width) if reduction else 1
            is_jpeg = image.format == "JPEG" and in_channels == 3  # to look for EXIF decodes a PNG
            if is_jpeg and not _is_turned(image) and (pixels := _jpeg_pixels(image, factor)) is not None:
                return pixels
            return to_pixels(image, in_channels, options)
    except DECODING_ERRORS as error:
        reason, way_out = " ".join(str(error).split()), "mend it or take it away"
        if isinstance(error, TOO_MANY_PIXELS):
            why = f", {error}" if isinstance(error, TooManyPixelsError) and str(error) else ""
            reason = f"it has more pixels than `max_pixels={pixel_limit()}`{why}"
        elif isinstance(error, UnidentifiedImageError):
            _, reason, way_out = why_unidentified(file)
        elif isinstance(error, UnsupportedPixelsError):
            reason, _, way_out = reason.partition(": ")
        raise UsageError(None, name, f"this image cannot be decoded ({reason})", way_out) from error


def open_image(file: BinaryIO) -> Image.Image:
    """Opens an image of one of `FORMATS`, or a TGA, with Pillow, which reads its header.

    Raises:
        UnidentifiedImageError: If it is neither.
    """
    # A TGA has no mark: of many a file that is none, Pillow would make one.
    is_tga = looks_like_tga(file.read(HEAD_BYTES))
    file.seek(0)
    return Image.open(file, formats=("TGA",) if is_tga else FORMATS)


class Unidentified(NamedTuple):
    """What `open_image` did not open: the fault as `Inspection` has it, what it is in words, and the way out."""

    fault: str
    what: str
    way_out: str


def why_unidentified(file: BinaryIO) -> Unidentified:
    """Says what a file is that `open_image` did not open."""
    file.seek(0)
    kind = kind_of_bytes(file.read(HEAD_BYTES))
    if kind == TIFF and (pixels := _pixels_of_tiff(file)):
        return Unidentified("unsupported_pixels", f"it is a TIFF of {pixels}", _USUAL_PIXELS)
    if kind.name == "AVIF" and not features.check("avif"):
        return Unidentified("unread_format", "it is AVIF, and the installed Pillow was built without it", CONVERT)
    if kind.family == "read":
        what = f"it begins as {kind.name} and is damaged, or of a variant that is not read"
        return Unidentified("damaged", what, f"copy it again, or {CONVERT}")
    fault = {"unread": "unread_format", "pointer": "pointer"}.get(kind.family, "not_an_image")
    return Unidentified(fault, f"it is {kind.name}", kind.way_out or "take it away")


def _pixels_of_tiff(file: BinaryIO) -> str:
    """Says of which unusual pixels a TIFF is: `5 channels of 8 bits`; nothing if they are usual."""
    try:
        file.seek(0)
        start = file.read(8)
        start += file.read(8) if start[2] == 43 else b""  # BigTIFF
        tags = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        channels = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0]
        kind = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]
        words = {2: ", signed", 3: ", floating-point", 5: ", complex", 6: ", complex"}.get(kind, "")
        is_usual = channels in (1, 3, 4) and bits in (1, 2, 4, 8, 16) and not words
        return "" if is_usual else f"{counted(channels, 'channel')} of {bits} bits{words}"
    except (*DECODING_ERRORS, TypeError, KeyError, IndexError):
        return ""


def limit_pixels(max_pixels: int) -> None:
    """Says how many pixels an image may have: one of more is refused before it fills the memory.

    The limit is Pillow's own (`PIL.Image.MAX_IMAGE_PIXELS`), so it holds for all that this process and the workers
    forked from it decode, torchvision's data sets included.
    """
    Image.MAX_IMAGE_PIXELS = max_pixels


def pixel_limit() -> int:
    """Returns how many pixels an image may have."""
    return Image.MAX_IMAGE_PIXELS or sys.maxsize


def check_pixels(image: Image.Image, options: PixelOptions = AS_IS) -> None:
    """Refuses an image that has been opened, but not decoded, for its number or kind of pixels.

    Raises:
        ValueError: With the reason.
    """
    if counted_pixels(image.width, image.height, image.format) > pixel_limit():
        times = _MEMORY.get(image.format or "")
        raise TooManyPixelsError(f"{image.format} counts {times} times for its memory" if times else "")
    check_kind(image, options)


def counted_pixels(width: int, height: int, file_format: str | None) -> int:
    """Returns how many pixels count against the limit: several for one of a format that takes much memory."""
    return width * height * _MEMORY.get(file_format or "", 1)


def to_pixels(image: Image.Image, in_channels: int, options: PixelOptions = AS_IS) -> np.ndarray:
    """Returns an image of Pillow as `(H, W, in_channels)` uint8; see `decode_file`."""
    shown = on_background(as_8_bit(image, options.pixel_range), options.background)
    if shown is not image and _is_turned(image):
        shown.getexif()[ExifTags.Base.Orientation] = image.getexif()[ExifTags.Base.Orientation]
    return to_array(upright(shown), in_channels)


def upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF orientation says."""
    # exif_transpose copies whatever it does not turn.
    return ImageOps.exif_transpose(image) if _is_turned(image) else image


def _is_turned(image: Image.Image) -> bool:
    return bool(image.getexif().get(ExifTags.Base.Orientation, 1) != 1)


def to_array(image: Image.Image, in_channels: int) -> np.ndarray:
    """Returns a decoded image of at most 8 bits a channel as `(H, W, in_channels)` uint8."""
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the colours are the same either way; from a palette Pillow would warn
    if image.mode == "LAB":
        image = image.convert("RGB")  # there is no other way to gray
    mode = "L" if in_channels == 1 else "RGB"
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    return array[..., None] if array.ndim == 2 else array


def _jpeg_pixels(file: Image.Image, factor: int) -> np.ndarray | None:
    """Returns the `(H, W, 3)` uint8 pixels of a colour JPEG without a fault; None leaves the file to Pillow.

    Both sides are divided by the factor and rounded up. simplejpeg gives the same pixels as Pillow in two thirds of the
    time, and refuses what is damaged; but only Pillow says how.
    """
    if file.mode != "RGB":
        return None
    stream: BinaryIO = file.fp  # type: ignore[attr-defined]
    stream.seek(0)
    try:
        return simplejpeg.decode_jpeg(
            stream.read(), min_height=-(-file.height // factor), min_width=-(-file.width // factor), min_factor=factor
        )
    except ValueError:
        return None
