"""Files that are whole or absent: write to a temporary one, fsync, rename; and digests of what is in them."""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system says where there is no room: disk, quota or limit are full, or nothing may be written any more."""


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; on success that file is fsynced and renamed to `path`.

    On an exception the temporary file is removed and whatever was at `path` stays as it was.

    Args:
        path: The final name. Its folder is made if needed.

    Yields:
        The temporary path to write to, on the same file system as `path`.

    Raises:
        OSError: If the folder cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync_to_disk(temporary)
        os.replace(temporary, path)
        sync_to_disk(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replace_folder_atomically(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields a new, empty folder in the folder of `path`; on success its files are fsynced and it is renamed to `path`.

    On an exception the new folder is removed and whatever was at `path` is there again.

    Args:
        path: The final name. Its parent is made if needed.
        overwrite: Whether a folder at `path` with anything in it gives way: it is renamed first and removed last.

    Yields:
        The folder to write to, on the same file system as `path`.

    Raises:
        OSError: If the folder cannot be made or written to, or there is one that may not give way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, before = (path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        for inside in (*temporary.rglob("*"), temporary):
            sync_to_disk(inside)
        if overwrite and path.exists():
            os.rename(path, before)
        os.rename(temporary, path)
        sync_to_disk(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if before.exists():
            os.rename(before, path)
        raise
    shutil.rmtree(before, ignore_errors=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 so that a reader sees the old file or the new one, never a part."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync_to_disk(path: Path) -> None:
    """Returns once the kernel says that the file's (or folder's) content is on disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def held_alone(folder: Path) -> Iterator[bool]:
    """Locks a folder as whoever removes it must; yields whether that could be done, as no run uses it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(lock)


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of the file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_in_words(num_bytes: float) -> str:
    """Returns a number of bytes for reading: `3.4 MB`, with a thousand bytes to the kB."""
    power = 0
    while num_bytes >= 1000 and power < 4:
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{num_bytes:.{min(power, 1)}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
