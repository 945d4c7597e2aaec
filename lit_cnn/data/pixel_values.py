"""What the values in an image file become: 8 bits where there are more, a colour where there is transparency."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageColor

from lit_cnn.core.errors import UsageError

_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # bands of colour by TIFF's PhotometricInterpretation
_BITS, _PHOTOMETRIC, _NUM_BANDS, _PLANAR, _EXTRA, _SAMPLE_FORMAT = 258, 262, 277, 284, 338, 339  # TIFF's tags
_PLAIN, _VARIED = 8, 64  # of 255: what is nearly one colour, and what differs
_MEASURED = 100_000  # pixels of an image that are looked at for its range


class UnsupportedPixelsError(ValueError):
    """An image's pixels are of a kind of which nothing says what is black and what is white."""


@dataclass(frozen=True)
class PixelOptions:
    """How values of image files become colours where a file alone does not say it.

    Attributes:
        pixel_range: The values that become 0 and 255, of pixels of more than 8 bits; None takes 16 bits by their high
            byte and refuses others.
        background: RGB from 0 to 255, what lies behind transparent pixels; None drops transparency and keeps the colour
            under it.
    """

    pixel_range: tuple[float, float] | None = None
    background: tuple[int, int, int] | None = None


AS_IS = PixelOptions()


def pixel_options(pixel_range: Sequence[float] | None, background: str | Sequence[int] | None) -> PixelOptions:
    """Returns the options that a user has given.

    Args:
        pixel_range: Two numbers, the lower first.
        background: A colour that Pillow knows by name, such as `white`, or three numbers from 0 to 255.

    Raises:
        UsageError: If they are something else.
    """
    scale: tuple[float, float] | None = None
    if pixel_range is not None:
        given = [float(value) for value in pixel_range]
        if len(given) != 2 or not all(map(math.isfinite, given)) or given[0] >= given[1]:
            raise UsageError("pixel_range", str(list(pixel_range)), "give two numbers, the lower first: [0,4095]")
        scale = (given[0], given[1])
    if background is not None:
        colour: Sequence[int] = ()
        with contextlib.suppress(ValueError):
            colour = ImageColor.getrgb(background)[:3] if isinstance(background, str) else tuple(background)
        if len(colour) != 3 or not all(isinstance(each, int) and 0 <= each <= 255 for each in colour):
            reason = "give a colour such as white or black, or three numbers from 0 to 255: [255,255,255]"
            raise UsageError("background", str(background), reason)
        return PixelOptions(scale, (colour[0], colour[1], colour[2]))
    return PixelOptions(scale)


def check_kind(image: Image.Image, options: PixelOptions) -> None:
    """Refuses an image that has been opened, but not decoded, for its kind of pixels.

    Raises:
        UnsupportedPixelsError: If nothing says what is black and what is white, or Pillow would read noise.
    """
    way_out = "save it with 8 or 16 bits a channel, or train with pixel_range"
    if options.pixel_range is None and image.mode == "F":
        raise UnsupportedPixelsError(f"floating-point pixels have no range to scale from: {way_out}")
    if options.pixel_range is None and image.mode == "I" and image.format == "TIFF":
        raise UnsupportedPixelsError(f"signed or 32-bit pixels have no range to scale from: {way_out}")
    tags = _tags(image)
    if 2 in tags.get(_SAMPLE_FORMAT, ()) and image.mode != "I":
        raise UnsupportedPixelsError("signed pixels of 8 bits are not read: save it with 8 or 16 bits a channel")
    if tags.get(_PLANAR) == 2 and max(tags.get(_BITS, (8,))) > 8 and tags.get(_NUM_BANDS, 1) > 1:
        raise UnsupportedPixelsError("16-bit colour in separate planes is not read right: save it pixel by pixel")


def full_scale(image: Image.Image) -> int:
    """Returns the value that is white in an image of more than 8 bits; of 16-bit colour only before it is decoded.

    Returns:
        Mostly 65535; 1 if nothing says it; 0 for an image of at most 8 bits a channel.
    """
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        return 1
    tiles: Any = getattr(image, "tile", None)  # what Pillow is about to decode, and how
    arguments = tiles[0][3] if tiles else ""
    if image.format == "PPM" and isinstance(arguments, tuple) and len(arguments) == 2:
        maximum = int(arguments[1])
        return maximum if maximum > 255 else 0
    raw_mode = str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
    return 65535 if image.mode.startswith("I") or ";16" in raw_mode else 0


def num_extra_bands(image: Image.Image) -> int:
    """Returns how many bands of a TIFF are neither colour nor said to be transparency; what Pillow opens drops them."""
    tags = _tags(image)
    num_colours = _COLOURS.get(tags.get(_PHOTOMETRIC, -1), tags.get(_NUM_BANDS, 1))
    num_alpha = sum(kind in (1, 2) for kind in tags.get(_EXTRA, ()))
    return max(0, tags.get(_NUM_BANDS, 1) - num_colours - num_alpha)


