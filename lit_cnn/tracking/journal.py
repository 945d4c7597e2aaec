"""A run's journal: what the run logged, in a local file, before and whether or not MLflow has it.

One folder per run, named by the run's key:

    journal.jsonl   one JSON object a line, only ever appended to; the first line is the header
    owner.lock      held (flock) by the process that logs, for as long as it lives; holds its number and token
    run.json        written by the sender: the MLflow run that the journal went to
    sent.json       written by the sender: how far it has come (see `lit_cnn.tracking.progress`)
    send.lock       held by the sender that is at work on the journal
    reserve         a block that is set free for the last line, how the run ended, where there is no room for it
    best.ckpt, …    whatever else belongs to the run

A line is written with one call and never kept back in memory, so a process that is killed loses nothing that it logged;
`flush` makes it safe against power loss too. Only a journal that waits for room keeps what finds none, in order. Times
are fixed here, when a thing is logged, so that sending a line twice gives MLflow the identical row, kept once.
"""

import contextlib
import errno
import fcntl
import functools
import json
import math
import os
import time
import uuid
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_names import in_sentence
from lit_cnn.core.files import CANNOT_WRITE, sync_to_disk
from lit_cnn.core.words import counted
from lit_cnn.tracking import names

JOURNAL = "journal.jsonl"
_OWNER = "owner.lock"
_RESERVE = "reserve"
_RESERVE_BYTES = 4096  # the least that a file takes
_CLAIM_PATIENCE = 2.0  # seconds that an owner is given to end
_ASKER_PATIENCE = 60.0  # seconds that whoever asks for the owner is given to let go of the lock

Record = dict[str, Any]


@dataclass(frozen=True)
class RunHeader:
    """What a run is, known at once, even with the server away.

    Attributes:
        experiment: Name of the MLflow experiment.
        run_name: The run's name in MLflow.
        store: `Store.label` of the store that the run is for.
        parent_key: Key of the run under which this one is shown, if any.
        user: Who started the run.
        key: Our own id of the run, 32 hexadecimal digits; the MLflow run carries it as tag `lit_cnn.key`.
        created: Milliseconds since 1970.
    """

    experiment: str
    run_name: str
    store: str
    parent_key: str | None
    user: str
    key: str
    created: int

    @classmethod
    def new(cls, experiment: str, run_name: str, store: str, parent_key: str | None, user: str) -> Self:
        """Returns the header of a run that starts now.

        Raises:
            UsageError: If the experiment's name is empty or longer than MLflow takes.
        """
        names.check_experiment_name(experiment)
        return cls(experiment, run_name, store, parent_key, user, uuid.uuid4().hex, now_ms())


@dataclass(frozen=True)
class Process:
    """A process, told apart from all others, also on other machines and after it has ended, by a random token."""

    pid: int
    token: str

    @classmethod
    def this(cls) -> "Process":
        """Returns the calling process."""
        return _process(os.getpid())  # by number, so that a fork gets a token of its own


@functools.cache
def _process(pid: int) -> Process:
    return Process(pid, uuid.uuid4().hex)


