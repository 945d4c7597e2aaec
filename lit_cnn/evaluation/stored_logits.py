"""Logits as they are stored, here and with the run of their network; and what is found by them without the network."""

import atexit
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import write_text_atomically
from lit_cnn.tracking import Store, queries
from lit_cnn.tracking.outbox import put_in_place
from lit_cnn.tracking.queries import RunInfo

FOLDER = "logits"
"""Where they are among a run's files, under the names that they have here."""

Stored = TypeVar("Stored")


@dataclass(frozen=True)
class NetworkRecord:
    """What an evaluation wants to know of a network besides its logits, in plain values.

    Attributes:
        data: Options of the data module that it was trained with.
        class_names: In label order.
        preprocessing: What happens to an image before the network sees it.
        weights_digest: See `lit_cnn.training.checkpoints.digest_of_weights`.
        parameters: Numbers in its parameters, side branches included.
        multiply_adds: For one view.
    """

    data: dict[str, Any]
    class_names: list[str]
    preprocessing: dict[str, Any]
    weights_digest: str
    parameters: int
    multiply_adds: int


class RunLogits:
    """The logits that a tracked run keeps among its files, and records of the networks that they are of.

    Nothing here ends an evaluation: a warning names what cannot be fetched or kept.

    Args:
        store: Where the run is.
        run: As `find_networks` found it; what belongs to a snapshot is kept with its run.

    Attributes:
        new_record: A record to keep with the first logits, and its file here; None for none.
    """

    def __init__(self, store: Store, run: RunInfo) -> None:
        self.new_record: tuple[Path, NetworkRecord] | None = None
        self._store = store
        self._run = replace(run, run_id=run.run_id.partition("/")[0])
        self._name = f"run {run.name} ({self._run.run_id})"
        self._takes_files = True

    @cached_property
    def names(self) -> set[str]:
        """Names of the files that the run had when this was first read."""
        try:
            return queries.artifact_names(self._store, self._run, FOLDER)
        except UsageError as error:
            self._warn(f"{error}; what {self._name} keeps is not used")
            return set()

    def fetch(self, file: Path, read: Callable[[Path], Stored | None]) -> Stored | None:
        """Returns what is in the run's file of this name, which is then here too; None if there is no whole one.

        Args:
            file: Where it goes.
            read: Returns what is in a file, None if it is damaged.
        """
        if file.name not in self.names:
            return None
        with ExitStack() as leaving:
            folder = tempfile.mkdtemp(prefix="lit_cnn-")
            leaving.callback(shutil.rmtree, folder, ignore_errors=True)
            try:
                fetched = queries.download_artifact(self._store, self._run, f"{FOLDER}/{file.name}", Path(folder))
            except UsageError as error:
                self._warn(f"{error}; it is made anew")
                return None
            found = read(fetched)
            if found is None:
                self._warn(f"{FOLDER}/{file.name} of {self._name} is damaged; it is made anew")
                return None
            try:
                put_in_place(fetched, file)
            except OSError as error:
                self._warn(f"{file} cannot be written ({error.strerror}); {self._name} alone keeps it")
                atexit.register(leaving.pop_all().close)  # what was found may be read later
                return found
        return read(file)

    def put(self, files: Sequence[Path]) -> None:
        """Keeps files with the run under their names, in place of what it has there; the new record before them."""
        if self.new_record is not None:
            (file, record), self.new_record = self.new_record, None
            try:
                write_record(file, record)
                files = [file, *files]
            except OSError as error:
                self._warn(f"{file} cannot be written ({error.strerror}); the next evaluation loads the network again")
        for file in files:
            if self._takes_files:
                try:
                    queries.upload_artifact(self._store, self._run, file, FOLDER)
                    _here_only(file).unlink(missing_ok=True)
                    continue
                except UsageError as error:
                    # The others would fare no better, and each may have to wait for a server that is away.
                    self._takes_files = False
                    self._warn(f"{error}; the logits of {self._name} are in {file.parent} only")
            with suppress(OSError):
                _here_only(file).touch()

    def _warn(self, what: str) -> None:
        print(f"lit-cnn: warning: {what}", file=sys.stderr)


def find_stored(file: Path, read: Callable[[Path], Stored | None], run_logits: RunLogits | None) -> Stored | None:
    """Returns what is in a file here, or else in the run's of this name; None if neither has a whole one.

    What is here alone, since the run took no files when it was made, is kept with the run now, if it takes it.

    Args:
        file: The file here.
        read: As in `RunLogits.fetch`.
        run_logits: Of the network's run, if it has one.
    """
    found = read(file)
    if run_logits is None:
        return found
    if found is None:
        return run_logits.fetch(file, read)
    if _here_only(file).exists():
        run_logits.put([file])
    return found


def _here_only(file: Path) -> Path:
    """Returns the empty file that marks one that the run does not have yet."""
    return file.with_name(f"{file.name}.here_only")


def write_record(file: Path, record: NetworkRecord) -> None:
    """Writes a record as JSON with its SHA-256 inside, whole or not at all."""
    written = {"record": asdict(record), "sha256": _digest_of(record)}
    write_text_atomically(file, json.dumps(written, indent=2, sort_keys=True) + "\n")


def read_record(file: Path) -> NetworkRecord | None:
    """Returns a record, or None if there is none or the file is not as it was written."""
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        record = NetworkRecord(**written["record"])
        if _digest_of(record) != written["sha256"]:
            return None
        return replace(record, preprocessing={"crop_pct": 1.0, **record.preprocessing})  # earlier versions had no other
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _digest_of(record: NetworkRecord) -> str:
    return hashlib.sha256(json.dumps(asdict(record), sort_keys=True).encode()).hexdigest()
