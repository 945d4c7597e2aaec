"""What is wrong with the pixels of a set: a range hardly used, pictures in transparency alone, too many bands."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from lit_cnn.core.errors import UsageError
from lit_cnn.data.decoding import DECODING_ERRORS, FORMATS, to_pixels
from lit_cnn.data.findings import Finding
from lit_cnn.data.image_set import EncodedImages, ImageSet
from lit_cnn.data.inspection import Inspection
from lit_cnn.data.pixel_values import (
    PixelOptions,
    is_plain_but_for_transparency,
    suggested_range,
    used_range,
)

_SAMPLE = 12  # images of a kind that a quick look decodes
_FEW = 128  # of 256 shades


def of_pixels(image_set: ImageSet, splits: Mapping[str, np.ndarray], seen: Sequence[Inspection]) -> Iterator[Finding]:
    """Yields what is wrong with the pixels of a set.

    Images that were looked at by their headers only are decoded here, a few of each kind, until they show that nothing
    is wrong.

    Args:
        image_set: The images.
        splits: As for `audit`; the range that counts is that of the training images.
        seen: What was seen of each image.
    """
    images = image_set.images
    if not isinstance(images, EncodedImages):
        return
    train = splits["train"] if "train" in splits else np.arange(len(seen))
    yield from _of_range(image_set, images, np.sort(train), seen)
    yield from _of_transparency(image_set, images, np.sort(train), seen)
    if dropped := [index for index, one in enumerate(seen) if one.extra_bands and not one.fault]:
        count = seen[dropped[0]].extra_bands
        bands = "a band" if count == 1 else f"{count} bands"
        message = f"has {bands} besides its colours (infrared, say), which a network of 1 or 3 channels does not see"
        yield _finding("extra_band", message, image_set, dropped)


def _of_range(
    image_set: ImageSet, images: EncodedImages, train: np.ndarray, seen: Sequence[Inspection]
) -> Iterator[Finding]:
    deep = [index for index in train.tolist() if seen[index].full_scale and not seen[index].fault]
    options = images.pixels
    if not deep:
        if options.pixel_range is not None and any(one.file_format for one in seen):
            message = "no training image has more than 8 bits, and only those are scaled by `pixel_range`"
            yield Finding("no_use_of_range", "warning", message, ((image_set.name,),))
        return
    looked, low, high = [], np.inf, -np.inf
    for index, one in _looks(images, deep, seen):
        looked.append(index)
        low, high = min(low, one.low), max(high, one.high)
        if not one.is_full and high > low and _shades(low, high, one.full_scale, options) >= _FEW:
            return
    if not looked:
        return
    white = max(seen[index].full_scale for index in looked)
    if (shades := _shades(low, high, white, options)) >= _FEW:
        return
    some = "" if len(looked) == len(deep) else f" ({len(looked)} were looked at)"
    values = (
        f"is one of {len(deep):,} training images of more than 8 bits whose values lie between {low:g} and {high:g}"
    )
    way_out = "give `pixel_range=[{:.10g},{:.10g}]`".format(*suggested_range(low, high))
    black_to_white = (0, white) if options.pixel_range is None else options.pixel_range
    taken = "{:g} to {:g}".format(*black_to_white)
    left = f"{taken} is taken for black to white, which leaves {shades} of 256 shades"
    yield _finding("unused_range", f"{values}{some}; {left}: {way_out}", image_set, looked)


def range_to_give(image_set: ImageSet, indices: Sequence[int], seen: Sequence[Inspection]) -> str:
    """Returns in words which range images have of which nothing says it; empty if that is not known.

    Args:
        image_set: All images, encoded.
        indices: Those that cannot be trained on as they are.
        seen: What was seen of each of all images.
    """
    assert isinstance(image_set.images, EncodedImages)
    unscaled = [index for index in indices if seen[index].full_scale]
    found = [one for _, one in _looks(image_set.images, unscaled, seen)]
    if not found:
        return ""
    low, high = min(one.low for one in found), max(one.high for one in found)
    way_out = "give `pixel_range=[{:.10g},{:.10g}]`".format(*suggested_range(low, high))
    return f"; values lie between {low:g} and {high:g}: {way_out}"


def _shades(low: float, high: float, white: int, options: PixelOptions) -> int:
    """Returns how many of the 256 shades the values between two become."""
    black, white = (0, white) if options.pixel_range is None else options.pixel_range  # type: ignore[assignment]
    first, last = (min(max(round(255 * (value - black) / (white - black)), 0), 255) for value in (low, high))
    return last - first + 1


def _of_transparency(
    image_set: ImageSet, images: EncodedImages, train: np.ndarray, seen: Sequence[Inspection]
) -> Iterator[Finding]:
    if all(one.is_full or one.fault for one in seen):
        plain = ((index, one) for index, one in enumerate(seen) if one.is_plain)
    else:
        transparent = [index for index in train.tolist() if seen[index].has_alpha]
        plain = ((index, one) for index, one in _looks(images, transparent, seen) if one.is_plain)
    # A header that is remembered has no thumbnail.
    if not (found := {index: one.thumbnail[0] if one.thumbnail else 0 for index, one in plain}):
        return
    is_dark = np.median(list(found.values())) < 128
    way_out = f"`background={'white' if is_dark else 'black'}`"
    what = "lies on its own colour" if images.pixels.background is not None else "is dropped"
    message = f"differs only in transparency, which {what}, so that one colour is left; give {way_out}"
    yield _finding("only_transparency", message, image_set, list(found))


def _looks(
    images: EncodedImages, indices: Sequence[int], seen: Sequence[Inspection]
) -> Iterator[tuple[int, Inspection]]:
    """Yields what is seen of the images when they are decoded; of some of them, if they were not."""
    if all(seen[index].is_full for index in indices):
        yield from ((index, seen[index]) for index in indices)
        return
    places = np.linspace(0, len(indices) - 1, min(_SAMPLE, len(indices))).round().astype(int)
    for index in (indices[place] for place in places):
        if (one := _look(images, index, seen[index])) is not None:
            yield index, one


def _look(images: EncodedImages, index: int, one: Inspection) -> Inspection | None:
    try:
        if one.full_scale:
            with images.open(index) as file, Image.open(file, formats=FORMATS) as image:
                low, high = used_range(image)
                one = one._replace(low=low, high=high)
        if one.has_alpha:
            with images.open(index) as file, Image.open(file, formats=FORMATS) as image:
                gray = to_pixels(image, 1, images.pixels)
                is_plain = is_plain_but_for_transparency(image, gray)
                one = one._replace(is_plain=is_plain, thumbnail=bytes([int(gray.mean())]))
    except (*DECODING_ERRORS, UsageError):
        return None  # what is wrong with it is found elsewhere
    return one


def _finding(kind: str, message: str, image_set: ImageSet, indices: Sequence[int]) -> Finding:
    return Finding(kind, "warning", message, tuple((image_set.paths[index],) for index in indices))
