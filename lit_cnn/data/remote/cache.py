"""Files of other places kept on this disk, up to a number of bytes, for all processes at once.

    objects/ab/abcd…    a file, named by what tells its content; its time of modification is that of last use
    parts/abcd…         a file on its way; of a large one, what is there already is not read again
    used                the bytes of all objects and large parts; `.lock` guards it
    files.sqlite        address and state -> SHA-256 of what was read there

Whoever reads an object has it open, and so keeps it though it is removed meanwhile.
"""

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from lit_cnn.core.file_hashes import default_cache_file
from lit_cnn.core.files import size_in_words, sync_to_disk

_MOST = 50e9  # bytes, where nobody says; of what is free, half at most
_TO_SPARE = 0.05  # of the bound is freed besides, so that not every new file has the folder looked through
_LOOK_EVERY = 30.0  # seconds, where nothing could be removed
_FORGOTTEN = 24 * 3600.0  # seconds after which what a killed process left unfinished is removed
_TABLE = "files_1"


def cache_folder() -> Path:
    """Returns where files are kept: `lit_cnn/remote` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)."""
    return default_cache_file().parent / "remote"


class ByteCache:
    """Files of other places on this disk, bounded in bytes.

    Args:
        max_bytes: Of all files together, whoever's run they are of. By default 50 GB, and at most half of what the disk
            has left.
        folder: Where; by default `cache_folder`.

    Attributes:
        max_bytes: As given, or that default.
        folder: The same.
    """

    def __init__(self, max_bytes: float | None = None, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder()
        self._started = time.time_ns()
        self._full_until = 0.0
        self._has_told = False
        with self.trouble():
            for name in ("objects", "parts"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        used = self._recount()
        if max_bytes is None:
            there = next(path for path in (self.folder, *self.folder.parents) if os.path.exists(path))
            max_bytes = min(_MOST, (shutil.disk_usage(there).free + used) / 2)
        self.max_bytes = int(max_bytes)

    def __str__(self) -> str:
        return f"{self.folder}, up to {size_in_words(self.max_bytes)} (`cache_gb={self.max_bytes / 1e9:.3g}`)"

    def path_of(self, name: str) -> Path:
        """Returns where an object is, if it is there."""
        return self.folder / "objects" / name[:2] / name

    def open(self, name: str) -> BinaryIO | None:
        """Opens an object for reading, and notes that it was used; None if it is not there."""
        path = self.path_of(name)
        try:
            file = open(path, "rb")  # noqa: SIM115  # whoever asked closes it
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return file

    def hold(self, names: Iterable[str]) -> int:
        """Notes that objects are used by this process from now on; returns how many of them are there."""
        there = 0
        for name in names:
            with contextlib.suppress(OSError):
                os.utime(self.path_of(name))
                there += 1
        return there

    def keep(self, name: str, content: bytes, syncs: bool = True) -> bool:
        """Keeps an object, if there is room beside what was used since this cache was opened; returns whether.

        In the place of an older one of the same run, it would be of no use: each epoch reads all images once, and so
        would find a part that changes all the time less often than one that stays.

        Args:
            name: What tells its content.
            content: Its bytes.
            syncs: Whether they are to outlast a crash of the machine: not where whoever reads them checks a digest.
        """
        if time.monotonic() < self._full_until or os.path.exists(self.path_of(name)):
            return os.path.exists(self.path_of(name))
        temporary = self.folder / "parts" / f"{name}.{uuid.uuid4().hex}.tmp"
        with self.trouble():
            try:
                temporary.write_bytes(content)
                if syncs:
                    sync_to_disk(temporary)
                self.path_of(name).parent.mkdir(exist_ok=True)
                with self._room(self.path_of(name), len(content), self._started) as has_room:
                    if has_room:
                        os.replace(temporary, self.path_of(name))
                return has_room
            finally:
                temporary.unlink(missing_ok=True)
        return False

    def forget(self, name: str) -> None:
        """Removes an object, if it is there."""
        path = self.path_of(name)
        with self.trouble(), contextlib.suppress(FileNotFoundError), self._locked() as used:
            size = path.stat().st_size
            path.unlink()
            self._write(used - size)

    def begin(self, name: str, num_bytes: int) -> Path | None:
        """Returns the file into which a large object is to be written, as large as it will be, or None without room.

        The objects longest unused make room for it. What a process that was killed has written is there still.

        Args:
            name: What tells its content.
            num_bytes: Of all of it.
        """
        part = self.folder / "parts" / name
        with self.trouble(), self._room(part, num_bytes, None) as has_room:
            if not has_room:
                return None
            with part.open("ab") as file:
                file.truncate(num_bytes)
            return part
        return None

    def finish(self, name: str) -> None:
        """Makes what was written into the file of `begin` the object of that name.

        Raises:
            OSError: If it cannot be.
        """
        path, part = self.path_of(name), self.folder / "parts" / name
        path.parent.mkdir(exist_ok=True)
        sync_to_disk(part)
        os.replace(part, path)

    @contextlib.contextmanager
    def _room(self, file: Path, num_bytes: int, before: int | None) -> Iterator[bool]:
        """Makes room; yields whether there is, and then counts it as used.

        Args:
            file: What the room is for; if it is there, it is counted already.
            num_bytes: How many.
            before: Remove nothing that was used after this time (ns); None: whatever is the longest unused.
        """
        with self._locked() as used:
            num_bytes = 0 if file.exists() else num_bytes
            if used + num_bytes > self.max_bytes >= num_bytes:
                goal = self.max_bytes * (1 - _TO_SPARE) - num_bytes
                used = self._remove_down_to(max(goal, 0), used, before)
            has_room = used + num_bytes <= self.max_bytes
            if not has_room:
                self._full_until = time.monotonic() + _LOOK_EVERY
            yield has_room
            self._write(used + num_bytes * has_room)

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Waits until no other process does the same thing, and keeps others waiting.

        Args:
            what: Names it, as part of a file's name.
        """
        with contextlib.ExitStack() as stack:
            with self.trouble():
                lock = stack.enter_context((self.folder / f".{what}.lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def remembered(self, states: Sequence[tuple[str, str]]) -> dict[str, str]:
        """Returns the SHA-256 of those files that are in the state in which they were read: address -> digest.

        Args:
            states: Address and state of each.
        """
        found: dict[str, str] = {}
        with contextlib.suppress(sqlite3.Error, OSError), self._database() as database:
            for start in range(0, len(states), 500):
                part = dict(states[start : start + 500])
                marks = ",".join("?" * len(part))
                rows = database.execute(
                    f"SELECT address, state, sha256 FROM {_TABLE} WHERE address IN ({marks})", [*part]
                )
                found.update({address: digest for address, state, digest in rows if state and part[address] == state})
        return found

    def remember(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Remembers address, state and SHA-256 of files."""
        with contextlib.suppress(sqlite3.Error, OSError), self._database() as database:
            database.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?)", rows)
            database.commit()

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.folder / "files.sqlite", timeout=30)) as database:
            database.execute(f"CREATE TABLE IF NOT EXISTS {_TABLE} (address TEXT PRIMARY KEY, state TEXT, sha256 TEXT)")
            yield database

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Yields the bytes of all objects, which no other process changes meanwhile."""
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                used = json.loads((self.folder / "used").read_text())
            except (OSError, ValueError):
                used = sum(size for _, size, _ in self._objects())
            yield int(used)

    def _write(self, used: int) -> None:
        (self.folder / "used").write_text(str(max(used, 0)))

    def _recount(self) -> int:
        """Counts the bytes that are there, since a process that was killed may have counted some that are not."""
        used = 0
        with self.trouble(), self._locked():
            used = sum(size for _, size, _ in self._objects())
            for part in (self.folder / "parts").iterdir():
                status = part.stat()
                if status.st_mtime < time.time() - _FORGOTTEN:
                    part.unlink(missing_ok=True)
                elif part.suffix != ".tmp":
                    used += status.st_size
            self._write(used)
        return used

    def _objects(self) -> Iterator[tuple[int, int, Path]]:
        """Yields the time of last use (ns), size and path of every object."""
        for folder in (self.folder / "objects").iterdir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        status = entry.stat()
                        yield status.st_mtime_ns, status.st_size, Path(entry.path)

    def _remove_down_to(self, goal: float, used: int, before: int | None) -> int:
        for last_use, size, path in sorted(self._objects()):
            if used <= goal or (before is not None and last_use >= before):
                break
            with contextlib.suppress(OSError):
                path.unlink()
                used -= size
        return used

    @contextlib.contextmanager
    def trouble(self) -> Iterator[None]:
        """Says once that the disk takes no more; files are then read from where they are, each time."""
        try:
            yield
        except OSError as error:
            self._full_until = time.monotonic() + _LOOK_EVERY
            if not self._has_told:
                self._has_told = True
                reason = error.strerror or str(error)
                print(
                    f"lit-cnn: warning: {self.folder} keeps no more files ({reason}): they are read again each time; "
                    "make room there, or set XDG_CACHE_HOME to another folder",
                    file=sys.stderr,
                )
