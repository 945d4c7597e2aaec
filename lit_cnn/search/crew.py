"""The worker processes of a search on this machine: each has a socket to the one that has the study.

A worker imports once and trains many runs. It is a process of its own session, so that Ctrl-C reaches the search alone,
which then ends it after a checkpoint; it ends in the same way when the search's process is killed.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from lit_cnn.search.parent import lock_worker
from lit_cnn.search.study import Outcome
from lit_cnn.search.worker import Ended, Job
from lit_cnn.training.callbacks import RunInterrupted
from lit_cnn.training.process import RunFailedError

LOG = "workers.log"
_POLL = 0.5  # seconds
_MOST_FALSE_STARTS = 3
_UNTIL_KILLED = 60.0  # seconds that a worker has for its checkpoint
_PR_SET_PDEATHSIG = 1
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Desk(Protocol):
    """Where jobs come from, and go to."""

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to train, and nothing being trained."""

    def ask(self) -> Job | None:
        """Returns the next job; None if there is none, now or at all."""

    def report(self, name: str, epoch: int, value: float) -> bool:
        """Notes a value; returns whether the job is to end."""

    def tell(self, name: str, ended: Ended) -> None:
        """Notes how a job ended."""

    def lose(self, name: str, how: str) -> None:
        """Takes back a job whose process has ended."""


@dataclass
class _Worker:
    pid: int
    link: connection.Connection
    number: int
    job: str | None = None
    waits: bool = False
    has_asked: bool = False


class Crew:
    """Starts workers, answers them, and ends them.

    Args:
        module: What a worker runs: it calls `PipeLink`.
        environments: Of each worker, besides this process's.
    """

    def __init__(self, module: str, environments: Sequence[Mapping[str, str]]) -> None:
        self._module = module
        self._environments = environments
        self._workers = [self._start(number) for number in range(len(environments))]
        self._false_starts = 0
        self._signals: list[int] = []

    def serve(self, desk: Desk, place: Path, watch: Callable[[], None]) -> None:
        """Answers the workers until the desk is done.

        Args:
            desk: Who has the jobs.
            place: The folder of the search, for the workers' log.
            watch: Called twice a second.

        Raises:
            RunFailedError: If workers end as soon as they are started.
            RunInterrupted: If a signal stopped the search, after the checkpoints of the workers.
        """
        before = {number: signal.signal(number, self._note) for number in _STOPPING}
        try:
            while not desk.is_done and not self._signals:
                self._refill()
                self._answer(desk, place)
                watch()
            if self._signals:
                self._end(desk, place)
                raise RunInterrupted(self._signals[0])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Ends all workers at once."""
        for worker in self._workers:
            worker.link.close()
            _kill(worker.pid, signal.SIGKILL)
            _reap(worker.pid)
        self._workers = []

    def _note(self, number: int, frame: Any) -> None:
        self._signals.append(number)

    def _start(self, number: int) -> _Worker:
        mine, theirs = socket.socketpair()
        package = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": paths, **self._environments[number]}
        files: list[Any] = [
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        ]
        command = [sys.executable, "-P", "-m", self._module]
        pid = os.posix_spawn(sys.executable, command, environment, file_actions=files, setsid=True)
        theirs.close()
        return _Worker(pid, connection.Connection(mine.detach()), number)

    def _refill(self) -> None:
        for number in set(range(len(self._environments))) - {worker.number for worker in self._workers}:
            self._workers.append(self._start(number))

    def _answer(self, desk: Desk, place: Path) -> None:
        """Answers what workers say within half a second."""
        links = {worker.link: worker for worker in self._workers}
        for link in connection.wait(list(links), _POLL):
            self._hear(links[link], desk)  # type: ignore[index]
        for worker in [worker for worker in self._workers if worker.waits]:
            self._hand_out(worker, desk, place)

    def _hear(self, worker: _Worker, desk: Desk) -> None:
        try:
            message = json.loads(worker.link.recv_bytes())
        except (EOFError, OSError):
            self._drop(worker, desk)
            return
        if message["call"] == "ask":
            worker.waits = worker.has_asked = True
            self._false_starts = 0
            return
        answer = True
        if message["call"] == "report":
            answer = desk.report(message["name"], message["epoch"], message["value"])
        else:
            worker.job = None
            desk.tell(message["name"], Ended(Outcome(**message["ended"]["outcome"]), message["ended"]["metrics"]))
        self._send(worker, answer, desk)

    def _send(self, worker: _Worker, answer: Any, desk: Desk) -> None:
        try:
            worker.link.send_bytes(json.dumps(answer).encode())
        except OSError:
            self._drop(worker, desk)

    def _hand_out(self, worker: _Worker, desk: Desk, place: Path) -> None:
        job = None if self._signals else desk.ask()
        if job is None and not (self._signals or desk.is_done):
            return  # another one's job may come back
        worker.waits = False
        worker.job = job.name if job is not None else None
        self._send(worker, {"job": None if job is None else asdict(job), "place": str(place)}, desk)

    def _drop(self, worker: _Worker, desk: Desk) -> None:
        """Takes a worker that is gone out of the crew, and its job back."""
        worker.link.close()
        _kill(worker.pid, signal.SIGKILL)
        status = _reap(worker.pid)
        self._workers.remove(worker)
        if worker.job is not None:
            desk.lose(worker.job, how_ended(status))
        elif not worker.has_asked and not self._signals:
            self._false_starts += 1
            if self._false_starts >= _MOST_FALSE_STARTS:
                raise RunFailedError(f"worker processes end as they start ({how_ended(status)})")

    def _end(self, desk: Desk, place: Path) -> None:
        """Ends the workers after a checkpoint; at a second signal, or after a minute, at once."""
        for worker in self._workers:
            _kill(worker.pid, signal.SIGTERM)
        began = time.monotonic()
        while self._workers and len(self._signals) < 2 and time.monotonic() - began < _UNTIL_KILLED:
            self._answer(desk, place)
        self.close()


class PipeLink:
    """A worker's `Link` by the socket that is its standard input."""

    def __init__(self) -> None:
        self._link = connection.Connection(os.dup(0))
        self._has_order = False

    def ask(self) -> Job | None:
        """Returns the next job; at the first, makes the search's log this process's output."""
        answer = self._call({"call": "ask"})
        if answer["job"] is None:
            return None
        if not self._has_order:
            self._has_order = True
            lock_worker(Path(answer["place"]))
            log = os.open(Path(answer["place"]) / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            for descriptor in (1, 2):
                os.dup2(log, descriptor)
        return Job(**answer["job"])

    def report(self, name: str, epoch: int, value: float) -> bool:
        """Tells a value, and returns whether to end the job."""
        return bool(self._call({"call": "report", "name": name, "epoch": epoch, "value": value}))

    def tell(self, name: str, ended: Ended) -> None:
        """Tells how a job ended."""
        self._call({"call": "tell", "name": name, "ended": asdict(ended)})

    def _call(self, message: Mapping[str, Any]) -> Any:
        self._link.send_bytes(json.dumps(message).encode())
        return json.loads(self._link.recv_bytes())


def end_with_parent() -> None:
    """Makes the system send this process TERM when the one that started it is gone."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def how_ended(status: int) -> str:
    """Returns how a process ended, in words.

    Args:
        status: Its exit code, negative for a signal.
    """
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap(pid: int) -> int:
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status)
