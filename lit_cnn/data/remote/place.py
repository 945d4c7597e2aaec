"""A place for files that fsspec reaches: S3, Google Cloud Storage, web servers and more."""

import base64
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from lit_cnn.core.credentials import without_credentials
from lit_cnn.core.errors import UsageError

THREADS = 32
"""Files that are asked for at a time: an answer takes a store tens of milliseconds, however small the file."""

_CONTACT_SECONDS = 30.0  # for the first answer; a store that is there takes less than one
_TRIES = 3  # of a read; what talks to S3 and Google's tries again by itself
_SECONDS_BETWEEN = 1.0
# What stores call that which changes with a file's content. A place may have several.
_STATES = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "crc32c", "generation", "LastModified", "Last-Modified"),
    *("last_modified", "updated", "mtime", "created", "ino"),
)
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound")
_LOGIN_OF_S3 = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket set FSSPEC_S3_ANON=true"
)
_LOGIN = "log in as the package that reaches it says (docs/remote.md)"

_BUCKETS = ("s3", "s3a", "gs", "gcs")

Result = TypeVar("Result")


def protocol_of(address: str) -> str:
    """Returns what an address begins with: `s3`."""
    return address.partition("://")[0]


class RemoteFile(NamedTuple):
    """A file as a place lists it.

    Attributes:
        path: Relative to the place, with slashes, as a file on disk would be called.
        name: What fsspec calls it.
        size: Bytes; -1 where the place does not say.
        state: What changes with its content, such as an ETag; empty where the place says nothing of the kind.
        md5: Of its content, 32 hexadecimal digits, where the place gives what looks like one; else empty.
    """

    path: str
    name: str
    size: int
    state: str
    md5: str


