"""What a scan of large files found, remembered by their size, inode, and times of modification and change."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from lit_cnn.core.file_hashes import default_cache_file
from lit_cnn.core.files import replace_atomically

_SCHEMA = 2  # raised when what is remembered would mean something else


def index_file(kind: str, files: Sequence[Path]) -> Path:
    """Returns where the scan of these files is remembered, a name that changes when one of them does.

    Args:
        kind: What is remembered.
        files: Existing files.
    """
    states = [(str(file.resolve()), *_state(file)) for file in files]
    key = hashlib.sha256(json.dumps([_SCHEMA, kind, states]).encode()).hexdigest()
    return default_cache_file().parent / "indexes" / f"{key}.npz"


def remembered(index: Path, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the arrays kept in a file; computes them, and keeps them, if they are not there.

    Args:
        index: See `index_file`.
        compute: Makes the arrays, none of them of objects.
    """
    # Opened here: of a damaged file, np.load would leave its own handle open.
    with suppress(OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile), index.open("rb") as file:
        return dict(np.load(file, allow_pickle=False))
    arrays = compute()
    # A cache that cannot be written costs time at the next scan and nothing else.
    with suppress(OSError), replace_atomically(index) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays for its own options
    return arrays


def sha256_row(content: bytes) -> np.ndarray:
    """Returns the SHA-256 of bytes as `(32,)` uint8."""
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def hexadecimal(rows: np.ndarray) -> list[str]:
    """Returns `(N, 32)` uint8 digests as text of 64 hexadecimal digits each."""
    return [row.tobytes().hex() for row in rows]


def _state(file: Path) -> tuple[int, int, int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns
