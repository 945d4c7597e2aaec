"""SHA-256 of many files, remembered by size, inode and times, so that a second scan reads no bytes."""

import contextlib
import hashlib
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lit_cnn.core.file_names import as_text
from lit_cnn.core.files import sha256_of_file

Item = TypeVar("Item")
NO_BYTES = hashlib.sha256(b"").hexdigest()
FEW_FILES = 2_000
"""Below this many files to hash, no progress bar."""

# Earlier versions kept hashes without ctime in a table `hashes` of the same file.
_TABLE = "hashes_2"
State = tuple[int, int, int, int]
"""Size, time of modification (ns), inode, time of change (ns): that of an inode, which nobody can set back."""


def hash_files(files: Sequence[Path | str], cache_file: Path | None = None) -> list[str]:
    """Returns the SHA-256 of each file's bytes, in order; of one that cannot be read, that of its path instead.

    A file is read only if its path, size, modification time (mtime), inode or time of change (ctime) is not as
    remembered: `cp -p` over a file gives it the size and mtime of another, but no ctime. A file that was renamed,
    linked or given other rights is read again. To read no bytes of a file that cannot be read is left to who decodes
    it: there the error has the file's name.

    Args:
        files: Existing files.
        cache_file: The sqlite file that remembers; by default `lit_cnn/file_hashes.sqlite` in the user's cache folder.
    """
    cache_file = cache_file or default_cache_file()
    keys = [_key(folder, name) for folder, name in _split_paths(files)]
    known: dict[str, tuple[State, str]] = {}
    with contextlib.suppress(sqlite3.Error, OSError), _open(cache_file) as database:
        known = _remembered(database, [key[0] for key in keys])
    hashes = [known[path][1] if path in known and known[path][0] == state else "" for path, state in keys]
    missing = [index for index, digest in enumerate(hashes) if not digest]
    rows: list[tuple[str, State, str]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(_sha256, [files[index] for index in missing])
        for index, digest in zip(missing, with_progress(digests, len(missing), "hashing images", "file"), strict=True):
            hashes[index] = digest or hashlib.sha256(os.fsencode(files[index])).hexdigest()
            if digest:
                rows.append((*keys[index], digest))
            if len(rows) >= FEW_FILES:  # what was read is not read again after an interruption
                _remember(cache_file, rows)
                rows = []
    _remember(cache_file, rows)
    return hashes


def _remember(cache_file: Path, rows: Sequence[tuple[str, State, str]]) -> None:
    # A cache that cannot be written costs time at the next scan and nothing else: the hashes themselves are right.
    with contextlib.suppress(sqlite3.Error, OSError), _open(cache_file) as database:
        values = ((path, *state, digest) for path, state, digest in rows)
        database.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?, ?, ?)", values)
        database.commit()


def _sha256(file: Path | str) -> str | None:
    try:
        return sha256_of_file(Path(file))
    except OSError:
        return None


def with_progress(items: Iterable[Item], total: int, description: str, unit: str) -> Iterator[Item]:
    """Passes items on; where there are many, with a progress bar in a terminal, and a line in a log."""
    if total < FEW_FILES:
        yield from items
        return
    from tqdm import tqdm

    if not sys.stderr.isatty():
        print(f"{description}: {total:,} {unit}s", file=sys.stderr)
    yield from tqdm(items, total=total, desc=description, unit=unit, file=sys.stderr, disable=None)


def default_cache_file() -> Path:
    """Returns the path of the user's hash cache, under $XDG_CACHE_HOME or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "lit_cnn" / "file_hashes.sqlite"


def _split_paths(files: Sequence[Path | str]) -> Iterator[tuple[str, str]]:
    """Yields each file's folder, links followed, and its name: to follow the links of each file anew takes seconds."""
    followed: dict[str, str] = {}
    for file in files:
        folder, name = os.path.split(file)
        if folder not in followed:
            followed[folder] = os.path.realpath(folder)
        yield followed[folder], name


def _key(folder: str, name: str) -> tuple[str, State]:
    path = os.path.join(folder, name)
    try:
        status = os.stat(path)
    except OSError:
        return as_text(path), (-1, 0, 0, 0)
    return as_text(path), (status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


@contextlib.contextmanager
def _open(cache_file: Path) -> Iterator[sqlite3.Connection]:
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(cache_file, timeout=30)) as database:
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {_TABLE} "
            "(path TEXT PRIMARY KEY, size INT, mtime_ns INT, inode INT, ctime_ns INT, sha256 TEXT)"
        )
        yield database


def _remembered(database: sqlite3.Connection, paths: Sequence[str]) -> dict[str, tuple[State, str]]:
    known = {}
    for start in range(0, len(paths), 500):
        part = paths[start : start + 500]
        marks = ",".join("?" * len(part))
        for path, *state, digest in database.execute(f"SELECT * FROM {_TABLE} WHERE path IN ({marks})", part):
            known[path] = tuple(state), digest
    return known
