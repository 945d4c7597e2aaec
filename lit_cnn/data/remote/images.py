"""Images read from another place, each once as long as this disk keeps it."""

import hashlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from lit_cnn.core.bars import Bar
from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import NO_BYTES
from lit_cnn.core.files import size_in_words
from lit_cnn.core.words import counted
from lit_cnn.data.file_kinds import HEAD_BYTES, is_system_name, kind_of_name
from lit_cnn.data.findings import Finding
from lit_cnn.data.image_set import EncodedImages, ImageSet
from lit_cnn.data.pixel_values import AS_IS, PixelOptions
from lit_cnn.data.remote.cache import ByteCache
from lit_cnn.data.remote.place import THREADS, Place, RemoteFile

_AT_ONCE = 1_000  # files between two writes to what is remembered
_LONGEST_NAME = 255  # bytes


class RemoteImages(EncodedImages):
    """Images in files of another place, kept on this disk as far as there is room.

    Args:
        place: Where.
        files: One per image.
        hashes: SHA-256 of each file's bytes; empty where nobody knows.
        cache: Keeps them.
        in_channels: 1 (gray) or 3 (RGB): what every image is converted to.
        pixels: What values of more than 8 bits, and transparent pixels, become.
    """

    def __init__(
        self,
        place: Place,
        files: Sequence[RemoteFile],
        hashes: Sequence[str],
        cache: ByteCache,
        in_channels: int,
        pixels: PixelOptions = AS_IS,
    ) -> None:
        super().__init__(in_channels, pixels)
        self.place = place
        self.files = files
        self.hashes = hashes
        self.cache = cache

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int) -> BinaryIO:
        """Opens an image's file, and reads it first if it is not here.

        Raises:
            UsageError: If it cannot be read, or its bytes are others than when the set was read.
        """
        digest = self.hashes[index]
        if digest == NO_BYTES:
            return io.BytesIO()
        if digest and (file := self.cache.open(digest)) is not None:
            return file
        content = self.place.read(self.files[index])
        found = hashlib.sha256(content).hexdigest()
        if digest and found != digest:
            reason = "has other bytes than when this run read it first"
            raise UsageError(None, self.name(index), reason, "put it back, or start again with what is there now")
        self.cache.keep(found, content)
        return io.BytesIO(content)

    def name(self, index: int) -> str:
        """Returns the address of an image's file."""
        return f"{self.place}/{self.files[index].path}"


def hash_remote_files(place: Place, files: Sequence[RemoteFile], cache: ByteCache) -> list[str]:
    """Returns the SHA-256 of each file's bytes, in order; of one that cannot be read, that of its address instead.

    A file is read only if its size or what else the place says of its state is not as remembered. What is read is kept
    here as far as there is room, so that training does not read it again. Of a place that says nothing of states, all
    are read each time.
    """
    addresses = [f"{place}/{file.path}" for file in files]
    # Of two processes that start at once, the second finds what the first has read.
    with cache.alone("scan"):
        known = cache.remembered([(address, file.state) for address, file in zip(addresses, files, strict=True)])
        hashes = [known.get(address, "") for address in addresses]
        cache.hold(digest for digest in hashes if digest)
        missing = [index for index, digest in enumerate(hashes) if not digest]
        if missing:
            _read_all(place, files, cache, hashes, missing)
    return [
        digest or hashlib.sha256(os.fsencode(where)).hexdigest()
        for digest, where in zip(hashes, addresses, strict=True)
    ]


def _read_all(
    place: Place, files: Sequence[RemoteFile], cache: ByteCache, hashes: list[str], missing: Sequence[int]
) -> None:
    """Reads files, and fills in their digests."""
    total = sum(max(files[index].size, 0) for index in missing)
    what = f"{counted(len(missing), 'image')}, {size_in_words(total)}" if total else counted(len(missing), "image")
    print(
        f"reading {what}, from {place}; what was read is kept in {cache.folder}, up to "
        f"{size_in_words(cache.max_bytes)}",
        file=sys.stderr,
    )
    bar, started, num_bytes, rows = Bar(len(missing), delay=0.5), time.monotonic(), 0, []

    def read(index: int) -> tuple[str, int]:
        try:
            content = place.read(files[index])
        except UsageError as error:
            if isinstance(error.__cause__, FileNotFoundError | PermissionError):
                return "", 0  # that of one file is told by who decodes it
            raise
        digest = hashlib.sha256(content).hexdigest()
        if content:
            cache.keep(digest, content)
        return digest, len(content)

    pool = ThreadPoolExecutor(THREADS)
    try:
        for start in range(0, len(missing), _AT_ONCE):
            part = missing[start : start + _AT_ONCE]
            for done, (index, (digest, size)) in enumerate(zip(part, pool.map(read, part), strict=True), start + 1):
                hashes[index], num_bytes = digest, num_bytes + size
                if digest and files[index].state:
                    rows.append((f"{place}/{files[index].path}", files[index].state, digest))
                rate = num_bytes / max(time.monotonic() - started, 1e-3)
                bar.show("reading", done, (f"{size_in_words(rate)}/s",))
            cache.remember(rows)  # what was read is not read again after an interruption
            rows = []
    finally:
        pool.shutdown(cancel_futures=True)  # after a mistake or Ctrl-C those that wait would all be read
        cache.remember(rows)
        bar.close()
    seconds = max(time.monotonic() - started, 1e-3)
    print(
        f"read {size_in_words(num_bytes)} in {seconds:.1f} s, {size_in_words(num_bytes / seconds)}/s", file=sys.stderr
    )


