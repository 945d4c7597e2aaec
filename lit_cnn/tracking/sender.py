"""The process that sends journals to MLflow during training, and `lit-cnn sync`, which does it once.

    python -m lit_cnn.tracking.sender

It imports MLflow, which takes seconds, and then waits for an `Order` on standard input: a process that is about to
train starts it while it still has imports of its own to make. Without an order it ends, having written nothing, when
its parent does.

It serves the journals of the process that started it, and those whose process has ended before all was sent. It lives
as long as there is something to do for either, so it outlives its parent for as long as the store takes what is left.
"""

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from lit_cnn.tracking.client import import_mlflow
from lit_cnn.tracking.delivery import Courier, in_one_line
from lit_cnn.tracking.journal import JOURNAL, Process, RunHeader, read_header, read_owner
from lit_cnn.tracking.progress import Progress
from lit_cnn.tracking.store import Store

LOG = "sender.log"
_NICE = 5  # training comes first, but on a busy machine no run is to wait minutes at its end for its sender
_POLL = 1.0  # seconds between two looks at the journals
_LONGEST_PAUSE = 3.0  # seconds between two attempts while the store fails; less than a process waits at its end
_SLICE = 3.0  # seconds for one journal before it is the next one's turn
_PATIENCE_IDLE = 5.0  # seconds to stay with nothing left to do
_PATIENCE_STUCK = 20.0  # seconds to go on trying for a process that has ended


@dataclass
class SyncSummary:
    """What `sync` did.

    Attributes:
        sent: Keys of the runs that are complete in MLflow now and were not before.
        running: Keys of the runs that still run, or that another process is sending.
        failed: Key of each run that could not be sent -> why.
        elsewhere: Label of another store -> number of runs in the same folder that wait for it.
    """

    sent: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, int] = field(default_factory=dict)


def sync(store: Store, *, show_progress: bool = True) -> SyncSummary:
    """Sends everything unsent, once, with a line on stderr that says how far it is.

    Journals of runs that are still running are sent as far as they go; those are left running.
    """
    summary, courier, backlog = SyncSummary(), Courier(store), Backlog(store)
    waiting = list(backlog.unfinished())
    for number, (folder, _) in enumerate(waiting, start=1):
        if show_progress:
            print(f"\r{number} of {len(waiting)} runs: {folder.name}", end="", file=sys.stderr, flush=True)
        try:
            courier.deliver(folder)
        except ConnectionError as error:  # nobody is there: no use in asking again for each run
            summary.failed |= {left.name: in_one_line(error) for left, _ in waiting[number - 1 :]}
            break
        except Exception as error:
            summary.failed[folder.name] = in_one_line(error)
            continue
        complete = Progress.read(folder).is_complete(folder)
        (summary.sent if complete else summary.running).append(folder.name)
    if show_progress and waiting:
        print(file=sys.stderr)
    summary.elsewhere = backlog.elsewhere
    summary.failed |= {
        folder.name: f"{folder / JOURNAL}: its first line, which says what the run is, is missing or damaged; mend it, "
        "or move its folder away"
        for folder in backlog.unreadable
    }
    return summary


class Backlog:
    """Finds the journals of one store that are not completely sent, at one `stat` for each that is."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.elsewhere: dict[str, int] = {}
        self.unreadable: list[Path] = []
        self._complete: dict[str, int] = {}
        self._headers: dict[str, RunHeader] = {}

    def unfinished(self) -> list[tuple[Path, RunHeader]]:
        """Returns the folders and headers, oldest run first.

        Counts those for other stores in `elsewhere`, and notes the folders without a header in `unreadable`.
        """
        found, self.elsewhere, self.unreadable = [], {}, []
        try:
            folders = [Path(entry.path) for entry in os.scandir(self.store.journal_dir) if entry.name[0] != "."]
        except FileNotFoundError:
            return []
        for folder in folders:
            header = self._header_if_unfinished(folder)
            if header is None:
                continue
            if header.store == self.store.label:
                found.append((folder, header))
            else:
                self.elsewhere[header.store] = self.elsewhere.get(header.store, 0) + 1
        return sorted(found, key=lambda item: item[1].created)

    def _header_if_unfinished(self, folder: Path) -> RunHeader | None:
        try:
            size = os.stat(folder / JOURNAL).st_size
        except OSError:  # no run's folder
            return None
        name = folder.name
        if self._complete.get(name) == size:
            return None
        if Progress.read(folder).complete_size == size:
            self._complete[name] = size
            return None
        if name not in self._headers:
            header = read_header(folder)
            if header is None:
                self.unreadable.append(folder)
                return None
            self._headers[name] = header
        return self._headers[name]


@dataclass(frozen=True)
class Order:
    """What a sender is to do.

    Attributes:
        store: Where to send, and whose journals.
        parent: The process whose journals to send while it runs.
    """

    store: Store
    parent: Process

    def to_json(self) -> str:
        """Returns the order as one line; not for a command line, which all can read: addresses may hold passwords."""
        return json.dumps({"store": asdict(self.store), "parent": asdict(self.parent)}, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Returns what `to_json` was called on."""
        fields = json.loads(text)
        store = Store(**{**fields["store"], "journal_dir": Path(fields["store"]["journal_dir"])})
        return cls(store, Process(**fields["parent"]))


