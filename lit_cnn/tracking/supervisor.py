"""Starts this process's sender, starts it again if it dies, and says so when MLflow does not take what is logged."""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from lit_cnn.tracking.client import require_reachable
from lit_cnn.tracking.journal import Process
from lit_cnn.tracking.progress import Progress, last_attempt, unsent_bytes
from lit_cnn.tracking.sender import LOG, Order
from lit_cnn.tracking.store import Store

_CHECK_EVERY = 1.0  # seconds
_RESTART_AFTER = 10.0  # seconds between two starts, so that a sender that cannot start is no burden
_WARN_AFTER_ERROR = 3.0  # seconds of failing
_WARN_AFTER_SILENCE = 6.0  # seconds in which a server took nothing of what a sender brought
_GIVE_UP_AFTER_ERROR = 5.0  # seconds without progress at the end of the process, while the trouble is known
_GIVE_UP_AFTER_SILENCE = 15.0  # the same while it does not, once it has begun: it waits 10 s for an answer

_supervisors: dict[Store, "Supervisor"] = {}
_early: list[tuple[int, int]] = []  # senders without a store yet: process number, descriptor for the order


def start_early() -> None:
    """Starts the next sender before its store is known, so that it can import MLflow in the meantime.

    It writes nothing, and ends with this process if no run is begun.
    """
    if not _early:
        _early.append(_start())


def supervisor_of(store: Store) -> "Supervisor":
    """Returns the one supervisor that this process has for the store; starts nothing yet."""
    return _supervisors.setdefault(store, Supervisor(store))


class Supervisor:
    """Looks after the sender of one store for all runs of this process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folders: list[Path] = []
        self._pid: int | None = None
        self._started = -_RESTART_AFTER
        self._started_at = 0.0  # the same in seconds since 1970
        self._began: float | None = None  # when the present sender was first seen to deliver
        self._next_check = 0.0
        self._sent = 0
        self._was_waiting = True  # whether anything was unsent at the last look
        self._last_progress = 0.0  # or when something was first seen to wait, if that was later
        self._trouble_since: float | None = None
        self._has_given_up = False

    def add(self, folder: Path) -> None:
        """Makes the sender send the run in `folder` from now on."""
        if folder not in self._folders:
            self._folders.append(folder)
            self._sent += Progress.read(folder).offset
        self._restart_the_clock()
        self._ensure_sender()

    def check(self) -> None:
        """To be called often: once a second it restarts a sender that died, and says when MLflow takes nothing.

        It says so once for each outage, and when the outage is over.
        """
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_EVERY
        unsent = self._note_progress()
        if unsent:
            self._ensure_sender()
        trouble = self._trouble() if unsent else None
        if trouble and self._trouble_since is None:
            self._trouble_since = now
            _say(
                f"Warning: MLflow takes nothing at present: {trouble}. The run goes on; what it logs is kept in "
                f"{self._store.journal_dir} and sent later ('lit-cnn sync' sends what is left)."
            )
        elif not trouble and self._trouble_since is not None and self._last_progress > self._trouble_since:
            self._trouble_since = None
            _say("MLflow takes again what the run logs.")

    def wait_until_sent(self, timeout: float) -> bool:
        """Waits until MLflow has all that this process's runs logged to the store.

        Args:
            timeout: Seconds to wait at most. While nothing is taken it waits 5 s if the reason is known, else 15 s;
                not again for a later run, as long as nothing is taken.

        Returns:
            Whether it has.
        """
        deadline = time.monotonic() + timeout
        self._restart_the_clock()
        while self._note_progress():
            self._ensure_sender()
            now = time.monotonic()
            silent_for = now - self._last_progress
            is_known = self._trouble_since is not None or self._error() is not None
            # An sqlite file that others write to answers in the end; a server may never do.
            may_be_stuck = is_known or (self._store.is_http and self._began is not None) or self._pid is None
            silent_to_sender = now - max(self._last_progress, self._began or 0.0)  # many at once import for long
            if now > deadline or (may_be_stuck and silent_to_sender > _GIVE_UP_AFTER_SILENCE):
                self._has_given_up = True
                return False
            if silent_for > _GIVE_UP_AFTER_ERROR and (is_known or self._is_unreachable()):
                self._has_given_up = True
                return False
            time.sleep(0.1 if silent_for <= _GIVE_UP_AFTER_ERROR else 0.5)
        return True

    def _restart_the_clock(self) -> None:
        """Counts the seconds without progress from now on, unless they were waited for in vain."""
        if not self._has_given_up:
            self._last_progress = time.monotonic()

    def _is_unreachable(self) -> bool:
        """Whether nobody listens there: known at once, where the sender on a busy machine still imports MLflow."""
        try:
            require_reachable(self._store)
        except ConnectionError:
            return True
        return False

    def _note_progress(self) -> int:
        """Returns how many bytes are unsent; notes when more was sent, and that a sender is at work."""
        unsent = sum(unsent_bytes(folder) for folder in self._folders)
        sent = sum(Progress.read(folder).offset for folder in self._folders)
        # A run that logged nothing for minutes was not refused anything: what waits now came after the last look.
        if sent > self._sent or not unsent or not self._was_waiting:
            self._last_progress = time.monotonic()
            self._has_given_up = False
        self._sent, self._was_waiting = sent, unsent > 0
        if self._began is None and any(last_attempt(folder) >= self._started_at for folder in self._folders):
            self._began = time.monotonic()
        return unsent

    def _trouble(self) -> str | None:
        """Returns what keeps MLflow from taking the runs, in a few words; None while all seems well."""
        error = self._error()
        if error is not None:
            return error
        if self._store.is_http and self._began is not None:  # before that, a sender on a busy machine still imports
            silent_for = time.monotonic() - max(self._began, self._last_progress)
            if silent_for > _WARN_AFTER_SILENCE:
                return f"{self._store.label} has taken nothing for {silent_for:.0f} s"
        if self._pid is None:
            return f"the sender ended; see {self._store.journal_dir / LOG}"
        return None

    def _error(self) -> str | None:
        """Returns the error of a run whose delivery has failed for some seconds."""
        for folder in self._folders:
            progress = Progress.read(folder)
            if progress.error_since is not None and time.time() - progress.error_since > _WARN_AFTER_ERROR:
                return progress.error
        return None

    def _ensure_sender(self) -> None:
        if self._pid is not None:
            try:
                ended, _ = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for all children, or this is a fork of the parent
                ended = self._pid
            if ended:
                self._pid = None
        if self._pid is None and time.monotonic() - self._started >= _RESTART_AFTER:
            self._started, self._started_at, self._began = time.monotonic(), time.time(), None
            self._pid = _spawn(self._store)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _spawn(store: Store) -> int:
    """Gives the store to a sender, the one that was started early if there is one; returns its process number."""
    pid, pipe = _early.pop() if _early else _start()
    store.journal_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(BrokenPipeError), os.fdopen(pipe, "w") as file:  # `check` replaces one that has died
        file.write(Order(store, Process.this()).to_json())
    return pid


def _start() -> tuple[int, int]:
    """Starts a sender in a session of its own, where neither Ctrl-C nor the end of the terminal reaches it.

    Returns:
        Its process number, and the descriptor to write its order to.
    """
    command = [sys.executable, "-P", "-m", "lit_cnn.tracking.sender"]  # -P: no module of the working directory
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    order, pipe = os.pipe()
    files: list[Any] = [
        (os.POSIX_SPAWN_DUP2, order, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    try:
        return os.posix_spawn(sys.executable, command, environment, file_actions=files, setsid=True), pipe
    finally:
        os.close(order)
