"""A Ray cluster: joined or started without its own output, and looked at before anything is sent there."""

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import secrets
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_cnn import __version__
from lit_cnn.core.errors import UsageError

LEAST = (2, 50)
"""The first version of Ray whose way of training this is written for."""

NODE_LABEL = "ray.io/node-id"

LEAVE_CHILDREN = {"RAY_kill_child_processes_on_worker_exit": "0"}
"""Of a worker's environment: else Ray kills what it has started, before that can write a checkpoint."""

_CONNECT = 5.0  # seconds
# What Ray would send home, and warn of.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_OF_A_CLUSTER = {"RAY_gcs_server_port_wait_time_s": "5"}
# A token that others on this machine cannot read, and that is not left in the home directory.
_OF_ONE_HERE = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
_SETTINGS = 4  # type of a frame of HTTP/2
_LOOK = 60.0  # seconds in which a node has to answer


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's.
        host: Its address.
        cpus: As Ray counts them.
        gpus: As Ray counts them.
        is_here: Whether this process runs on it.
    """

    id: str
    host: str
    cpus: int
    gpus: int
    is_here: bool


@contextlib.contextmanager
def joined(address: str | None) -> Iterator[list[Node]]:
    """Joins a cluster, or starts one of this machine alone; leaves it, or ends it.

    Args:
        address: `HOST:PORT`, or `auto` for the cluster that this machine is part of; None for what RAY_ADDRESS says,
            else for one that is started here.

    Yields:
        The machines that are there, this one first.

    Raises:
        UsageError: If Ray is not installed or too old, nobody answers at the address, or the cluster has other
            versions.
    """
    _require_ray()
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _require_answer(address)
    with _set_where_unset(_QUIET | (_OF_ONE_HERE if address == "local" else _OF_A_CLUSTER)):
        import ray

        try:
            with _hushed():
                ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise _not_joined(address, error) from error
        # What it prints of each node that is lost: whoever joins says that in fewer words.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
        try:
            here = ray.get_runtime_context().get_node_id()
            nodes = [_node(each, here) for each in ray.nodes() if each["Alive"]]
            yield sorted(nodes, key=lambda node: (not node.is_here, node.host, node.id))
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _set_where_unset(settings: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of the environment that are not, for as long as the block lasts."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def check_nodes(nodes: Sequence[Node], folder: Path) -> None:
    """Refuses machines that cannot do what this one would.

    Args:
        nodes: Of the cluster this process has joined.
        folder: That has to be there on each.

    Raises:
        UsageError: If one has another version of lit_cnn, torch or Lightning, lacks the folder, or does not answer.
    """
    for node, found in zip(nodes, on_each(nodes, look, str(folder)), strict=True):
        if isinstance(found, Exception):
            if "No module named" in str(found):
                reason, remedy = "has no lit_cnn for the Python that runs Ray", "install the same there"
            else:
                reason, remedy = f"does not answer ({in_a_line(found)})", "see `ray status`"
            raise UsageError("engine", "ray", f"node {node.host} {reason}", remedy)
        for name, own in _versions().items():
            if found.get(name) != own:
                reason = f"node {node.host} has {name} {found.get(name, 'not at all')}, this one has {own}"
                raise UsageError("engine", "ray", reason, "install the same on all")
        if not found["has_folder"]:
            remedy = "share the folder, or copy it to the same place on each"
            raise UsageError("engine", "ray", f"node {node.host} has no folder {folder}", remedy)


def look(folder: str) -> dict[str, Any]:
    """Returns what this machine has: versions, and whether a folder is there."""
    return {**_versions(), "has_folder": os.path.isdir(folder)}


def not_seeing(nodes: Sequence[Node], folder: Path) -> list[Node]:
    """Returns the machines that do not see a folder of this one, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".lit_cnn_{uuid.uuid4().hex}"
    token.touch()
    try:
        seen = on_each(nodes, os.path.exists, str(token))
        return [node for node, sees in zip(nodes, seen, strict=True) if sees is not True]
    finally:
        token.unlink()


def on_each(nodes: Sequence[Node], function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Returns what a function returns on each machine, or the exception that it or the machine has come to."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    there = [NodeAffinitySchedulingStrategy(node.id, soft=False) for node in nodes]
    found = list[Any]()
    for asked in [task.options(scheduling_strategy=each).remote(*arguments) for each in there]:
        try:
            found.append(ray.get(asked, timeout=_LOOK))
        except Exception as error:  # of any kind, from another machine
            found.append(error)
    return found


def in_a_line(error: BaseException) -> str:
    """Returns what an error says, without the traceback that Ray has put around it."""
    cause = getattr(error, "cause", None) or error
    return " ".join(str(cause).split())[:300] or type(cause).__name__


def _versions() -> dict[str, str]:
    versions = {"lit_cnn": __version__}
    for name in ("torch", "lightning"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _require_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise UsageError("engine", "ray", "Ray is not installed", "pip install 'lit-cnn[ray]'")
    version = importlib.metadata.version("ray")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < LEAST:
        least = ".".join(map(str, LEAST))
        raise UsageError("engine", "ray", f"Ray {version} is older than {least}", "pip install -U 'lit-cnn[ray]'")


def _require_answer(address: str) -> None:
    """Refuses an address where nobody answers; Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    if address.startswith("ray://"):
        remedy = "give HOST:PORT of the head on one of its machines, or `ray job submit`"
        raise UsageError("address", address, "a client outside of the cluster", remedy)
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise UsageError("address", address, "is not HOST:PORT", "give that of the head, or auto")
    try:
        with socket.create_connection((host, int(port)), _CONNECT) as connection:
            is_head = os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or _speaks_http2(connection)
    except (OSError, OverflowError) as error:
        reason = f"nobody answers there ({error})"
        raise UsageError("address", address, reason, "start a cluster by `ray start`") from error
    if not is_head:
        raise UsageError("address", address, "is no head of a Ray cluster", "give HOST:PORT of its head")


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether a server answers the beginning of an HTTP/2 connection with its settings, as Ray's does (RFC 9113, 3.4).

    Raises:
        OSError: If it does not answer.
    """
    connection.settimeout(_CONNECT)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0]))
    header = b""
    while len(header) < 4 and (more := connection.recv(4 - len(header))):
        header += more
    return len(header) == 4 and header[3] == _SETTINGS


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Drops what this process prints to stderr: Ray's own code, which is not Python, does so for each attempt."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        for descriptor in (kept, nowhere):
            os.close(descriptor)


def _not_joined(address: str, error: BaseException) -> UsageError:
    """Returns what to tell the user, of what Ray has told."""
    said, cause = in_a_line(error), str(error.__cause__ or "")
    reason, remedy = said.partition(". ")[0], "start a cluster by `ray start`"
    if "Version mismatch" in said:
        found = re.findall(r"Ray: ([\w.]+) Python: ([\w.]+)", said)
        its, own = [*(f"Ray {ray} on Python {python}" for ray, python in found), "", ""][:2]
        reason, remedy = f"the cluster has {its}, and this process {own}", "install the same on all"
    elif "AuthToken" in said + cause:
        reason = "the cluster takes nobody without its token"
        remedy = "copy ~/.ray/auth_token of its head, and set RAY_AUTH_MODE=token"
    elif address == "auto":
        reason = "this machine is part of no cluster"
    return UsageError("address", address, reason, remedy)


def _node(found: dict[str, Any], here: str) -> Node:
    resources = found["Resources"]
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    return Node(found["NodeID"], found["NodeManagerAddress"], cpus, gpus, found["NodeID"] == here)
