"""A Ray cluster of two hosts made of network namespaces, each with one CPU; see tests/hosts.py."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests import forks
from tests.hosts import Host, two_hosts

PORT = 6379
# Tests need no token of Ray's, nor one that it finds in the home directory.
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
# A node that is gone is noticed within seconds.
_HEALTH = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "3000"}
_RAY = (sys.executable, "-m", "ray.scripts.scripts")
_FEW = ("--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats")


class Cluster:
    """Two hosts; the first is the head.

    Attributes:
        hosts: Both.
        address: Of the head.
    """

    def __init__(self, hosts: tuple[Host, Host], folder: Path, pinned: bool = False) -> None:
        self.hosts = hosts
        self.address = f"{hosts[0].address}:{PORT}"
        self._folder = folder  # Ray's own files; a short path, as sockets are in it
        self._pinned = pinned

    def begin_head(self) -> subprocess.Popen[bytes]:
        """Starts Ray on the first host."""
        return self._start(0, f"--head --port={PORT} --include-dashboard=false")

    def begin_node(self, hidden: Path | None = None) -> subprocess.Popen[bytes]:
        """Starts Ray on the second host.

        Args:
            hidden: A folder that this host does not see: it has an empty one of the same path.
        """
        return self._start(1, f"--address={self.address}", hidden)

    def _start(self, rank: int, role: str, hidden: Path | None = None) -> subprocess.Popen[bytes]:
        host = self.hosts[rank]
        start = [*_RAY, "start", *role.split(), f"--node-ip-address={host.address}", *_FEW]
        start += [f"--temp-dir={self._folder / str(rank)}"]
        pinned = ["taskset", "-c", str(rank)] if self._pinned else []
        hides = [] if hidden is None else ["sh", "-c", 'mount -t tmpfs tmpfs "$0" && cd "$0" && exec "$@"', str(hidden)]
        with (self._folder / f"{rank}.log").open("ab") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", host.name, *pinned, *hides, *start],
                env={**os.environ, **ENVIRONMENT, **_HEALTH, "PYTHONPATH": str(forks.ROOT)},
                stdout=log,
                stderr=log,
            )

    def renew_node(self, hidden: Path | None = None) -> None:
        """Kills the second host, and starts Ray there anew once the head has noticed."""
        self.hosts[1].kill()
        asks = f"import ray; ray.init('{self.address}'); " + "\nwhile sum(n['Alive'] for n in ray.nodes()) > 1: pass"
        inside = ("ip", "netns", "exec", self.hosts[0].name)
        subprocess.run(
            [*inside, sys.executable, "-c", asks], env={**os.environ, **ENVIRONMENT}, check=True, timeout=120
        )
        require(self.begin_node(hidden), self._folder)

    def start(self, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> forks.Forked:
        """Starts `lit-cnn ARGUMENTS…` on the head."""
        return self.hosts[0].start(*arguments, cwd=cwd, environment={**ENVIRONMENT, **(environment or {})})


@contextlib.contextmanager
def two_nodes(pinned: bool = False) -> Iterator[Cluster]:
    """Makes the hosts, and starts Ray on both.

    Args:
        pinned: Whether each has a core of its own.

    Raises:
        PermissionError: If this machine does not let us; with the reason.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    try:
        with two_hosts() as hosts:
            cluster = Cluster(hosts, folder, pinned)
            for started in (cluster.begin_head(), cluster.begin_node()):
                require(started, folder)
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require(started: subprocess.Popen[bytes], folder: Path) -> None:
    """Waits until Ray has been started on a host."""
    if started.wait(120) != 0:
        raise RuntimeError("\n".join(log.read_text() for log in sorted(folder.glob("*.log"))))


@contextlib.contextmanager
def server_on(host: Host, folder: Path, port: int = 5000) -> Iterator[str]:
    """Runs an MLflow server on a host; yields its address."""
    folder.mkdir(parents=True, exist_ok=True)
    uri = f"http://{host.address}:{port}"
    own = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/files")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *own,
        "--workers=1",
        "--host",
        host.address,
        "--port",
        str(port),
    ]
    inside = ("ip", "netns", "exec", host.name)
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [*inside, *command, "--allowed-hosts", "*"], cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        asks = f"from tests.tracking_server import answers\nwhile not answers({uri!r}): pass"
        environment = {**os.environ, "PYTHONPATH": str(forks.ROOT)}
        subprocess.run([*inside, sys.executable, "-c", asks], env=environment, check=True, timeout=200)
        yield uri
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 9)
        server.wait()
