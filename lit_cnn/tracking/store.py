"""Where runs are kept: which MLflow store, which local folders, and what their files are called."""

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from lit_cnn.core.errors import UsageError

_SQLITE = "sqlite:///"
_FOLDER = "mlruns"  # in the working directory
_SQLITE_HEADER = b"SQLite format 3\x00"
_ADVICE = "give sqlite:///PATH.db, http(s)://HOST:PORT or postgresql://USER@HOST/NAME"

BEST, LAST = "best.ckpt", "last.ckpt"
"""Checkpoints in a run's folder: of the best epoch, and the one to resume from."""
UNFINISHED = "unfinished.json"
"""File in a run's folder until the run has ended as it should."""
CHECKPOINTS = "checkpoints"
"""Folder of checkpoints among a run's artifacts."""
BEST_CHECKPOINT = f"{CHECKPOINTS}/{BEST}"


@dataclass(frozen=True)
class Store:
    """One MLflow store and the local folders that belong to it.

    Attributes:
        tracking_uri: What MLflow connects to: `sqlite:////absolute/path.db`, `http(s)://…` or `postgresql://…`.
        artifact_location: The local folder under which artifacts lie; None where the server decides.
        journal_dir: The local folder that holds one folder per run (see `lit_cnn.tracking.journal`).
    """

    tracking_uri: str
    artifact_location: str | None
    journal_dir: Path

    @property
    def database(self) -> Path | None:
        """The sqlite file, or None for a store behind a server."""
        return Path(self.tracking_uri.removeprefix(_SQLITE)) if self.tracking_uri.startswith(_SQLITE) else None

    @property
    def folder(self) -> Path:
        """The local folder that holds all others."""
        return self.journal_dir.parent

    @property
    def predictions_dir(self) -> Path:
        """The local folder of stored logits."""
        return self.folder / "predictions"

    @property
    def splits_dir(self) -> Path:
        """The local folder of split manifests, one file a split, shared by all runs."""
        return self.folder / "splits"

    @property
    def is_http(self) -> bool:
        """Whether the store is an MLflow server."""
        return self.tracking_uri.startswith(("http://", "https://"))

    @property
    def label(self) -> str:
        """The store's name without password, user or folder: safe to show, and the same after a move of a sqlite store.

        Journals of several stores may share a folder; each journal carries the label of the store that it is for.
        """
        if self.database is not None:
            return f"sqlite:{self.database.name}"
        parts = urlsplit(self.tracking_uri)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path.rstrip('/')}"


def resolve_store(tracking_uri: str | None = None) -> Store:
    """Returns the store to use; touches neither disk nor network.

    Args:
        tracking_uri: Wins over the environment variable MLFLOW_TRACKING_URI, which wins over
            `sqlite:///mlruns/mlflow.db` in the working directory.

    Raises:
        UsageError: If the address is none of sqlite, http(s) or postgresql. MLflow has given up plain folders.
    """
    here = Path.cwd()
    uri, origin = _first_given(tracking_uri, os.environ, here)
    if uri.startswith("sqlite:"):
        path = uri.removeprefix(_SQLITE)
        if not uri.startswith(_SQLITE) or not path or path.startswith(":memory:") or "?" in path:
            raise UsageError(*origin, "no path of a sqlite file", "give sqlite:///PATH.db, without '?'")
        database = Path(os.path.abspath(path))  # folds "..", follows no link
        return _local(f"{_SQLITE}{database}", database.parent)
    if re.match(r"https?://[^/]", uri):
        return replace(_local(uri.rstrip("/"), here / _FOLDER), artifact_location=None)
    if re.match(r"postgresql(\+\w+)?://", uri):
        return _local(uri, here / _FOLDER)
    raise UsageError(*origin, "MLflow keeps no runs there any more", _ADVICE)


def _local(uri: str, folder: Path) -> Store:
    return Store(uri, str(folder / "artifacts"), folder / "journal")


def check_writable(store: Store) -> None:
    """Refuses a store that cannot be written, before a run starts; leaves nothing behind.

    A server is not asked: a run must be able to start while it is down.

    Raises:
        UsageError: If the folder of the database, the artifacts or the journals cannot be made or written to, or if
            the database is a folder, not writable, or not a sqlite database.
    """
    database = store.database
    if database is not None:
        _check_database(database)
    elif re.match(r"postgresql://", store.tracking_uri) and importlib.util.find_spec("psycopg") is None:
        raise UsageError("tracking_uri", store.label, "needs a driver", "pip install 'lit-cnn[postgres]'")
    folders = [store.journal_dir]
    if store.artifact_location is not None:
        folders.append(Path(store.artifact_location))
    for folder in folders if database is None else [database.parent, *folders]:
        _check_folder(folder, store)


def _first_given(
    argument: str | None, environment: Mapping[str, str], here: Path
) -> tuple[str, tuple[str | None, str]]:
    """Returns the address, and how a message about it begins: an option and its value."""
    if argument:
        return argument, ("tracking_uri", argument)
    if uri := environment.get("MLFLOW_TRACKING_URI"):
        return uri, (None, f"MLFLOW_TRACKING_URI {uri}")
    uri = f"{_SQLITE}{here / _FOLDER / 'mlflow.db'}"
    return uri, ("tracking_uri", uri)


def _check_database(path: Path) -> None:
    try:
        with path.open("rb+") as file:  # opens for writing, writes nothing
            header = file.read(len(_SQLITE_HEADER))
    except FileNotFoundError:
        return  # will be made; its folder is checked next
    except OSError as error:
        raise _refusal(path, error.strerror or str(error)) from error
    if header not in (b"", _SQLITE_HEADER):
        raise _refusal(path, "is there and is no sqlite database")


def _check_folder(folder: Path, store: Store) -> None:
    """Really writes one block: permission bits say nothing to root, on a full disk or in /proc."""
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    probe = existing / f".lit_cnn-probe-{os.getpid()}"
    try:
        try:
            probe.write_bytes(bytes(4096))
        finally:
            if os.path.lexists(probe):
                probe.unlink()
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})" if existing.is_dir() else "is no folder"
        raise _refusal(store.database or folder, f"{existing} {reason}") from error


def _refusal(path: Path, reason: str) -> UsageError:
    remedy = "give a place that can be written, such as sqlite:///mlruns/mlflow.db"
    return UsageError("tracking_uri", path, reason, remedy)
