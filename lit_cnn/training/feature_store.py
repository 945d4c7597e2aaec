"""Features on disk: one folder an entry, named by the digest of all that its numbers depend on.

    KEY/features.npy     an array of bf16 (as its bits, uint16), fp16 or fp32, read through a memory map
    KEY/entry.json       SHA-256 of that file; written last, so an entry with it is whole. Its time is that of last use

Whoever reads an entry holds a shared lock on its folder, whoever computes it an exclusive one, and what is locked is
not removed. The kernel gives a lock back when its process ends, however it ends.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lit_cnn.core.file_hashes import default_cache_file
from lit_cnn.core.files import (
    held_alone,
    replace_atomically,
    sha256_of_file,
    size_in_words,
    sync_to_disk,
    write_text_atomically,
)

StoredType = Literal["bf16", "fp16", "fp32"]

# Seconds between two tries for a lock, and until a wait is worth a line: two runs that start at once look into an entry
# at the same moment.
_TRY_EVERY, _SAY_AFTER = 0.05, 1.0
_TORCH_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# What numpy calls the bytes; it has no bfloat16.
_NUMPY_TYPES = {"bf16": np.uint16, "fp16": np.float16, "fp32": np.float32}


class NoRoomError(Exception):
    """Features cannot be kept: they would pass the size bound, or the disk refuses them; the message says which."""


@dataclass(frozen=True)
class CacheKey:
    """Which entry: all that its numbers depend on, and their shape and type.

    Attributes:
        key: All that the numbers depend on, plain values.
        shape: `(N, …)`, one row an image.
        stored_as: The type on disk.
    """

    key: Mapping[str, Any]
    shape: tuple[int, ...]
    stored_as: StoredType

    @property
    def name(self) -> str:
        """The entry's folder: SHA-256 over the key, the shape and the type."""
        text = json.dumps([dict(self.key), self.shape, self.stored_as], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        """Bytes of the features on disk, without the header."""
        return int(np.prod(self.shape)) * np.dtype(_NUMPY_TYPES[self.stored_as]).itemsize


class Features:
    """An entry in use: locked against removal until `close`.

    Args:
        values: `(N, …)` in the type on disk, a memory map.
        lock: Descriptor of the locked folder.

    Attributes:
        values: The same.
    """

    def __init__(self, values: torch.Tensor, lock: int) -> None:
        self.values = values
        self._lock: int | None = lock

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def store_folder() -> Path:
    """Returns where features are kept: `lit_cnn/features` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)."""
    return default_cache_file().parent / "features"


def get_or_compute(
    key: CacheKey,
    compute: Callable[[], Iterable[torch.Tensor]],
    max_bytes: int,
    check_stop: Callable[[], None] = lambda: None,
) -> tuple[Features, bool]:
    """Returns an entry's features; computes them, once for all runs that ask at the same time, if they are not there.

    An entry whose bytes are not those that were written is removed and computed anew, with a line about it.

    Args:
        key: Which.
        compute: Gives the rows in order, in parts of any length.
        max_bytes: Of all entries together; those longest unused go to make room.
        check_stop: Called while it waits or computes; ends that by raising.

    Returns:
        The features, and whether they were found rather than computed.

    Raises:
        NoRoomError: If they cannot be kept.
    """
    entry, found = store_folder() / key.name, True
    while True:
        try:
            entry.mkdir(parents=True, exist_ok=True)
            lock = os.open(entry, os.O_RDONLY)
        except FileNotFoundError:
            continue  # removed by another run in the meantime
        except OSError as error:
            raise NoRoomError(f"{entry.parent} cannot be written ({error.strerror})") from error
        try:
            _acquire(lock, fcntl.LOCK_SH, "another run computes the features; waiting for it", check_stop)
            if not _is_folder(lock, entry):
                continue
            if (entry / "entry.json").exists():
                if (values := _read(entry, key)) is not None:
                    os.utime(entry / "entry.json")
                    features, lock = Features(values, lock), -1
                    return features, found
                _set_aside(entry)
                continue
            fcntl.flock(lock, fcntl.LOCK_UN)
            _acquire(lock, fcntl.LOCK_EX, "another run computes the features; waiting for it", check_stop)
            if _is_folder(lock, entry) and not (entry / "entry.json").exists():
                _write(entry, key, compute, max_bytes, check_stop)
                found = False
        finally:
            if lock >= 0:
                os.close(lock)


def _acquire(lock: int, kind: int, notice: str, check_stop: Callable[[], None]) -> None:
    """Waits for a lock by trying, as a signal would not end a blocking wait."""
    started, has_said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            check_stop()
            if not has_said and time.monotonic() - started > _SAY_AFTER:
                print(f"lit-cnn: {notice}", file=sys.stderr, flush=True)
                has_said = True
            time.sleep(_TRY_EVERY)


def _is_folder(lock: int, folder: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(lock), os.stat(folder))
    return False


def _read(entry: Path, key: CacheKey) -> torch.Tensor | None:
    """Returns an entry's features; None, and a line about it, if they are not what was written."""
    file = entry / "features.npy"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # numpy opens an archive as something else
        note = json.loads((entry / "entry.json").read_text(encoding="utf-8"))
        # Copied on write: torch warns of memory that it may not write to.
        values = np.load(file, mmap_mode="c", allow_pickle=False)
        if note["sha256"] == sha256_of_file(file) and values.shape == key.shape:
            return torch.from_numpy(values).view(_TORCH_TYPES[key.stored_as])
    print(f"lit-cnn: {file} was changed after it was written (SHA-256 differs): computing it anew", file=sys.stderr)
    return None


def _set_aside(entry: Path) -> None:
    """Takes a damaged entry away; runs that read it already keep what they have."""
    damaged = entry.with_name(f".{entry.name}.{os.getpid()}.damaged")
    try:
        entry.rename(damaged)
    except FileNotFoundError:
        return  # another run did
    except OSError as error:
        raise NoRoomError(f"{entry} cannot be removed ({error.strerror})") from error
    shutil.rmtree(damaged, ignore_errors=True)


def _write(
    entry: Path,
    key: CacheKey,
    compute: Callable[[], Iterable[torch.Tensor]],
    max_bytes: int,
    check_stop: Callable[[], None],
) -> None:
    file, digest = entry / "features.npy", hashlib.sha256()
    try:
        for left_over in entry.iterdir():  # by a run that was killed
            left_over.unlink()
        with replace_atomically(file) as temporary, temporary.open("w+b") as output:
            header = {"descr": np.dtype(_NUMPY_TYPES[key.stored_as]).str, "fortran_order": False}
            np.lib.format.write_array_header_1_0(output, header | {"shape": key.shape})
            start = output.tell()
            with _bookkeeping():
                _make_room(key.num_bytes, max_bytes)
                # Room is taken at once, so that a full disk shows now, and no other run counts on it.
                os.posix_fallocate(output.fileno(), 0, start + key.num_bytes)
            output.seek(0)
            digest.update(output.read(start))
            for rows in compute():
                check_stop()
                stored = rows.to(_TORCH_TYPES[key.stored_as]).contiguous().view(torch.uint8).numpy().data
                digest.update(stored)
                output.write(stored)
            if output.tell() != start + key.num_bytes:
                raise RuntimeError(f"{output.tell() - start} bytes of features, not {key.num_bytes}")
        note = {"sha256": digest.hexdigest(), "shape": key.shape, "type": key.stored_as, "key": dict(key.key)}
        write_text_atomically(entry / "entry.json", json.dumps(note))
        sync_to_disk(entry.parent)
    except OSError as error:
        raise NoRoomError(f"{entry.parent} cannot be written ({error.strerror})") from error


def _make_room(num_bytes: int, max_bytes: int) -> None:
    """Removes what runs left unfinished and, the longest unused first, entries until there is room.

    Raises:
        NoRoomError: If there is none beside what other runs use.
    """
    others = []
    for folder in store_folder().iterdir():
        with suppress(OSError):
            size = sum(file.stat().st_size for file in folder.iterdir())
            note = folder / "entry.json"
            others.append((note.stat().st_mtime if note.exists() else 0.0, size, folder))
    total = sum(size for _, size, _ in others)
    for last_use, size, folder in sorted(others):
        if last_use == 0.0 or total + num_bytes > max_bytes:
            with held_alone(folder) as is_mine:
                if is_mine:
                    shutil.rmtree(folder, ignore_errors=True)
                    total -= size
    if total + num_bytes > max_bytes:
        raise NoRoomError(
            f"{size_in_words(num_bytes)} of features, beside {size_in_words(total)} in use, pass "
            f"`feature_cache_gb={max_bytes / 1e9:g}`"
        )


@contextmanager
def _bookkeeping() -> Iterator[None]:
    with (store_folder() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