def as_8_bit(image: Image.Image, pixel_range: tuple[float, float] | None = None) -> Image.Image:
    """Scales an image of more than 8 bits to 8; others stay as they are.

    Args:
        image: As Pillow has opened it.
        pixel_range: The values that become 0 and 255; by default the high byte is taken of 16 bits.

    Raises:
        UnsupportedPixelsError: If Pillow and OpenCV do not agree on 16-bit colour.
    """
    if pixel_range is not None and full_scale(image):
        shown = Image.fromarray(scaled(own_values(image), *pixel_range))
    elif image.mode.startswith("I"):
        # The high byte, as Pillow takes it of colour: a gray image and its copy in RGB come out alike.
        shown = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    else:
        return image  # Pillow has taken the high byte of 16-bit colour already
    if image.has_transparency_data:
        shown.putalpha(alpha_of(image))
    return shown


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns values as uint8, `low` as 0 and `high` as 255; what lies outside, and what is no number, at the ends."""
    exact = values.astype(np.float32 if values.dtype in (np.uint8, np.uint16) else np.float64)
    return np.rint((np.nan_to_num(exact, nan=low).clip(low, high) - low) * 255 / (high - low)).astype(np.uint8)


def alpha_of(image: Image.Image) -> Image.Image:
    """Returns the opacity of each pixel, from 0 to 255, of an image that `has_transparency_data`."""
    if image.mode.startswith("I"):  # one value is transparent
        return Image.fromarray(np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # of 16 bits, where Pillow has taken the high byte of the pixels
        is_transparent = (np.asarray(image) == [each >> 8 for each in key]).all(axis=-1)
        return Image.fromarray(np.where(is_transparent, 0, 255).astype(np.uint8))
    return (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")


def on_background(image: Image.Image, background: tuple[int, int, int] | None) -> Image.Image:
    """Lays an image of at most 8 bits a channel on a colour, if it is transparent; None leaves it as it is."""
    if background is None or not image.has_transparency_data:
        return image
    alpha = alpha_of(image)
    colours = image.convert("RGBA").convert("RGB")
    return Image.composite(colours, Image.new("RGB", image.size, background), alpha)


def own_values(image: Image.Image) -> np.ndarray:
    """Returns the values in the file of an image of more than 8 bits: `(H, W)`, or `(H, W, 3)` of 16-bit colour.

    Raises:
        UnsupportedPixelsError: If Pillow and OpenCV do not agree on 16-bit colour.
    """
    white = full_scale(image)
    if image.mode != "F" and not image.mode.startswith("I"):
        return _colours_of_16_bits(image, white)
    values = np.asarray(image)
    if image.format == "PPM" and white not in (1, 65535):  # Pillow has scaled them to 16 bits
        return np.rint(values * (white / 65535)).astype(np.uint16)
    return values


def used_range(image: Image.Image) -> tuple[float, float]:
    """Returns between which values all but a thousandth of an image's pixels lie on either side."""
    values = own_values(image).ravel()
    values = values[:: max(1, values.size // _MEASURED)]
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not values.size:
        return 0.0, 0.0
    low, high = np.percentile(values, [0.1, 99.9], method="nearest")
    return float(low), float(high)


def is_plain_but_for_transparency(image: Image.Image, gray: np.ndarray) -> bool:
    """Whether an image shows nothing but by its transparency.

    Args:
        image: As Pillow has opened it.
        gray: `(H, W, 1)` uint8, what is seen of it.
    """
    if not image.has_transparency_data or int(gray.max()) - int(gray.min()) > _PLAIN:
        return False
    least, most = alpha_of(image).getextrema()
    return bool(most - least > _VARIED)  # type: ignore[operator]  # of one band, they are numbers


def suggested_range(low: float, high: float) -> tuple[float, float]:
    """Returns the range that images are likely to be of whose values lie between these: 0 to 4095 for 12 bits."""
    if low >= 0 and high <= 1:
        return 0, 1
    if 0 <= low <= high / 4:
        return 0, 2.0 ** math.ceil(math.log2(high + 1)) - 1
    return math.floor(low), max(math.ceil(high), math.floor(low) + 1)


def _colours_of_16_bits(image: Image.Image, white: int) -> np.ndarray:
    # Pillow keeps the high byte only. It has the last word on what the file is: OpenCV reads a damaged one, too.
    stream = image.fp  # type: ignore[attr-defined]
    place = stream.tell()
    stream.seek(0)
    content = stream.read()
    stream.seek(place)
    high = np.asarray(image.convert("RGB"))
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[:2] != high.shape[:2]:
        found = np.zeros((1, 1, 3), np.uint16)
    colours = found[..., 2::-1]
    if colours.shape != high.shape or np.abs(colours * np.float32(255 / white) - high).max() > 1.5:
        reason = "16 bits a channel of this kind cannot be scaled by pixel_range: save it as a PNG of RGB"
        raise UnsupportedPixelsError(reason)
    return colours


def _tags(image: Image.Image) -> dict[int, Any]:
    return dict(image.tag_v2) if image.format == "TIFF" and hasattr(image, "tag_v2") else {}