class Place:
    """A folder of files, or one file, behind an address.

    It is handed to worker processes: each of them connects by itself.

    Args:
        address: Such as `s3://bucket/folder`.
        option: The option that it was given with.

    Attributes:
        address: The same, without a slash at its end.
        option: As given.

    Raises:
        UsageError: If it has a query, as a link that was signed has.
    """

    def __init__(self, address: str, option: str = "root") -> None:
        self.option = option
        if "?" in address and address.startswith("http"):
            reason = "is one file's address with a query, and says nothing of the files beside it"
            raise UsageError(option, address.partition("?")[0], reason, "give the address without ?…")
        self.address = address.rstrip("/") if not address.endswith("://") else address
        self._connected: tuple[int, Any, str] | None = None
        self._md5_is_none = False  # an encrypted object's ETag looks like an MD5

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connected": None}

    def __str__(self) -> str:
        return without_credentials(self.address)

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server, which lists the files of a folder as a page of links if at all."""
        return self.address.startswith(("http://", "https://"))

    def contact(self) -> bool:
        """Asks for what is there; returns whether that is a folder.

        Raises:
            UsageError: In one line, whatever is wrong: a package that is missing, an address that leads nowhere, no
                right to read, or no answer within half a minute.
        """
        found = self._said(lambda: _within(_CONTACT_SECONDS, self._info))
        return bool(found.get("type") == "directory")

    def _info(self) -> dict[str, Any]:
        filesystem, path = self._connection()
        filesystem.invalidate_cache()
        try:
            return dict(filesystem.info(path))
        except FileNotFoundError:
            if not self.is_web:
                raise
            return dict(filesystem.info(f"{path}/"))  # servers tell `photos` from `photos/`

    def files(self) -> list[RemoteFile]:
        """Returns all files at and below the place, sorted; on a web server those that its pages link to.

        A name that ends in a slash is that of a folder without files, as the consoles of stores make them.

        Raises:
            UsageError: If they cannot be listed.
        """
        filesystem, path = self._connection()
        start = f"{path.rstrip('/')}/"
        found = self._said(lambda: filesystem.find(start if self.is_web else path, detail=True, withdirs=False))
        listed = [(name, info) for name, info in found.items() if name.startswith(start) and name != start]
        if self.is_web:
            names = [name for name, info in listed if not re.search(r"[?#]", name) and info["type"] == "file"]
            return sorted(self.described([(unquote(name[len(start) :]), name) for name in names]))
        return sorted(_described(name[len(start) :], name, info) for name, info in listed)

    def described(self, wanted: Sequence[tuple[str, str]]) -> list[RemoteFile]:
        """Returns what there is to know of files, each asked for by itself; those that are not there are left out.

        Args:
            wanted: Of each its path, and what fsspec calls it.
        """
        filesystem, _ = self._connection()

        def ask(each: tuple[str, str]) -> RemoteFile | None:
            try:
                return _described(*each, filesystem.info(each[1]))
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(THREADS) as pool:
            return [file for file in self._said(lambda: list(pool.map(ask, wanted))) if file is not None]

    def read(self, file: RemoteFile) -> bytes:
        """Returns a file's bytes; tries again where the network fails, or gives other bytes than were listed.

        Raises:
            UsageError: If it cannot be read, or is not what was listed.
        """
        filesystem, _ = self._connection()
        before: bytes | None = None
        for trial in range(_TRIES):
            try:
                content: bytes = filesystem.cat_file(file.name)
            except Exception as error:
                if trial == _TRIES - 1 or isinstance(error, FileNotFoundError | PermissionError):
                    raise self.mistake(error, file.path) from error
                time.sleep(_SECONDS_BETWEEN * 2**trial)
                continue
            if file.size in (-1, len(content)):
                if self._is_listed(content, file):
                    return content
                if content == before:  # twice the same: it was no MD5
                    self._md5_is_none = True
                    return content
            before = content
        if len(content) != file.size:
            reason = f"has {len(content):,} bytes and was listed with {file.size:,}: it was replaced, or is cut short"
        else:
            reason = "has other bytes than were listed: it is being replaced, or damaged on its way"
        raise UsageError(None, f"{self}/{file.path}", reason, "start again once nobody writes there")

    def read_part(self, file: RemoteFile, start: int, size: int) -> bytes:
        """Returns some of a file's bytes.

        Raises:
            UsageError: If they cannot be read.
        """
        filesystem, _ = self._connection()
        for trial in range(_TRIES):
            try:
                content: bytes = filesystem.cat_file(file.name, start=start, end=start + size)
            except Exception as error:
                if trial == _TRIES - 1 or isinstance(error, FileNotFoundError | PermissionError):
                    raise self.mistake(error, file.path) from error
                time.sleep(_SECONDS_BETWEEN * 2**trial)
                continue
            if len(content) == size:
                return content
            if len(content) == file.size:  # a server that gives no parts
                return content[start : start + size]
        reason = f"gave {len(content):,} bytes where {size:,} were asked for: it was replaced, or is cut short"
        raise UsageError(None, f"{self}/{file.path}", reason, "start again once nobody writes there")

    def head(self, file: RemoteFile, num_bytes: int) -> bytes:
        """Returns the first bytes of a file, perhaps fewer.

        Raises:
            UsageError: If they cannot be read.
        """
        filesystem, _ = self._connection()
        end = num_bytes if file.size < 0 else min(file.size, num_bytes)
        if not end:
            return b""
        try:
            content: bytes = filesystem.cat_file(file.name, start=0, end=end)
        except Exception as error:
            raise self.mistake(error, file.path) from error
        return content[:num_bytes]

    def name_of(self, path: str) -> str:
        """Returns what fsspec calls a file of this place."""
        return f"{self._connection()[1].rstrip('/')}/{quote(path) if self.is_web else path}"

    def mistake(self, error: Exception, path: str = "") -> UsageError:
        """Returns in one line what is wrong with the place, or with a file of it."""
        reason, way_out = _in_words(error, protocol_of(self.address))
        return (
            UsageError(None, f"{self}/{path}", reason, way_out)
            if path
            else UsageError(self.option, self, reason, way_out)
        )

    def _is_listed(self, content: bytes, file: RemoteFile) -> bool:
        import hashlib

        return self._md5_is_none or not file.md5 or file.md5 == hashlib.md5(content, usedforsecurity=False).hexdigest()

    def _said(self, ask: Callable[[], Result]) -> Result:
        try:
            return ask()
        except UsageError:
            raise
        except Exception as error:
            raise self.mistake(error) from error

    def _connection(self) -> tuple[Any, str]:
        """Returns fsspec's file system and what it calls the place; a connection does not outlive a fork."""
        if self._connected is None or self._connected[0] != os.getpid():
            try:
                import fsspec  # type: ignore[import-untyped]

                filesystem, path = fsspec.core.url_to_fs(self.address, skip_instance_cache=True)
            except Exception as error:
                raise self.mistake(error) from error
            is_bucketless = protocol_of(self.address) in _BUCKETS and path.startswith("/")
            if not path.strip("/") or is_bucketless:
                raise UsageError(self.option, self, "names no bucket, host or folder", "give s3://BUCKET/FOLDER, say")
            self._connected = os.getpid(), filesystem, path
        return self._connected[1:]


