"""Where Optuna keeps a study: a file that a kill leaves whole and unlocked, or a database."""

import fcntl
import os
from pathlib import Path
from typing import Any

from lit_cnn.core.credentials import without_credentials
from lit_cnn.core.errors import UsageError

_JOURNAL = "study.journal"


def open_storage(place: Path, url: str | None) -> Any:
    """Returns Optuna's storage.

    Args:
        place: The folder of the file.
        url: A database in its place.

    Raises:
        UsageError: If the database cannot be opened.
    """
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    if url is not None:
        return _database(url)
    file = place / _JOURNAL
    _drop_torn_end(file)
    return JournalStorage(JournalFileBackend(str(file), lock_obj=_lock(f"{file}.lock")))


def _database(url: str) -> Any:
    """Returns Optuna's storage in a database; one line instead of what its libraries raise."""
    import optuna

    try:
        # A connection that was cut is made anew.
        return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            "study", without_credentials(url), f"cannot be opened ({reason})", "give a database's URL"
        ) from error


def database_errors() -> tuple[type[Exception], ...]:
    """Returns what is raised where the database of a study does not answer any more."""
    import optuna
    import sqlalchemy

    return optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError


def not_answering(error: Exception) -> str:
    """Returns that in a line."""
    cause = error.__cause__ or error
    reason = without_credentials(" ".join(str(getattr(cause, "orig", cause)).split()))[:200]
    return f"the database of the study does not answer ({reason}); with `resume=auto` the search goes on when it does"


def _drop_torn_end(file: Path) -> None:
    """Takes away a line that a full disk or a power failure has left in two: Optuna would refuse the whole file."""
    if file.is_file() and not (content := file.read_bytes()).endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)


def _lock(path: str) -> Any:
    """Returns a lock that the kernel takes from a process at its death; Optuna's own would hold for half a minute."""
    from optuna.storages.journal._file import BaseJournalFileLock

    class KernelLock(BaseJournalFileLock):
        """Holds a file's lock."""

        def acquire(self) -> bool:
            """Waits for it."""
            self._held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._held, fcntl.LOCK_EX)
            return True

        def release(self) -> None:
            """Gives it up."""
            os.close(self._held)

    return KernelLock()