class Journal:
    """Writes one run's journal; made by `create` or `reopen`, ended by `close`.

    Attributes:
        folder: The run's.
        header: What the run is.
        buffer_when_disk_full: Keep in memory what a full disk does not take, and write it when there is room again.
    """

    def __init__(self, folder: Path, header: RunHeader, owner_lock: int, steps: dict[str, set[int]] | None) -> None:
        self.folder = folder
        self.header = header
        self.buffer_when_disk_full = False
        self._unwritten: deque[Record] = deque()
        self._owner_lock = owner_lock
        self._file = os.open(folder / JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._size = os.fstat(self._file).st_size
        # The steps logged so far, per metric: the last of each is enough as long as steps go up. The sets cost
        # memory, so they are read from the file only once a step comes that is not beyond the last.
        self._steps = steps
        self._last_step = {name: max(seen) for name, seen in (steps or {}).items()}
        _release_after_fork(self)

    @classmethod
    def create(cls, journal_dir: Path, header: RunHeader) -> Self:
        """Starts the journal of a new run: `journal_dir/<key>/`.

        Raises:
            OSError: If the folder cannot be made or written to.
        """
        # Made under a hidden name and renamed, so that nobody ever meets a journal without header or owner.
        hidden = journal_dir / f".{header.key}"
        hidden.mkdir(parents=True)
        owner_lock = _claim(hidden)
        (hidden / JOURNAL).write_text(_line({"kind": "header", **asdict(header)}), encoding="utf-8")
        (hidden / _RESERVE).write_bytes(bytes(_RESERVE_BYTES))
        sync_to_disk(hidden / JOURNAL)
        sync_to_disk(hidden)
        folder = journal_dir / header.key
        hidden.rename(folder)
        sync_to_disk(journal_dir)
        return cls(folder, header, owner_lock, None)

    @classmethod
    def reopen(cls, folder: Path) -> Self:
        """Goes on with a run whose process has ended: drops a torn end, learns what is there, notes the new attempt.

        Raises:
            UsageError: If there is no journal in `folder`, or its run is still running in another process.
        """
        header = read_header(folder)
        if header is None:
            raise UsageError(
                None, folder, "no run of lit_cnn to resume there", "give the folder of a checkpoint it wrote"
            )
        owner_lock = _claim(folder)
        end = 0
        steps: dict[str, set[int]] = {}
        for record, after in read_journal(folder):
            _note_steps(steps, record)
            end = after
        os.truncate(folder / JOURNAL, end)
        with contextlib.suppress(OSError):  # the next line says whether there is room
            (folder / _RESERVE).write_bytes(bytes(_RESERVE_BYTES))
        journal = cls(folder, header, owner_lock, steps)
        journal.append({"kind": "attempt", "time": now_ms()})
        return journal

    def append(self, record: Mapping[str, Any]) -> None:
        """Appends one record: a mapping with the entry "kind" that JSON can hold.

        Raises:
            OSError: If the disk is full or gone; the journal then is as it was before. Not of a full one if the
                journal waits for room.
        """
        self._unwritten.append(dict(record))
        try:
            self._write()
        except OSError as error:
            if self.buffer_when_disk_full and error.errno in CANNOT_WRITE:
                return
            self._unwritten.pop()
            raise

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Appends the values, without those whose (metric, step) is there already.

        Args:
            metrics: Finite or not; what is not a float is converted.
            step: The global step.

        Raises:
            UsageError: If MLflow would refuse a metric's name.
        """
        values = {name: float(value) for name, value in metrics.items() if self._is_new(name, step)}
        if values:
            self.append({"kind": "metrics", "time": now_ms(), "step": step, "values": values})

    def flush(self) -> None:
        """Returns once all that was appended is safe against power loss (against a kill it always is).

        Raises:
            OSError: If there is no room for what waits for it.
        """
        self._write()
        os.fsync(self._file)

    def forget_unwritten(self) -> str:
        """Gives up what still finds no room, and sets the reserve free for one line more.

        Returns:
            How many values are not stored, in words; "" if all are.
        """
        with contextlib.suppress(OSError):
            self._write()
        lost = self._unwritten_in_words()
        self._unwritten.clear()
        (self.folder / _RESERVE).unlink(missing_ok=True)
        return lost

    def close(self) -> None:
        """Gives the journal up: the process no longer counts as its owner."""
        if self._file >= 0:
            with contextlib.suppress(OSError):  # 4 kB
                (self.folder / _RESERVE).unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            os.close(self._owner_lock)
            self._file = -1

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._file < 0

    @property
    def is_waiting(self) -> bool:
        """Whether anything waits for room."""
        return bool(self._unwritten)

    def _write(self) -> None:
        """Writes what is not written yet, line by line: what is there is whole and in order."""
        while self._unwritten:
            line = _line(self._unwritten[0]).encode()
            try:
                written = os.write(self._file, line)
                if written != len(line):
                    os.ftruncate(self._file, self._size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                reason = f"{os.strerror(error.errno or 0)}: no room for {self._unwritten_in_words() or 'a line'}"
                raise OSError(error.errno, reason, str(self.folder / JOURNAL)) from error
            self._size += written
            self._unwritten.popleft()

    def _unwritten_in_words(self) -> str:
        metrics = [record for record in self._unwritten if record["kind"] == "metrics"]
        others = sum(record["kind"] not in ("metrics", "attempt", "end") for record in self._unwritten)
        words = []
        if metrics:
            count = sum(len(record["values"]) for record in metrics)
            words.append(f"{counted(count, 'value')} of metrics from step {metrics[0]['step']} on")
        if others:
            words.append(f"{others:,} {'param, tag or file' if others == 1 else 'params, tags or files'}")
        return " and ".join(words)

    def _is_new(self, name: str, step: int) -> bool:
        """Whether (name, step) was not logged before; notes it."""
        last = self._last_step.get(name)
        if last is None:
            names.check_metric_name(name)
        if last is None or step > last:
            self._last_step[name] = step
        else:
            if self._steps is None:
                self._steps = {}
                for record, _ in read_journal(self.folder):
                    _note_steps(self._steps, record)
                for record in self._unwritten:
                    _note_steps(self._steps, record)
            if step in self._steps.get(name, ()):
                return False
        if self._steps is not None:
            self._steps.setdefault(name, set()).add(step)
        return True


def read_journal(folder: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Yields the records from byte `offset` on, each with the offset at which the next one starts.

    Ends before a line that is not complete yet, or that a power cut has left without sense. Values of metrics are
    floats again, NaN and infinities included.
    """
    with (folder / JOURNAL).open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError:
                return
            if not (isinstance(record, dict) and "kind" in record):
                return
            offset += len(line)
            if record["kind"] == "metrics":
                record["values"] = {name: float(value) for name, value in record["values"].items()}
            yield record, offset


def read_header(folder: Path) -> RunHeader | None:
    """Returns the header of the journal in `folder`, or None if there is no journal, or its first line is damaged."""
    try:
        record, _ = next(read_journal(folder), (None, 0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if record is None or record.get("kind") != "header":
        return None
    fields: Record = {name: record.get(name) for name in RunHeader.__dataclass_fields__}
    is_whole = all(value is not None for name, value in fields.items() if name != "parent_key")
    return RunHeader(**fields) if is_whole else None


def read_owner(folder: Path) -> Process | None:
    """Returns the process that logs to the journal, or None if it has ended, however it ended.

    Asks the lock that the kernel takes from a process at its death: also right in containers and after a reboot,
    where process numbers start anew.
    """
    with (folder / _OWNER).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            try:
                return Process(**json.loads(file.read()))
            except ValueError:  # in the instant in which it is written
                return Process(0, "")


def now_ms() -> int:
    """Returns the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _claim(folder: Path) -> int:
    """Makes this process the journal's owner; returns the descriptor whose closing gives it up."""
    descriptor = os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    start = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            # Without an owner it is a sender that asks, for an instant; but at low priority, on a busy machine.
            patience = _ASKER_PATIENCE if read_owner(folder) is None else _CLAIM_PATIENCE
            if time.monotonic() - start > patience:
                os.close(descriptor)
                raise UsageError(
                    None, folder, "this run is still running in another process", "end that first"
                ) from None
            time.sleep(0.05)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(Process.this())).encode(), 0)
    return descriptor


def _release_after_fork(journal: Journal) -> None:
    """Lets a forked child (a loader's worker) drop its copy of the lock, which would outlive the owner."""
    reference = weakref.ref(journal)

    def close_in_child() -> None:
        inherited = reference()
        if inherited is not None:
            inherited._release()

    os.register_at_fork(after_in_child=close_in_child)


def _line(record: Mapping[str, Any]) -> str:
    try:
        line = json.dumps(record, allow_nan=False)
        if "\\ud" in line:  # an option may be the name of a file; MLflow needs text
            line = in_sentence(json.dumps(record, allow_nan=False, ensure_ascii=False))
        return line + "\n"
    except ValueError:
        # JSON has no NaN and no infinity: they are kept as "nan", "inf", "-inf", which float() reads.
        values = {name: value if math.isfinite(value) else str(value) for name, value in record["values"].items()}
        return json.dumps({**record, "values": values}, allow_nan=False) + "\n"


def _note_steps(steps: dict[str, set[int]], record: Record) -> None:
    if record["kind"] == "metrics":
        for name in record["values"]:
            steps.setdefault(name, set()).add(record["step"])
