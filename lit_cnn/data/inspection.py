"""What is in an image's file: seen from its header, or by decoding it; remembered by the SHA-256 of its bytes."""

import contextlib
import os
import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import NO_BYTES, default_cache_file
from lit_cnn.data.decoding import (
    DECODING_ERRORS,
    TOO_MANY_PIXELS,
    check_pixels,
    counted_pixels,
    open_image,
    pixel_limit,
    to_array,
    to_pixels,
    why_unidentified,
)
from lit_cnn.data.file_kinds import HAS_HEIF
from lit_cnn.data.image_set import ArrayImages, EncodedImages, ImageSet, without_images
from lit_cnn.data.pixel_values import (
    AS_IS,
    PixelOptions,
    UnsupportedPixelsError,
    full_scale,
    is_plain_but_for_transparency,
    num_extra_bands,
    used_range,
)

THUMBNAIL = (16, 16)  # pixels
_TABLE = "inspections_3"  # another number when the same bytes would be judged otherwise
_WITH_WAY_OUT = ("unread_format", "pointer", "unsupported_pixels")  # each kind has its own
_AT_ONCE = 500  # images between two writes to what is remembered
# A thread decodes an image of up to so many pixels (64 MiB as RGBA) whatever others do; of larger ones there is one at
# a time, or a thread per core would take half a gigabyte each.
_LARGE = 2**24
_ONE_LARGE = threading.Lock()


class Inspection(NamedTuple):
    """What was seen of one image. A hundred thousand are remembered at a time: a tuple is made in no time.

    Attributes:
        is_full: Whether it was decoded; else only its header was read.
        fault: Why it cannot be trained on: `empty_file`, `not_an_image`, `unread_format` (an image of a format that is
            not read), `pointer` (where the image is kept, by Git LFS), `truncated`, `damaged`, `unreadable`,
            `unsupported_pixels` or `too_many_pixels`; empty if it can.
        reason: The fault in words.
        file_format: As Pillow names it, such as `JPEG`.
        width: Pixels, 0 if unknown.
        height: Pixels, 0 if unknown.
        num_frames: Frames of an animation or pages, 1 for most.
        phash: 64 bits, hexadecimal: what the image looks like by its low frequencies; empty if it was not decoded.
        thumbnail: 16 x 16 gray pixels, one byte each; likewise.
        is_flat: Whether all its pixels are alike.
        full_scale: See `lit_cnn.data.pixel_values`; 0 for at most 8 bits a channel.
        has_alpha: Whether it may be transparent.
        extra_bands: Bands that are neither colour nor transparency, and dropped.
        low: The least value in the file, but for a thousandth of the pixels; of more than 8 bits, if it was decoded.
        high: The greatest, likewise.
        is_plain: Whether it is of one colour but for its transparency; if it was decoded.
    """

    is_full: bool = False
    fault: str = ""
    reason: str = ""
    file_format: str = ""
    width: int = 0
    height: int = 0
    num_frames: int = 1
    phash: str = ""
    thumbnail: bytes = b""
    is_flat: bool = False
    full_scale: int = 0
    has_alpha: bool = False
    extra_bands: int = 0
    low: float = 0.0
    high: float = 0.0
    is_plain: bool = False


def inspect_file(file: BinaryIO, full: bool, options: PixelOptions = AS_IS) -> Inspection:
    """Looks at one image.

    Args:
        file: The file, at its start.
        full: Decode it; else its header is all that is read.
        options: What values of more than 8 bits, and transparent pixels, become.
    """
    if not file.read(1):
        return Inspection(full, "empty_file", "holds no bytes")
    file.seek(0)
    seen = Inspection(full)
    try:
        with open_image(file) as image:
            seen = seen._replace(file_format=image.format or "", width=image.width, height=image.height)
            seen = seen._replace(
                full_scale=full_scale(image),
                has_alpha=image.has_transparency_data,
                extra_bands=num_extra_bands(image),
            )
            check_pixels(image, options)
            seen = seen._replace(num_frames=getattr(image, "n_frames", 1))
            if not full:
                return seen
            with _ONE_LARGE if image.width * image.height > _LARGE else contextlib.nullcontext():
                gray = to_pixels(image, 1, options)
                seen = seen._replace(is_plain=is_plain_but_for_transparency(image, gray))
                return _looked_at(_measured(seen, file), gray)
    except TOO_MANY_PIXELS:
        return _too_large(seen)
    except UnidentifiedImageError:
        fault, what, way_out = why_unidentified(file)
        return seen._replace(fault=fault, reason=f"{what}: {way_out}" if fault in _WITH_WAY_OUT else what)
    except DECODING_ERRORS as error:
        if isinstance(error, UnsupportedPixelsError):
            seen = _measured(seen, file) if full else seen
            return seen._replace(fault="unsupported_pixels", reason=str(error))
        is_cut = any(word in str(error).lower() for word in ("truncated", "not enough", "unexpected end", "eof"))
        reason = " ".join(str(error).split()) or type(error).__name__
        return seen._replace(fault="truncated" if is_cut else "damaged", reason=reason)


