"""What holds for every test: its own folder and MLflow store, few threads, and no network but this machine's own."""

import contextlib
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before the first import of albumentations, mlflow and torch, and inherited by every process that a test starts.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
# Two workers of pytest on two cores have one thread each: with two, they wait for each other most of the time. Tests of
# kills and of determinism have two in any case.
os.environ["OMP_NUM_THREADS"] = str(
    max(1, min(2, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
)

import pytest

from tests import forks

# A shell starts what it puts in the background with Ctrl-C ignored, and every process would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_LARGE = 2**20  # bytes
REPO_ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts first what has a limit of its own, as it takes minutes: last, one worker would be at it alone."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@dataclass(frozen=True)
class Finished:
    """A `lit-cnn` command that has ended: what it printed, how it ended, how long it took."""

    stdout: str
    stderr: str
    returncode: int
    seconds: float


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The folder that holds pyproject.toml."""
    return REPO_ROOT


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts the test into an empty folder, so the default MLflow store, which lies in the working directory, is new.

    Large files go with it: all tests together write some 6 GB. The folder stays, as a process may still work in it.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    for name in [name for name in os.environ if name.startswith("MLFLOW_") and name != "MLFLOW_DISABLE_TELEMETRY"]:
        monkeypatch.delenv(name)
    yield
    for folder, _, names in os.walk(tmp_path):
        for file in (Path(folder, name) for name in names):
            with contextlib.suppress(OSError):
                if file.stat(follow_symlinks=False).st_size > _LARGE:
                    file.unlink()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a connection to any other machine an error in this process; loopback and Unix sockets pass."""

    def guarded(connect: Callable[[socket.socket, Any], Any]) -> Callable[[socket.socket, Any], Any]:
        def connect_here(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
                self.close()
                # No OSError: the code under test may take that for a network that is down, and carry on.
                raise RuntimeError(f"a test tried to reach {address[0]}; tests use no network")
            return connect(self, address)

        return connect_here

    # urllib keeps the proxies of its first request: those that one test names would be asked in all that follow.
    monkeypatch.setattr(urllib.request, "_opener", None)
    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))


@pytest.fixture(autouse=True)
def few_threads() -> None:
    """Keeps torch, where the test has it loaded, to its share of the cores."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session", autouse=True)
def forked_senders() -> Iterator[None]:
    """Spares the senders that runs in this process start the import of MLflow; tests/tracking starts real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "posix_spawn", forks.spawn_ours)
        yield


@pytest.fixture
def empty_store(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An MLflow store without runs in the test's folder: for tests that track, as making one takes a second."""
    from tests.runs import copy_empty_store

    copy_empty_store(tmp_path_factory.getbasetemp(), tmp_path)


@pytest.fixture
def lit_cnn_cli(tmp_path: Path) -> Callable[..., Finished]:
    """Runs `python -m lit_cnn ARGUMENTS…` in the test's folder and waits for its end.

    `fresh=True` starts Python anew, as does a variable of the environment; else it is a fork of tests/forks.py.
    """

    def run(*arguments: str | Path, timeout: float = 240, fresh: bool = False, **environment: str) -> Finished:
        start = time.monotonic()
        if not fresh and not environment:
            with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
                process = forks.start(*arguments, cwd=tmp_path, log=out.fileno(), errors=err.fileno())
                code = process.wait(timeout)
                for file in (out, err):
                    file.seek(0)
                return Finished(out.read(), err.read(), code, time.monotonic() - start)
        done = subprocess.run(
            [sys.executable, "-m", "lit_cnn", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPO_ROOT)} | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Finished(done.stdout, done.stderr, done.returncode, time.monotonic() - start)

    return run


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
