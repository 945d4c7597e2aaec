"""A real `mlflow server` for the tests: started, stopped, frozen, and misunderstood by a proxy before it."""

import contextlib
import functools
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class TrackingServer:
    """A real MLflow server on loopback, with files in `folder`, and a proxy before it that can be told to misbehave.

    Attributes:
        uri: The server's own address.
        proxy_uri: The proxy's.
        behaviour: The proxy's: "pass on"; "refuse", which answers 500; "lose", which passes a request to write on and
            then answers 500; "late", which answers 500 and passes it on a second later.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._options = options or (
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--artifacts-destination", f"{folder}/files"),
            *("--workers", "1"),
        )
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_ProxiedRequest, self))
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.proxy_uri = f"http://127.0.0.1:{self._proxy.server_port}"
        self.behaviour = "pass on"

    def start(self) -> None:
        """Returns once the server answers, on the port it had before."""
        command = [sys.executable, "-m", "mlflow", "server", *self._options]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while not answers(self.uri):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise TimeoutError(f"the server did not start: see {self._folder / 'server.log'}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Kills the server and all of its processes; does nothing if there is none."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stops the server in the midst of what it does; its port goes on taking connections."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends server and proxy."""
        self.stop()
        self._proxy.shutdown()
        self._proxy.server_close()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)


class _ProxiedRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: TrackingServer, *arguments: Any) -> None:
        self._tracking_server = server
        super().__init__(*arguments)

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        pass_on = functools.partial(_ask, self._tracking_server.uri, self.command, self.path, body, headers)
        behaviour = self._tracking_server.behaviour
        status, answer_headers, answer = 500, [("Content-Type", "text/html")], b"<h1>Internal Server Error</h1>"
        is_write = self.command != "GET" and not self.path.endswith("/search")
        if behaviour == "pass on" or (behaviour != "refuse" and not is_write):
            status, answer_headers, answer = pass_on()
        elif behaviour == "lose":
            pass_on()
        elif behaviour == "late":
            threading.Timer(1, pass_on).start()
        self.send_response(status)
        for name, value in answer_headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""


def _ask(
    uri: str, command: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Asks the server; returns what it answers: status, headers and body."""
    connection = http.client.HTTPConnection(uri.removeprefix("http://"), timeout=60)
    with contextlib.closing(connection):
        try:
            connection.request(command, path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        except OSError as error:
            return 502, [("Content-Type", "text/plain")], str(error).encode()


def answers(uri: str) -> bool:
    """Whether a server does its work: the first request after its start takes it many seconds."""
    try:
        with urllib.request.urlopen(
            f"{uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default", timeout=30
        ) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """Returns a port of loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def tracking_server(folder: Path, *options: str) -> Iterator[TrackingServer]:
    """Yields a server that answers, and ends it.

    Args:
        folder: Its files.
        options: Of `mlflow server`, without host and port; by default for one process and a sqlite file in `folder`.
    """
    server = TrackingServer(folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.close()