def inspect_images(image_set: ImageSet, full: bool) -> list[Inspection]:
    """Looks at all images of a set, in their order; what was seen once is remembered.

    Of images that are not encoded (in memory, or decoded by torchvision) there is no header to read.

    Args:
        image_set: The images.
        full: Decode them; else only headers are read.
    """
    images = image_set.images
    if not full and not isinstance(images, EncodedImages):
        return [Inspection()] * len(image_set.labels)
    known: dict[str, Inspection] = {}
    judge = _judge(images)
    with contextlib.suppress(sqlite3.Error, OSError), _open() as database:
        known = _remembered(database, image_set.hashes, full, judge)
    # Copies are looked at once.
    missing = list({digest: index for index, digest in enumerate(image_set.hashes) if digest not in known}.values())
    shown = tqdm(
        desc="decoding every image" if full else "reading headers",
        total=len(missing),
        unit="image",
        file=sys.stderr,
        delay=1.0,
        disable=None,
    )
    with ThreadPoolExecutor(os.cpu_count()) as pool, shown:
        for start in range(0, len(missing), _AT_ONCE):
            fresh = {}
            part = missing[start : start + _AT_ONCE]
            for index, seen in zip(part, pool.map(lambda index: _inspect(images, index, full), part), strict=True):
                fresh[image_set.hashes[index]] = seen
                shown.update()
            known |= fresh
            # Like the hashes: without a cache it takes longer, and nothing else.
            with contextlib.suppress(sqlite3.Error, OSError), _open() as database:
                _remember(database, fresh, judge)
    limit = pixel_limit()
    return [_within_limit(known[digest], limit) for digest in image_set.hashes]


def without_bad_images(image_set: ImageSet) -> tuple[ImageSet, dict[str, str]]:
    """Leaves out what cannot be trained on, having decoded every image.

    A test split that the source does not prescribe is drawn afterwards, from the rest. Images in memory are all good.

    Returns:
        The rest, and why for the path of each image that was left out.

    Raises:
        UsageError: If one of them is in a test split that the source prescribes, as what is tested on is not to shrink
            unseen; if a class loses its last image; or if torchvision decodes the images, as it knows no bad ones.
    """
    if isinstance(image_set.images, ArrayImages):
        return image_set, {}
    if not isinstance(image_set.images, EncodedImages):
        raise UsageError(
            "on_bad_image", "skip", "torchvision decodes the images of its sets and leaves none out", "drop the option"
        )
    seen = inspect_images(image_set, full=True)
    bad = np.array([index for index, one in enumerate(seen) if one.fault], np.int64)
    if not len(bad):
        return image_set, {}
    tested = np.intersect1d(bad, image_set.splits.get("test", ()))
    if len(tested):
        raise UsageError(
            "on_bad_image",
            "skip",
            f"{image_set.paths[tested[0]]} is a test image ({seen[tested[0]].reason})",
            "test images are not skipped: mend it or take it away",
        )
    left = without_images(image_set, bad)
    if lost := np.setdiff1d(image_set.labels, left.labels).tolist():
        raise UsageError(
            "on_bad_image",
            "skip",
            (
                f"no image is left of class {image_set.class_names[lost[0]]}, the first is "
                f"{image_set.paths[bad[0]]} ({seen[bad[0]].reason})"
            ),
            "mend some, or take the class away",
        )
    first = f"{image_set.paths[bad[0]]}: {seen[bad[0]].reason}"
    when = "" if "test" in image_set.splits else " before test is drawn from the rest"
    which = "1 image is" if len(bad) == 1 else f"{len(bad):,} images are"
    print(
        f"lit-cnn: {which} left out{when}, the first is {first}; lit-cnn check-data lists them",
        file=sys.stderr,
    )
    return left, {image_set.paths[index]: seen[index].reason for index in bad}


