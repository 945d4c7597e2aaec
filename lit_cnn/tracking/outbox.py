"""A run's files, kept in the run's folder from the moment they are logged until MLflow has them.

So a file may be deleted or replaced as soon as it is logged, and an outage of the server loses none.
"""

import hashlib
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_names import as_text
from lit_cnn.core.files import replace_atomically, sha256_of_file, write_text_atomically

_OUTBOX = "outbox"


def put_file(folder: Path, file: Path, artifact_path: str) -> dict[str, Any]:
    """Puts a file into the outbox of the run in `folder`; returns the record for the journal.

    A file of the run's own folder, such as a checkpoint, is hard-linked and takes no further space: it must from then
    on only be replaced by renaming, never be written to. Any other file is copied.

    Args:
        folder: The run's folder.
        file: What to log; keeps its name.
        artifact_path: The folder among the run's artifacts, "" for the topmost.

    Raises:
        OSError: If the file cannot be read or the outbox not written.
        UsageError: If `artifact_path` leads out of the run's artifacts.
    """
    sha256 = sha256_of_file(file)
    target = _target(artifact_path, as_text(file.name))
    waiting = path_of(folder, target, sha256)
    if not waiting.exists():
        with replace_atomically(waiting) as temporary:
            if file.resolve().is_relative_to(folder.resolve()):
                link_or_copy(file, temporary)
            else:
                shutil.copyfile(file, temporary)
    return {"kind": "artifact", "target": target, "sha256": sha256}


def put_text(folder: Path, text: str, artifact_file: str) -> dict[str, Any]:
    """Puts a text into the outbox as UTF-8 file `artifact_file`; returns the record for the journal.

    Raises:
        OSError: If the outbox cannot be written.
        UsageError: If `artifact_file` leads out of the run's artifacts.
    """
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    target = _target("", artifact_file)
    write_text_atomically(path_of(folder, target, sha256), text)
    return {"kind": "artifact", "target": target, "sha256": sha256}


def path_of(folder: Path, target: str, sha256: str) -> Path:
    """Returns where a file waits: one place for each (target, content), so none is ever replaced while it is sent."""
    place = hashlib.sha256(f"{target}\n{sha256}".encode()).hexdigest()[:16]
    return folder / _OUTBOX / place / PurePosixPath(target).name


def remove(waiting: Path) -> None:
    """Takes a file out of the outbox, if it still is there."""
    waiting.unlink(missing_ok=True)
    if waiting.parent.exists() and not any(waiting.parent.iterdir()):
        waiting.parent.rmdir()


def put_in_place(source: Path, destination: Path) -> None:
    """Puts a file at `destination`, whole or not at all, as `link_or_copy` does; neither may be written to after that.

    Raises:
        OSError: If it cannot be put there.
    """
    with replace_atomically(destination) as temporary:
        link_or_copy(source, temporary)
    temporary.unlink(missing_ok=True)  # renaming a file onto another link of itself does nothing


def link_or_copy(source: Path, destination: Path) -> None:
    """Makes `destination` a hard link to `source`, or a copy where the file system has no link for it."""
    destination.unlink(missing_ok=True)
    try:
        os.link(source, destination)
    except OSError:  # another device, or a file system without links; a real failure comes again below
        shutil.copyfile(source, destination)


def _target(artifact_path: str, name: str) -> str:
    target = PurePosixPath(artifact_path) / name
    if target.is_absolute() or ".." in target.parts or not target.parts:
        raise UsageError(None, f"artifact {target}", "give a path inside the run's artifacts, without '..'")
    return str(target)
