"""A connection from the first process of a run to each of the others, which tells at once that one of them is gone.

An exchange with a process that is gone fails at once with gloo where that was a neighbour, after ten minutes with NCCL,
and never where a host was cut off. The system's own probes of a silent connection find out here, without a thread of
Python: a host that is slow is not taken for one that is gone.
"""

import contextlib
import os
import secrets
import selectors
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

_CONNECT = 30.0  # seconds
_GRACE = 5.0  # seconds in which the run may end by itself, by the error of an exchange
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 4}  # gone after 17 s of silence
_DONE = b"done"
_LONGEST = 4096  # bytes of what a process says as it ends


class Lifeline:
    """Watches the other processes of a run, from a thread.

    Attributes:
        at_end: Called before this process is ended, with the line that says why: it is to record how the run ended.
    """

    def __init__(self, peers: dict[socket.socket, str]) -> None:
        """Begins to watch.

        Args:
            peers: A connection to each, and what it is called.
        """
        self.at_end: Callable[[str], None] = lambda line: None
        self._peers = peers
        self._lost: str | None = None
        self._found = threading.Event()
        self._closed = threading.Event()
        self._ends_itself = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="lifeline")
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        """Whether this process has said that it ends."""
        return self._closed.is_set()

    def lost(self, timeout: float = 2.0) -> str | None:
        """Returns which process is gone, and what it said; None if all are there.

        Args:
            timeout: Seconds to wait for the news: an exchange may have failed a moment earlier.
        """
        self._found.wait(timeout)
        return self._lost

    def let_end(self) -> None:
        """Says that the run is ending by itself."""
        self._ends_itself.set()

    def close(self, reason: str = "") -> None:
        """Tells the others that this process ends, and stops watching.

        Args:
            reason: Why, where it is not the end of the run.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        self._ends_itself.set()
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.sendall(reason.encode()[:_LONGEST] or _DONE)
        self._wake.shutdown(socket.SHUT_RDWR)  # loader processes that are still there have it too
        self._thread.join()
        for peer in (self._wake, self._woken, *self._peers):
            peer.close()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for each in self._peers:
                selector.register(each, selectors.EVENT_READ)
            while not self._closed.is_set():
                for key, _ in selector.select():
                    peer: Any = key.fileobj
                    if peer is self._woken:
                        return
                    said = _read(peer)
                    selector.unregister(peer)
                    if said != _DONE:
                        self._end(f"{self._peers[peer]} ended" + (f": {said.decode(errors='replace')}" if said else ""))
                        return

    def _end(self, line: str) -> None:
        """Lets the run end by itself; if it does not, as an exchange waits for who is gone, ends this process."""
        self._lost = line
        self._found.set()
        if self._ends_itself.wait(_GRACE):
            return
        with contextlib.suppress(Exception):
            self.at_end(line)
        print(f"lit-cnn: error: {line}; the same command with --resume auto goes on", file=sys.stderr, flush=True)
        os._exit(1)


def connect(strategy: Any) -> Lifeline:
    """Connects the processes of a strategy, which have met; to be called in all of them.

    Raises:
        OSError: If the first process cannot be reached.
    """
    rank, address = strategy.global_rank, strategy.cluster_environment.main_address
    host = socket.gethostname()
    if rank > 0:
        port, token, first = strategy.broadcast(None)
        peer = socket.create_connection((address, port), _CONNECT)
        peer.sendall(f"{token} {rank} {host}\n".encode())
        return Lifeline({_kept_alive(peer): f"process 0 on {first}"})
    token = secrets.token_hex(16)
    with _listening() as server:
        strategy.broadcast((server.getsockname()[1], token, host))
        peers: dict[socket.socket, str] = {}
        while len(peers) < strategy.world_size - 1:
            peer, _ = server.accept()
            peer.settimeout(_CONNECT)
            word, _, name = _first_line(peer).partition(" ")
            if secrets.compare_digest(word, token):
                peers[_kept_alive(peer)] = "process " + name.replace(" ", " on ", 1)
            else:
                peer.close()
    return Lifeline(peers)


def _listening() -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(("", 0), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual)
    except OSError:  # IPv6 is compiled in, and switched off
        server = socket.create_server(("", 0))
    server.settimeout(_CONNECT)
    return server


def _kept_alive(peer: socket.socket) -> socket.socket:
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer


def _first_line(peer: socket.socket) -> str:
    text = b""
    with contextlib.suppress(OSError):
        while not text.endswith(b"\n") and len(text) < 1000 and (byte := peer.recv(1)):
            text += byte
    return text.decode("ascii", errors="replace").strip()


def _read(peer: socket.socket) -> bytes:
    """Returns what a process said before it closed the connection; nothing where it was cut."""
    said = b""
    with contextlib.suppress(OSError):
        while len(said) < _LONGEST and (block := peer.recv(_LONGEST)):
            said += block
            if said == _DONE:
                break
    return said