class Sender:
    """Serves one process's journals and the orphans, until there is nothing left to do."""

    def __init__(self, store: Store, parent: Process) -> None:
        self._backlog = Backlog(store)
        self._courier = Courier(store)
        self._parent = parent
        self._failures: dict[Path, int] = {}
        self._retry_at: dict[Path, float] = {}

    def serve(self) -> None:
        """Polls and sends; returns when it is no longer needed."""
        last_use = time.monotonic()
        while True:
            start = time.monotonic()
            mine, orphans = self._split()
            looked_for = time.monotonic() - start
            sent, is_rest_left = self._attempt_all(mine + orphans)
            now = time.monotonic()
            if mine or sent:
                last_use = now
            if now - last_use > (_PATIENCE_STUCK if orphans else _PATIENCE_IDLE):
                return
            if not is_rest_left:
                time.sleep(max(_POLL, 50 * looked_for))  # so thousands of old runs cost 2 % of a core at most

    def _split(self) -> tuple[list[Path], list[Path]]:
        """Returns the unfinished journals of the parent and below its runs, and those whose owner has ended."""
        mine, orphans = [], []
        parents: set[str] = set()
        for folder, header in self._backlog.unfinished():  # a parent before its children
            try:
                owner = read_owner(folder)
            except FileNotFoundError:
                continue
            # The children of its runs are its own, whichever process logs them: a search has one sender.
            if owner == self._parent or (owner is not None and header.parent_key in parents):
                mine.append(folder)
                parents.add(folder.name)
            elif owner is None:
                orphans.append(folder)
        return mine, orphans

    def _attempt_all(self, folders: list[Path]) -> tuple[int, bool]:
        """Gives each journal its time; returns how many bytes were sent and whether one needs more time.

        After a failure a journal has to wait, longer each time.
        """
        sent, is_rest_left = 0, False
        for folder in folders:
            if time.monotonic() < self._retry_at.get(folder, 0.0):
                continue
            before = Progress.read(folder).offset
            try:
                is_rest_left |= self._courier.deliver(folder, _SLICE)
            except ConnectionError as error:
                self._note_failure(folder, error)
                break  # nobody is there: no use in asking again for each journal
            except Exception as error:
                self._note_failure(folder, error)
            else:
                self._retry_at.pop(folder, None)
                if self._failures.pop(folder, 0):
                    _say(f"{folder.name}: going on")
            sent += Progress.read(folder).offset - before
        return sent, is_rest_left

    def _note_failure(self, folder: Path, error: Exception) -> None:
        failures = self._failures[folder] = self._failures.get(folder, 0) + 1
        self._retry_at[folder] = time.monotonic() + min(_LONGEST_PAUSE, 0.5 * 2 ** min(failures, 10))
        if failures == 1:
            _say(f"{folder.name}: {in_one_line(error)}")


def main() -> None:
    """Runs the sender; see the module's docstring."""
    _yield_to_training()
    with contextlib.suppress(ImportError):  # comes again at the first delivery, and is reported there
        import_mlflow()
    text = sys.stdin.readline()
    if not text:
        return
    order = Order.from_json(text)
    log = os.open(order.store.journal_dir / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.environ["MLFLOW_TRACKING_URI"] = order.store.tracking_uri  # some of MLflow asks that rather than its client
    Sender(order.store, order.parent).serve()


def _yield_to_training() -> None:
    os.nice(_NICE)
    with contextlib.suppress(OSError):
        # A session of its own is a scheduling group of its own on Linux, within which alone nice counts.
        Path("/proc/self/autogroup").write_text(str(_NICE), encoding="ascii")


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # the log may be on the full disk that the message is about
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} sender {os.getpid()}: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