def _described(path: str, name: str, info: dict[str, Any]) -> RemoteFile:
    size = -1 if info.get("size") is None else int(info["size"])
    said = {key: str(info[key]) for key in _STATES if info.get(key) is not None}
    state = json.dumps([size, said], sort_keys=True) if said else ""
    digest = _MD5.fullmatch(str(info.get("ETag") or info.get("etag") or ""))
    md5 = digest[1] if digest else ""
    if google := info.get("md5Hash"):
        md5 = base64.b64decode(google).hex()
    return RemoteFile(path, name, size, state, md5)


def _within(seconds: float, ask: Callable[[], Result]) -> Result:
    """Returns what a function does, in a thread that is left alone where it has not ended in time.

    Raises:
        TimeoutError: If it has not.
    """
    given: list[Result] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            given.append(ask())
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not given:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return given[0]


def _in_words(error: Exception, protocol: str) -> tuple[str, str]:
    """Returns what is wrong, and the way out."""
    kinds = {kind.__name__ for each in _causes(error) for kind in type(each).__mro__}
    status = next((each.status for each in _causes(error) if isinstance(getattr(each, "status", None), int)), 0)
    said = " ".join(str(error).split())
    if isinstance(error, ImportError):
        package = re.search(r"[Ii]nstall (\w+)", said)
        named = package[1] if package else "the package that fsspec names"
        extra = "'lit-cnn[s3]'" if protocol in ("s3", "s3a") else named
        return f"{protocol}:// needs {named}", f"pip install {extra}"
    if "Protocol not known" in said:
        return (
            f"nothing is known of {protocol}://",
            "give a folder, or an address that begins with s3://, gs://, https://",
        )
    if kinds & {*_NO_CREDENTIALS} or "Unable to locate credentials" in said:
        return f"there are no credentials for it ({said})", _LOGIN_OF_S3 if protocol in ("s3", "s3a") else _LOGIN
    if kinds & {"TimeoutError", "ConnectionError", "ClientConnectionError", "HTTPClientError"}:
        cause = " ".join(str(next(each for each in (error.__cause__, error) if each is not None)).split())
        return f"cannot be reached ({cause or type(error).__name__})", "check the address and the network"
    if isinstance(error, PermissionError) or status in (401, 403):
        return f"access is refused ({f'HTTP {status}' if status else said})", _LOGIN_OF_S3 if protocol in (
            "s3",
            "s3a",
        ) else _LOGIN
    if isinstance(error, FileNotFoundError):
        what = "there is no such bucket" if "bucket" in said.lower() else "nothing is there"
        return what, "check the address; it is the folder that has the class folders, or a file"
    return f"cannot be read ({type(error).__name__}: {said})", "check the address"


def _causes(error: Any) -> Iterator[Any]:
    while error is not None:
        yield error
        error = error.__cause__
