"""Places that are on no disk, on this machine's loopback: an S3 by moto's server, and a web server."""

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Runs an S3, and yields its address; `use_s3` points a test at it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def use_s3(patch: pytest.MonkeyPatch, address: str) -> None:
    """Sets what the client of S3 reads from the environment."""
    patch.setenv("AWS_ENDPOINT_URL", address)
    patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def bucket(name: str, files: Path | Mapping[str, bytes] = {}, prefix: str = "") -> Any:  # noqa: B006
    """Makes a bucket, fills it with a folder's files or with what is given, and returns boto3's own client."""
    import boto3  # type: ignore[import-untyped]

    client = boto3.client("s3")
    client.create_bucket(Bucket=name)
    if isinstance(files, Path):
        files = {str(file.relative_to(files)): file.read_bytes() for file in files.rglob("*") if file.is_file()}
    for path, content in files.items():
        client.put_object(Bucket=name, Key=prefix + path, Body=content)
    return client


@dataclass
class Web:
    """A web server of a folder.

    Attributes:
        address: Where.
        asked: Method and path of each request, in their order.
        lists: Whether it lists folders.
        password: What it asks for, if anything.
        cut: Paths of which it gives half and says that this is all.
    """

    address: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    lists: bool = True
    password: str = ""
    cut: set[str] = field(default_factory=set)


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[Web]:
    """Serves a folder."""
    web = Web()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def send_head(self) -> Any:
            import base64

            web.asked.append((self.command, self.path))
            wanted = "Basic " + base64.b64encode(f"me:{web.password}".encode()).decode()
            if web.password and self.headers.get("Authorization") != wanted:
                self.send_error(401)
                return None
            if self.command == "GET" and self.path in web.cut:
                content = Path(self.translate_path(self.path)).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content) // 2))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                return None
            return super().send_head()

        def list_directory(self, path: Any) -> Any:
            if web.lists:
                return super().list_directory(path)
            self.send_error(403)
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=os.fspath(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    web.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
