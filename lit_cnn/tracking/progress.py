"""How far a journal has come on its way to MLflow: written by the sender, read by the trainer that waits for it."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from lit_cnn.core.files import write_text_atomically
from lit_cnn.tracking.journal import JOURNAL

_PROGRESS = "sent.json"
_RUN = "run.json"
_LOCK = "send.lock"


@dataclass
class Progress:
    """The state of one journal's delivery.

    Attributes:
        offset: Bytes of the journal that MLflow has.
        status: The run's status in MLflow, None before it is there.
        complete_size: Size of the journal, in bytes, at which there was nothing left to do; -1 before that.
        error: Why the last attempt failed, None after one that went well.
        error_since: When the first of the failures in a row came, in seconds since 1970.
        last_success: When MLflow last took something, in seconds since 1970.
    """

    offset: int = 0
    status: str | None = None
    complete_size: int = -1
    error: str | None = None
    error_since: float | None = None
    last_success: float | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Returns the state kept in `folder`; that of an unsent journal if none is (all is then sent again)."""
        try:
            return cls(**json.loads((folder / _PROGRESS).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return cls()

    def write(self, folder: Path) -> None:
        """Keeps the state in `folder`."""
        write_text_atomically(folder / _PROGRESS, json.dumps(asdict(self)))

    def note_success(self, offset: int) -> None:
        """Notes that MLflow has everything before `offset`."""
        self.offset, self.error, self.error_since, self.last_success = offset, None, None, time.time()

    def note_failure(self, error: str) -> None:
        """Notes that an attempt failed."""
        self.error, self.error_since = error, self.error_since or time.time()

    def is_complete(self, folder: Path) -> bool:
        """Whether the run has ended and MLflow has all of it."""
        return self.complete_size == journal_size(folder)


@dataclass(frozen=True)
class MlflowRun:
    """The MLflow run that a journal goes to."""

    run_id: str
    experiment_id: str

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Returns the run of the journal in `folder`, or None if it is not known yet."""
        try:
            return cls(**json.loads((folder / _RUN).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Keeps the run in `folder`."""
        write_text_atomically(folder / _RUN, json.dumps(asdict(self)))


def journal_size(folder: Path) -> int:
    """Returns the journal's size in bytes."""
    return (folder / JOURNAL).stat().st_size


def unsent_bytes(folder: Path) -> int:
    """Returns how many bytes of the journal MLflow does not have yet."""
    progress = Progress.read(folder)
    return 0 if progress.is_complete(folder) else journal_size(folder) - progress.offset


@contextmanager
def sending(folder: Path) -> Iterator[bool]:
    """Yields whether this process may send the journal: one at a time does; False if another is at it."""
    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        os.utime(file.fileno())
        yield True


def last_attempt(folder: Path) -> float:
    """Returns when a sender last began to send the journal, in seconds since 1970; 0 if none ever did."""
    try:
        return (folder / _LOCK).stat().st_mtime
    except FileNotFoundError:
        return 0.0