def _inspect(images: Sequence[np.ndarray], index: int, full: bool) -> Inspection:
    if not isinstance(images, EncodedImages):
        pixels = images[index]
        gray = to_array(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), 1)
        return _looked_at(Inspection(True, width=pixels.shape[1], height=pixels.shape[0]), gray)
    try:
        with images.open(index) as file:
            return inspect_file(file, full, images.pixels)
    except (OSError, UsageError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        return Inspection(fault="unreadable", reason=getattr(cause, "strerror", None) or str(error))


def _looked_at(seen: Inspection, gray: np.ndarray) -> Inspection:
    """Adds what the `(H, W, 1)` uint8 pixels look like."""
    import imagehash  # it takes scipy along

    image = Image.fromarray(gray[..., 0])
    return seen._replace(
        phash=str(imagehash.phash(image)),
        thumbnail=cv2.resize(gray[..., 0], THUMBNAIL, interpolation=cv2.INTER_AREA).tobytes(),
        is_flat=bool(gray.min() == gray.max()),
    )


def _within_limit(seen: Inspection, limit: int) -> Inspection:
    """Judges what is remembered by the limit of today."""
    if counted_pixels(seen.width, seen.height, seen.file_format) > limit and not seen.fault:
        return _too_large(seen)
    return seen


def _measured(seen: Inspection, file: BinaryIO) -> Inspection:
    """Adds between which values the pixels of more than 8 bits are."""
    if not seen.full_scale:
        return seen
    file.seek(0)
    with contextlib.suppress(UnsupportedPixelsError), open_image(file) as image:
        low, high = used_range(image)
        seen = seen._replace(low=low, high=high)
    return seen


def _too_large(seen: Inspection) -> Inspection:
    reason = f"more pixels than max_pixels, {pixel_limit()}"
    return seen._replace(is_full=False, fault="too_many_pixels", reason=reason)


@contextlib.contextmanager
def _open() -> Iterator[sqlite3.Connection]:
    cache_file = cache_path()
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(cache_file, timeout=30)) as database:
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {_TABLE} (sha256 TEXT, judge TEXT, is_full INT, fault TEXT, reason TEXT, "
            "file_format TEXT, width INT, height INT, num_frames INT, phash TEXT, thumbnail BLOB, is_flat INT, "
            "full_scale INT, has_alpha INT, extra_bands INT, low REAL, high REAL, is_plain INT, "
            "PRIMARY KEY (sha256, judge))"
        )
        yield database


def cache_path() -> Path:
    """Returns the sqlite file that remembers inspections, in the user's cache folder."""
    return default_cache_file().with_name("inspections.sqlite")


def _judge(images: Sequence[np.ndarray]) -> str:
    """What an inspection depends on besides the bytes: another Pillow may read what this one cannot."""
    options = getattr(images, "pixels", AS_IS)
    given = f", {options}" if options != AS_IS else ""
    return f"Pillow {PIL.__version__}{' with HEIF' if HAS_HEIF else ''}{given}"


def _remembered(database: sqlite3.Connection, digests: Iterable[str], full: bool, judge: str) -> dict[str, Inspection]:
    known = {}
    # What only a full look needs is most of the bytes.
    looks = "phash, thumbnail" if full else "'', x''"
    columns = f"sha256, is_full, fault, reason, file_format, width, height, num_frames, {looks}, is_flat, "
    columns += "full_scale, has_alpha, extra_bands, low, high, is_plain"
    wanted = list(set(digests))
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        marks = ",".join("?" * len(part))
        query = f"SELECT {columns} FROM {_TABLE} WHERE judge = ? AND is_full >= ? AND sha256 IN ({marks})"
        for row in database.execute(query, (judge, full, *part)):
            known[row[0]] = Inspection._make(row[1:])
    return known


def _remember(database: sqlite3.Connection, fresh: dict[str, Inspection], judge: str) -> None:
    # What could not be read, or the limit refused, may be welcome tomorrow.
    lasting = {digest: seen for digest, seen in fresh.items() if seen.fault not in ("unreadable", "too_many_pixels")}
    # What had no bytes when they were hashed, and has some now, is no word about all that have none.
    if NO_BYTES in lasting and not lasting[NO_BYTES].fault:
        del lasting[NO_BYTES]
    rows = [(digest, judge, *seen) for digest, seen in lasting.items()]
    database.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES ({','.join('?' * 18)})", rows)
    database.commit()
