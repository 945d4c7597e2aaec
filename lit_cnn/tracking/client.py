"""A connection to MLflow that fails fast, and finds its files again after its folder was moved."""

import fcntl
import logging
import os
import socket
import sqlite3
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lit_cnn.core.errors import UsageError
from lit_cnn.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_CONNECT_TIMEOUT = 3.0  # seconds
# No retries inside a request: a repeated "create run" makes a second run. The sender repeats, and looks first.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # which would have the password that is in the address
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
# Where MLflow keeps absolute paths of artifacts.
_PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def connect(store: Store) -> "MlflowClient":
    """Returns a client of the store, which is made if it is an sqlite file that does not exist yet.

    Raises:
        ConnectionError: If the server does not answer within 3 s.
    """
    require_reachable(store)
    _set_environment()
    from mlflow.tracking import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    with _one_at_a_time(store):
        if store.database is not None and _is_unmade(store.database):
            _make(store.database)
        client = MlflowClient(store.tracking_uri)
        repair_moved_store(store)
    return client


def _is_unmade(database: Path) -> bool:
    """Whether a database is not there, or its making was cut short: then MLflow would never get over it.

    The first experiment comes last.
    """
    if not database.exists() or database.stat().st_size == 0:
        return True
    try:
        with closing(sqlite3.connect(database, timeout=30)) as connection:
            return connection.execute("SELECT count(*) FROM experiments").fetchone() == (0,)
    except sqlite3.Error:
        return False  # for MLflow to judge


def _make(database: Path) -> None:
    """Makes an empty database beside its place, and moves it there when it is whole."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = database.with_name(f".{database.name}.new")
    new.unlink(missing_ok=True)  # of a process that was killed
    database.parent.mkdir(parents=True, exist_ok=True)
    SqlAlchemyStore(f"sqlite:///{new}", str(database.parent)).engine.dispose()
    os.replace(new, database)


def import_mlflow() -> None:
    """Imports what `connect` would, the seconds of it, before the store is known."""
    _set_environment()
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  # brings all else along


def require_reachable(store: Store) -> None:
    """Raises ConnectionError if a server is to be asked and nobody listens there, within 3 s.

    Behind a proxy only the request itself can tell, so nothing is asked here then.
    """
    if not store.is_http or urllib.request.getproxies():
        return
    parts = urlsplit(store.tracking_uri)
    address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    try:
        socket.create_connection(address, timeout=_CONNECT_TIMEOUT).close()
    except OSError as error:
        raise ConnectionError(f"{store.label} does not answer ({error.strerror or error})") from error


def unreachable(store: Store, error: ConnectionError) -> UsageError:
    """Returns what to tell the user of a server that does not answer."""
    reason = str(error).removeprefix(f"{store.label} ")
    return UsageError("tracking_uri", store.label, reason, "start the server, or give another store")


def is_timeout(error: BaseException | None) -> bool:
    """Whether an exception came, by way of others, of a server that took a request and did not answer in time."""
    while error is not None and not isinstance(error, TimeoutError):
        error = error.__cause__ or error.__context__
    return error is not None


def repair_moved_store(store: Store) -> dict[str, str]:
    """Lets an sqlite store whose folder was moved, renamed or copied find its artifacts next to the database.

    MLflow keeps absolute paths. A recorded `OLD/artifacts/…` that is not next to the database is rewritten if its
    folder is there now, or if `OLD/artifacts` no longer exists. Artifacts kept elsewhere on purpose stay there.

    Returns:
        What was rewritten: old folder of an experiment's artifacts -> the new one.
    """
    if store.database is None or store.artifact_location is None or not store.database.is_file():
        return {}
    here = Path(store.artifact_location)
    with closing(sqlite3.connect(store.database, timeout=30)) as database, database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in tables:
            return {}
        recorded = [path for (path,) in database.execute("SELECT artifact_location FROM experiments") if path]
        moved = {path: str(here / Path(path).name) for path in recorded if _has_moved(Path(path), here)}
        for old, new in moved.items():
            for table, column in _PATH_COLUMNS:
                if table in tables:
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )
    return moved


def _set_environment() -> None:
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})


def _has_moved(recorded: Path, here: Path) -> bool:
    if not recorded.is_absolute() or recorded.parent.name != here.name or recorded.parent == here:
        return False
    return (here / recorded.name).is_dir() or not recorded.parent.is_dir()


@contextmanager
def _one_at_a_time(store: Store) -> Iterator[None]:
    """Lets one process at a time make its first contact with a database: MLflow's migrations crash side by side.

    For PostgreSQL that holds among the processes that share a folder of runs; a server is its own and only client.
    """
    if store.is_http:
        yield
        return
    store.folder.mkdir(parents=True, exist_ok=True)
    with (store.folder / ".init.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
