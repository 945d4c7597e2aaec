"""Workers as processes of this machine: each has a socket to the one that has the study.

A worker imports once and trains many runs. It is a process of its own session, so that Ctrl-C reaches the search alone,
which then ends it after a checkpoint; it ends in the same way when the search's process is killed.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from lit_cnn.core.errors import UsageError, value_in_words
from lit_cnn.search.crew import Gone
from lit_cnn.search.parent import lock_worker
from lit_cnn.search.worker import Ended, Job

LOG = "workers.log"


@dataclass(frozen=True)
class _Process:
    pid: int
    link: connection.Connection

    def send(self, answer: str) -> None:
        """Answers; that it is gone is heard next."""
        with contextlib.suppress(OSError):
            self.link.send_bytes(answer.encode())

    def stop(self) -> None:
        """Ends it after a checkpoint."""
        _kill(self.pid, signal.SIGTERM)

    def end(self) -> Gone:
        """Ends it at once; returns how it has ended, if it had."""
        self.link.close()
        _kill(self.pid, signal.SIGKILL)
        return Gone(how_ended(_reap(self.pid)))


class Processes:
    """Starts workers on this machine.

    Args:
        module: What a worker runs: it calls `PipeLink`.
        environments: Of each worker, besides this process's.
    """

    spreads = False
    sends_elsewhere = False

    def __init__(self, module: str, environments: Sequence[Mapping[str, str]]) -> None:
        self._module = module
        self._environments = environments
        self.num_workers = len(environments)

    def start(self, number: int) -> _Process:
        """Starts a worker, the n-th from 0 on."""
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
        return _Process(pid, connection.Connection(mine.detach()))

    def hear(self, workers: Sequence[_Process], seconds: float) -> list[tuple[_Process, str | Gone]]:
        """Returns what workers say within some seconds."""
        links: dict[Any, _Process] = {worker.link: worker for worker in workers}
        return [(links[link], _heard(links[link])) for link in connection.wait(list(links), seconds)]

    def elsewhere(self, worker: _Process) -> str:
        """Returns "": they are on this machine."""
        return ""

    def close(self, workers: Sequence[_Process]) -> None:
        """Ends workers at once."""
        for worker in workers:
            worker.end()


def _heard(worker: _Process) -> str | Gone:
    try:
        return worker.link.recv_bytes().decode()
    except (EOFError, OSError):
        return worker.end()


class PipeLink:
    """A worker's `Link` by the socket that is its standard input.

    Args:
        digest_of: Returns the digest of the images that options of `lit-cnn fit` name.
    """

    def __init__(self, digest_of: Callable[[Sequence[str]], str]) -> None:
        self._link = connection.Connection(os.dup(0))
        self._digest_of = digest_of
        self._has_order = False

    def ask(self) -> Job | None:
        """Returns the next job; at the first, makes the search's log this process's output, where that folder is."""
        while "check" in (answer := self._call({"call": "ask"})):
            self._call({"call": "checked", **self._found(answer["check"])})
        if answer["job"] is None:
            return None
        if not self._has_order and (place := Path(answer["place"])).is_dir():
            lock_worker(place)
            log = os.open(place / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            for descriptor in (1, 2):
                os.dup2(log, descriptor)
        self._has_order = True
        return Job(**answer["job"])

    def report(self, name: str, epoch: int, value: float) -> bool:
        """Tells a value, and returns whether to end the job."""
        return bool(self._call({"call": "report", "name": name, "epoch": epoch, "value": value}))

    def tell(self, name: str, ended: Ended) -> None:
        """Tells how a job ended."""
        self._call({"call": "tell", "name": name, "ended": asdict(ended)})

    def _found(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Returns the digest of the images that are there, or the mistake that it is to look for them there."""
        try:
            return {"digest": self._digest_of(arguments)}
        except UsageError as error:
            value = value_in_words(error.value) if error.value is not None else None
            return {"mistake": [error.option, value, error.reason, error.remedy]}

    def _call(self, message: Mapping[str, Any]) -> Any:
        self._link.send_bytes(json.dumps(message).encode())
        return json.loads(self._link.recv_bytes())


def how_ended(status: int) -> str:
    """Returns how a process ended, in words.

    Args:
        status: Its exit code, negative for a signal.
    """
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap(pid: int) -> int:
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status)
