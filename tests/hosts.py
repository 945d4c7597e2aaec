"""Two hosts made of network namespaces on this machine, which see each other by one cable and share no memory.

`python -m tests.hosts NAMESPACE ARGUMENTS…` is `lit-cnn ARGUMENTS…` on that host.
"""

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import forks

PORT = 29400
_RAY_PORT = 6379
ON_TWO_HOSTS = ("--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.accelerator=cpu")
_CLONE_NEWNET = 0x40000000
_CABLE = "cable0"
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Host:
    """A network namespace.

    Attributes:
        name: Of the namespace.
        address: By which the other host finds it.
        rank: 0 for the first host.
        first: Address of the first host.
    """

    name: str
    address: str
    rank: int
    first: str

    def start(self, *arguments: str | Path, cwd: Path, environment: Mapping[str, str] | None = None) -> forks.Forked:
        """Starts `lit-cnn ARGUMENTS…` on this host, in a folder that gets a `log_NAME.txt`.

        Args:
            arguments: Of the command.
            cwd: Its working directory.
            environment: Variables besides those by which Lightning's own processes of several hosts meet.
        """
        variables = self.variables if environment is None else environment
        with self.log(cwd).open("ab") as log:
            cable = {"GLOO_SOCKET_IFNAME": _CABLE, "HOME": str(cwd)}
            command = (self.name, *arguments)
            return forks.start(
                *command, cwd=cwd, log=log.fileno(), module="tests.hosts", environment={**cable, **variables}
            )

    @property
    def variables(self) -> dict[str, str]:
        """By which Lightning's own processes of several hosts meet."""
        return {"MASTER_ADDR": self.first, "MASTER_PORT": str(PORT), "NODE_RANK": str(self.rank)}

    def log(self, folder: Path) -> Path:
        """Returns the file of what commands print that are started in a folder."""
        return folder / f"log_{self.rank}.txt"

    def kill(self) -> None:
        """Sends SIGKILL to all that runs on this host."""
        for pid in _run("ip", "netns", "pids", self.name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def unplug(self) -> None:
        """Takes the cable out: nothing comes from this host any more, not even that a connection has ended."""
        _run("ip", "-n", self.name, "link", "set", _CABLE, "down")

    def plug_in(self) -> None:
        """Puts it back."""
        _run("ip", "-n", self.name, "link", "set", _CABLE, "up")


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Makes two hosts; what still runs there at the end is killed.

    Raises:
        PermissionError: If this machine does not let us; with the reason.
    """
    if shutil.which("ip") is None:
        raise PermissionError("no ip: install iproute2")
    number = next(_NUMBERS)
    net = f"10.{77 + number % 100}.{os.getpid() % 250}"
    names = [f"litcnn{os.getpid()}n{number}{side}" for side in "ab"]
    hosts = [Host(name, f"{net}.{rank + 1}", rank, f"{net}.1") for rank, name in enumerate(names)]
    with contextlib.ExitStack() as stack:
        try:
            for host in hosts:
                _run("ip", "netns", "add", host.name)
                stack.callback(_run, "ip", "netns", "del", host.name)
                stack.callback(host.kill)
            ends = [part for host in hosts for part in ("name", _CABLE, "netns", host.name)]
            _run("ip", "link", "add", *ends[:4], "type", "veth", "peer", *ends[4:])
            for host in hosts:
                _run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", _CABLE)
                for link in ("lo", _CABLE):
                    _run("ip", "-n", host.name, "link", "set", link, "up")
        except subprocess.CalledProcessError as error:
            raise PermissionError(f"no network namespaces: {error.stderr.strip()}") from error
        yield hosts[0], hosts[1]


@contextlib.contextmanager
def ray_cluster(hosts: tuple[Host, Host]) -> Iterator[str]:
    """Starts a Ray cluster of two nodes with one core each; yields its address.

    Args:
        hosts: The first one is the head.
    """
    address = f"{hosts[0].address}:{_RAY_PORT}"
    folder = tempfile.mkdtemp(prefix="ray")  # short, as its sockets are in it
    own = {"PYTHONPATH": str(forks.ROOT), "RAY_AUTH_MODE": "disabled", "GLOO_SOCKET_IFNAME": _CABLE}
    try:
        for host in hosts:
            as_head = ["--head", f"--port={_RAY_PORT}", "--include-dashboard=false", f"--temp-dir={folder}"]
            start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={host.address}"]
            start += as_head if host is hosts[0] else [f"--address={address}"]
            command = ["ip", "netns", "exec", host.name, *start, "--num-cpus=1", "--disable-usage-stats"]
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, **own})
        yield address
    finally:
        for host in hosts:
            host.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _main() -> None:
    with open(f"/run/netns/{sys.argv.pop(1)}") as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    from lit_cnn.cli import main

    sys.exit(main())


if __name__ == "__main__":
    _main()
