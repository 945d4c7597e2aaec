"""Images in tar shards of another place: a shard is here as a whole, or a span of it is asked for."""

import contextlib
import hashlib
import io
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import sha256_of_file, size_in_words
from lit_cnn.data.image_set import SpanImages
from lit_cnn.data.remote.cache import ByteCache
from lit_cnn.data.remote.place import Place, RemoteFile

_AHEAD = 4  # shards at a time
_PART = 2**23  # bytes asked for at a time: what is lost when the network fails


class Shards:
    """Large files of another place, each fetched as a whole by one process for all.

    Args:
        place: Where.
        files: The shards.
        cache: Keeps them.

    Attributes:
        place: As given.
        files: As given.
        cache: As given.
        keys: What the cache calls them.
    """

    def __init__(self, place: Place, files: Sequence[RemoteFile], cache: ByteCache) -> None:
        self.place = place
        self.files = files
        self.cache = cache
        # What a place without a word of states has is known for this run only.
        states = [file.state or f"{file.size} {time.time_ns()}" for file in files]
        named = [f"{place}/{file.path}\t{state}" for file, state in zip(files, states, strict=True)]
        self.keys = [hashlib.sha256(name.encode()).hexdigest() for name in named]

    def open(self, number: int) -> BinaryIO | None:
        """Opens a shard that is here; None if it is not."""
        return self.cache.open(self.keys[number])

    def fetch(self, number: int, sha256: str = "") -> Path | None:
        """Brings a shard here, if it is not; an interrupted fetch goes on where it was.

        Args:
            number: Which.
            sha256: Of its bytes, if that is known.

        Returns:
            Its file, which may be removed as soon as other files need the room; None if there is no room for it.

        Raises:
            UsageError: If it cannot be read, or its bytes are others than they were.
        """
        key, file, cache = self.keys[number], self.files[number], self.cache
        if file.size < 0:
            reason = "has no size that its place would tell"
            raise UsageError(None, f"{self.place}/{file.path}", reason, "copy it to this machine")
        with cache.alone(f"shard-{key[:2]}"):
            if cache.hold([key]):
                return cache.path_of(key)
            part = cache.begin(key, file.size)
            if part is None:
                return None
            with cache.trouble():
                self._write(part, part.with_name(f"{key}.done"), file)
                self._check(part, file, sha256)
                cache.finish(key)
                return cache.path_of(key)
        return None  # the disk is full

    def _check(self, part: Path, file: RemoteFile, sha256: str) -> None:
        part.with_name(f"{part.name}.done").unlink(missing_ok=True)
        if sha256 and sha256_of_file(part) != sha256:
            part.unlink()
            reason = "has other bytes than when it was read first"
            raise UsageError(None, f"{self.place}/{file.path}", reason, "put it back, or start again")

    def _write(self, part: Path, mark: Path, file: RemoteFile) -> None:
        done = 0
        with contextlib.suppress(OSError, ValueError):
            done = min(int(mark.read_text()), file.size)
        with part.open("r+b") as output:
            output.seek(done)
            for start in range(done, file.size, _PART):
                output.write(self.place.read_part(file, start, min(_PART, file.size - start)))
                output.flush()
                os.fdatasync(output.fileno())  # before it is said to be there
                mark.write_text(str(output.tell()))


class ShardImages(SpanImages):
    """Images in shards of another place.

    Of a shard that is here an image is read from disk. Else the shard is brought here, where most of it is wanted about
    now; where it is not, the image alone is asked for.

    Args:
        shards: The shards.
        places: `(N, 3)` int64: of each image the index of its shard, its offset there and its size, in bytes.
        paths: What an error calls each image.
        in_channels: 1 (gray) or 3 (RGB): what every image is converted to.
        hashes: SHA-256 of each image's bytes.
        of_shards: SHA-256 of each shard's.

    Attributes:
        is_wanted_whole: `(N,)` whether an image has its shard brought here; see `want`.
    """

    def __init__(
        self,
        shards: Shards,
        places: np.ndarray,
        paths: Sequence[str],
        in_channels: int,
        hashes: Sequence[str],
        of_shards: Sequence[str],
    ) -> None:
        super().__init__(str(shards.place), [], places, paths, in_channels)
        self.shards = shards
        self.hashes = hashes
        self.of_shards = of_shards
        self.is_wanted_whole = np.full(len(places), self.fit)

    @property
    def file_sizes(self) -> list[int]:
        """Bytes of each shard."""
        return [file.size for file in self.shards.files]

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(self.file_sizes)

    @property
    def fit(self) -> bool:
        """Whether all shards are here at a time."""
        return self.num_bytes <= self.shards.cache.max_bytes

    def want(self, indices: np.ndarray) -> None:
        """Has a shard brought here when an image of these is read, if they are half of the shard or more.

        Args:
            indices: Of images that are read shard by shard.
        """
        numbers = self.places[:, 0]
        share = np.bincount(numbers[indices], minlength=len(self.shards.files)) / np.maximum(
            1, np.bincount(numbers, minlength=len(self.shards.files))
        )
        self.is_wanted_whole[indices] |= share[numbers[indices]] >= 0.5

    def open(self, index: int) -> BinaryIO:
        """Returns an image's bytes as a file.

        Raises:
            UsageError: If they cannot be read, or are others than when the set was read.
        """
        number, offset, size = (int(value) for value in self.places[index])
        shard = self.shards.open(number)
        if shard is None and self.is_wanted_whole[index] and self.shards.fetch(number, self.of_shards[number]):
            shard = self.shards.open(number)
        if shard is not None:
            with shard:
                return io.BytesIO(os.pread(shard.fileno(), size, offset))
        content = self.shards.place.read_part(self.shards.files[number], offset, size) if size else b""
        if hashlib.sha256(content).hexdigest() != self.hashes[index]:
            reason = "has other bytes than when this run read it first"
            raise UsageError(None, self.name(index), reason, "put the shard back, or start again")
        return io.BytesIO(content)

    def fetch_ahead(self, numbers: Sequence[int]) -> None:
        """Has shards brought here before they are needed, in this order; what goes wrong is told by who needs them."""

        def fetch(own: Sequence[int]) -> None:
            for number in own:
                with contextlib.suppress(UsageError, OSError):
                    self.shards.fetch(number, self.of_shards[number])

        for first in range(_AHEAD):  # daemons: an end of training does not wait for them
            threading.Thread(target=fetch, args=(numbers[first::_AHEAD],), daemon=True).start()

    def in_words(self) -> str:
        """Returns how many bytes there are, and how many the cache keeps."""
        return f"{size_in_words(self.num_bytes)} of shards, {size_in_words(self.shards.cache.max_bytes)} of cache"
