"""Starts `python -m …` as a fork of a process that has imported everything: seconds less for each command of a test.

That process has imported and computed nothing else, and its forks become children of the tests' own process, so kills,
signals and exit codes are real. But what libraries read from the environment as they are imported is what it was for
the first fork, OMP_NUM_THREADS aside: a test of such a variable, of the imports or of the time that they take starts a
process of its own.
"""

import atexit
import ctypes
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_SENDER = "lit_cnn.tracking.sender"
_STARTED_BY_OURS = (_SENDER, "lit_cnn.cli.tune_worker")
_PR_SET_CHILD_SUBREAPER = 36
_MOST_BYTES = 1 << 17  # of a command and its environment


class Forked:
    """A process started by `start`, used like a `subprocess.Popen`.

    Attributes:
        pid: Its number.
        returncode: None while it runs; negative for a signal.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Returns the exit code, None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Returns the exit code, as soon as there is one.

        Raises:
            subprocess.TimeoutExpired: After `timeout` seconds; the process is killed then.
        """
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def start(
    *arguments: str | Path,
    cwd: Path,
    log: int,
    errors: int | None = None,
    module: str = "lit_cnn",
    environment: Mapping[str, str] | None = None,
) -> Forked:
    """Starts `python -m lit_cnn ARGUMENTS…` by a fork, in a session of its own.

    Args:
        arguments: What follows `python -m lit_cnn`, or another module.
        cwd: Its working directory.
        log: Descriptor of a file for what it prints.
        errors: The same for stderr; by default `log`.
        module: What is started in the place of `lit_cnn`.
        environment: Variables besides those of this process.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with open(os.devnull) as nothing:
        descriptors = [nothing.fileno(), log, log if errors is None else errors]
        return Forked(_server().fork(command, cwd, {**os.environ, **(environment or {})}, descriptors))


def spawn_ours(path: str, argv: list[str], env: Mapping[str, str], **options: Any) -> int:
    """Does what `os.posix_spawn` does, by a fork where the tracking sender or a search's worker is to be started."""
    if argv[-1] not in _STARTED_BY_OURS:
        return posix_spawn(path, argv, env, **options)
    descriptors = _opened(options["file_actions"])
    try:
        return _server().fork(argv, Path.cwd(), env, descriptors)
    finally:
        for number, descriptor in enumerate(descriptors[1:], start=1):
            if descriptor != number:  # else it is this process's own
                os.close(descriptor)


posix_spawn = os.posix_spawn  # the real one


def _opened(file_actions: Sequence[tuple[Any, ...]]) -> list[int]:
    """Returns what shall be descriptors 0, 1 and 2: a pipe or socket, and files that are opened, or this process's."""
    descriptors = [0, 1, 2]
    for action, *values in file_actions:
        if action == os.POSIX_SPAWN_DUP2:
            descriptors[values[1]] = values[0]
        else:
            descriptors[values[0]] = os.open(*values[1:])
    return descriptors


class _Server:
    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.forks", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self._close)

    def _close(self) -> None:
        self._connection.close()
        self._process.wait()

    def fork(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], descriptors: Sequence[int]) -> int:
        """Returns the number of the new process, a child of this one, which adopts it from the server's own fork."""
        order = [list(command), str(cwd), {**env, "PYTHONPATH": str(ROOT)}]
        adopt = ctypes.CDLL(None).prctl
        adopt(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(self._connection, [json.dumps(order).encode()], descriptors)
            return int(self._connection.recv(_MOST_BYTES))
        finally:
            adopt(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@functools.cache
def _server() -> _Server:
    return _Server()


def _serve(connection: socket.socket) -> list[Any] | None:
    """Makes forks until the tests have ended; returns in each of them, with what `_become` takes."""
    while True:
        order, descriptors, *_ = socket.recv_fds(connection, _MOST_BYTES, 3)
        if not order:
            return None
        told, tell = os.pipe()
        middle = os.fork()
        if middle == 0:
            middle = os.getpid()
            if pid := os.fork():
                os.write(tell, b"%d" % pid)
                os._exit(0)  # so that its fork becomes a child of the tests' process
            while os.getppid() == middle:
                time.sleep(0.001)
            connection.close()
            return [*json.loads(order), descriptors]
        os.waitpid(middle, 0)
        connection.send(os.read(told, 20))
        for descriptor in (told, tell, *descriptors):
            os.close(descriptor)


def _become(command: Sequence[str], cwd: str, env: Mapping[str, str], descriptors: Sequence[int]) -> None:
    """Makes this fork a process as `subprocess.Popen` starts it, and does what its command says."""
    import torch

    from lit_cnn.tracking import sender

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, 256)  # what the process that was forked had open
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if (threads := int(env.get("OMP_NUM_THREADS", os.cpu_count() or 1))) != torch.get_num_threads():
        torch.set_num_threads(threads)  # not else: it starts threads
    sys.path[:0] = [] if "-P" in command else [cwd]
    place = command.index("-m") + 1
    sys.argv[1:] = command[place + 1 :]
    os.posix_spawn = _fork_ours  # type: ignore[assignment]
    atexit.register(gc.unfreeze)  # else nanobind takes what is frozen for leaks, and says so
    if command[place] in _STARTED_BY_OURS:
        sender._POLL = 0.1  # seconds; at the end of each run somebody waits for it
        importlib.import_module(command[place]).main()
    else:
        runpy.run_module(command[place], run_name="__main__", alter_sys=True)


def _fork_ours(path: str, argv: list[str], env: Mapping[str, str], **options: Any) -> int:
    """Does what `spawn_ours` does where this process may still be forked: it has computed nothing."""
    if argv[-1] not in _STARTED_BY_OURS or len(os.listdir("/proc/self/task")) > 1:
        return posix_spawn(path, argv, env, **options)
    if pid := os.fork():
        return pid
    try:
        _become(argv, os.getcwd(), env, _opened(options["file_actions"]))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _main() -> None:
    from lit_cnn.cli import set_environment

    set_environment()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is for the tests
    import lit_cnn
    from lit_cnn.tracking.client import import_mlflow

    import_mlflow()
    for module in pkgutil.walk_packages(lit_cnn.__path__, "lit_cnn."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # what the forks share stays shared
    order = _serve(socket.socket(fileno=int(sys.argv[1])))
    if order is not None:
        _become(*order)
    os._exit(0)  # nothing is left to be done; taking apart what forks share would copy all of it


if __name__ == "__main__":
    _main()
