"""Places with images that are elsewhere: an S3 store and a web server on this machine."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote_places import Web, s3_server, use_s3, web_server


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def s3(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, s3_address)
    urllib.request.urlopen(urllib.request.Request(f"{s3_address}/moto-api/reset", method="POST")).close()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    (tmp_path / "web").mkdir()
    with web_server(tmp_path / "web") as web:
        yield web
