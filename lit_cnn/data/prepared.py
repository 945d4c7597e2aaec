"""Photographs decoded and shrunk once, and kept on this disk for later epochs, other processes and runs."""

import hashlib
import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
import PIL
import simplejpeg

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import default_cache_file
from lit_cnn.data.decoding import DECODING_ERRORS, decode_image, open_image, pixel_limit
from lit_cnn.data.file_kinds import HAS_HEIF
from lit_cnn.data.image_set import EncodedImages, ImageSet
from lit_cnn.data.remote.cache import ByteCache

if HAS_HEIF:
    import pi_heif

Prepared = Literal["auto", "off"] | float
"""Whether to keep them; a number is how many gigabytes of all runs together."""

_WORTH = 2  # times as many bytes as are kept: what has fewer is decoded about as fast as it is read
_SMALL = 2**17  # bytes, of about 210 x 210 pixels: likewise
_HEAD = struct.Struct("<III32s")  # height, width, channels, SHA-256 of the pixels
_PACKAGES = (cv2, PIL, simplejpeg, *([pi_heif] if HAS_HEIF else []))
_VERSIONS = " ".join(["1", *(package.__version__ for package in _PACKAGES)])


class PreparedImages(Sequence[np.ndarray]):
    """Images as they are before anything is drawn: decoded, shrunk, perhaps cropped.

    An image is the same whether it comes from the disk or is made anew, so no result depends on what is kept.

    Args:
        image_set: All images, encoded.
        prepare: What is done to a decoded image, `(H, W, C)` uint8.
        prepared_as: Tells that apart from whatever else may be done.
        cache: Keeps them.
    """

    def __init__(
        self, image_set: ImageSet, prepare: Callable[[np.ndarray], np.ndarray], prepared_as: str, cache: ByteCache
    ) -> None:
        assert isinstance(image_set.images, EncodedImages)
        self.images = image_set.images
        self.cache = cache
        self._hashes = image_set.hashes
        self._prepare = prepare
        self._how = f"{_VERSIONS} {pixel_limit()} {self.images.in_channels} {self.images.pixels} {prepared_as}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        """Returns an image as `(H, W, C)` uint8."""
        name = hashlib.sha256(f"{self._hashes[index]} {self._how}".encode()).hexdigest()
        if (file := self.cache.open(name)) is not None:
            with file:
                kept = _read(file)
            if kept is not None:
                return kept
            self.cache.forget(name)  # a process was killed, or the disk is at fault
        try:
            with self.images.open(int(index)) as encoded:
                content = encoded.read()
        except OSError:  # of a disk, say: that is told where images are decoded
            return self._prepare(self.images[index])
        decoded = decode_image(content, self.images.in_channels, self.images.name(int(index)), self.images.pixels)
        prepared = np.ascontiguousarray(self._prepare(decoded))
        is_same = hashlib.sha256(content).hexdigest() == self._hashes[index]  # as when the set was read
        if is_same and _is_worth(decoded.size, prepared.size):
            pixels = prepared.tobytes()
            head = _HEAD.pack(*prepared.shape, hashlib.sha256(pixels).digest())
            self.cache.keep(name, head + pixels, syncs=False)
        return prepared

    def keeps(self, index: int) -> bool:
        """Whether an image is so large that it is kept."""
        try:
            with self.images.open(index) as file, open_image(file) as image:
                size = (image.height, image.width, self.images.in_channels)
        except (*DECODING_ERRORS, UsageError):
            return False  # whoever decodes it says what is wrong
        return _is_worth(math.prod(size), self._prepare(np.zeros(size, np.uint8)).size)


def prepared_cache(images: Sequence[np.ndarray], options: Mapping[str, Any]) -> ByteCache | None:
    """Returns where images are kept as they are before anything is drawn; None where they are in memory, or none are.

    Args:
        images: All images.
        options: The arguments of `ImageDataModule`.
    """
    is_off = options["prepared"] == "off" or options["sampler"] == "streamed"
    if is_off or not isinstance(images, EncodedImages):
        return None
    # A bound decides no pixel, nor does that of 0: images are shrunk then too.
    gigabytes = 0.0 if options["cache_gb"] == 0 else options["prepared"]
    max_bytes = None if gigabytes == "auto" else gigabytes * 1e9
    return ByteCache(max_bytes, default_cache_file().parent / "prepared")


def _is_worth(decoded: int, prepared: int) -> bool:
    return decoded >= max(_SMALL, _WORTH * prepared)  # bytes


def _read(file: BinaryIO) -> np.ndarray | None:
    """Returns the pixels in a file; None if they are not those that were written."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    *shape, digest = _HEAD.unpack(head)
    if os.fstat(file.fileno()).st_size != _HEAD.size + math.prod(shape):
        return None
    pixels = bytearray(math.prod(shape))  # transforms may write into it
    file.readinto(pixels)  # type: ignore[attr-defined]
    return np.frombuffer(pixels, np.uint8).reshape(shape) if hashlib.sha256(pixels).digest() == digest else None