class Tree:
    """The files of a place as a folder on disk that has their names and none of their bytes.

    A folder on disk is read by rules of some length: what is a class, a split, an image, hidden, or likely a mistake.
    The same code reads this one. Of a file whose name does not say what it is, its first bytes are there.

    Args:
        place: Where they are.
        files: The files.
        parent: The folder in which to make it.

    Attributes:
        folder: The folder.
        findings: Names that no file on disk can have, passed over.
    """

    def __init__(self, place: Place, files: Sequence[RemoteFile], parent: Path) -> None:
        self.place = place
        self.folder = parent / (str(place).rstrip("/").rpartition("/")[2] or "root")
        self.files: dict[str, RemoteFile] = {}
        odd = self._make(files)
        message = "has a name that no file on disk can have, passed over: rename it"
        self.findings = (Finding("odd_name", "warning", message, tuple((path,) for path in odd)),) if odd else ()

    def _make(self, files: Sequence[RemoteFile]) -> list[str]:
        odd, unknown, made = [], [], {""}
        self.folder.mkdir(parents=True)
        for file in files:
            parts = file.path.removesuffix("/").split("/")
            try:
                if not all(map(_can_be_name, parts)):
                    raise OSError
                below = "/".join(parts if file.path.endswith("/") else parts[:-1])
                if below not in made:
                    (self.folder / below).mkdir(parents=True, exist_ok=True)
                    made.add(below)
                if file.path.endswith("/"):
                    continue
                os.close(os.open(self.folder / file.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except OSError:  # also a file that is called as a folder is
                odd.append(file.path)
                continue
            self.files[file.path] = file
            if kind_of_name(parts[-1]) is None and not any(map(is_system_name, parts)):
                unknown.append(file)
        with ThreadPoolExecutor(THREADS) as pool:
            heads = pool.map(lambda file: self.place.head(file, HEAD_BYTES), unknown)
            for file, head in zip(unknown, heads, strict=True):
                (self.folder / file.path).write_bytes(head)
        return odd

    def file_of(self, path: str | Path) -> RemoteFile:
        """Returns the file of a path in the folder; of one that is not there, what it would be."""
        relative = os.path.relpath(path, self.folder)
        return self.files.get(relative) or RemoteFile(relative, self.place.name_of(relative), -1, "", "")

    def renamed(self, text: Any) -> Any:
        """Returns a text in which the folder is called by the place's address."""
        text = str(text) if isinstance(text, Path) else text
        return text.replace(str(self.folder), str(self.place)) if isinstance(text, str) else text

    def told(self, image_set: ImageSet) -> ImageSet:
        """Returns a set read from the folder as one that was read from the place."""
        findings = [replace(one, message=self.renamed(one.message)) for one in image_set.findings]
        return replace(image_set, source=self.renamed(image_set.source), findings=(*findings, *self.findings))


@contextmanager
def tree_of(place: Place, files: Sequence[RemoteFile], cache: ByteCache) -> Iterator[Tree]:
    """Yields the files of a place as a `Tree`; a mistake that is told of its folder is told of the place.

    Raises:
        UsageError: If the names cannot be written.
    """
    try:
        parent = Path(os.path.realpath(tempfile.mkdtemp(prefix="lit_cnn_names_")))
    except OSError as error:
        raise UsageError(
            "root", place, f"the names of its files cannot be written ({error})", "make room in TMPDIR"
        ) from error
    try:
        tree = Tree(place, files, parent)
        try:
            yield tree
        except UsageError as error:
            told = [tree.renamed(each) for each in (error.value, error.reason, error.remedy)]
            raise UsageError(error.option, told[0], told[1], told[2]) from error
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _can_be_name(part: str) -> bool:
    return part not in ("", ".", "..") and "\0" not in part and len(os.fsencode(part)) <= _LONGEST_NAME
