"""What takes room on the disk and no run needs any more: what `lit-cnn gc` lists and removes."""

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lit_cnn.core.file_hashes import default_cache_file
from lit_cnn.core.files import held_alone
from lit_cnn.tracking.journal import read_header, read_owner
from lit_cnn.tracking.progress import MlflowRun, Progress
from lit_cnn.tracking.queries import live_run_ids
from lit_cnn.tracking.store import UNFINISHED, Store

UNFINISHED_WRITE = "writing that was cut off"
DELETED_RUN = "kept here of runs that were deleted in MLflow"
SENT_CHECKPOINT = "second copies of finished runs' checkpoints"
STORED_LOGITS = "logits, unused"
CACHE = "caches of images, unused"

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")  # see `lit_cnn.core.files.replace_atomically`
_CUT_OFF_AFTER = 3600.0  # seconds; a process that writes may be another machine's
_DAY = 86_400.0


@dataclass(frozen=True)
class Garbage:
    """A file, or a run's folder, that can go.

    Attributes:
        kind: Which of the kinds above.
        path: The file or folder.
        size: Bytes that removing it sets free.
        age: Days since it was last used.
    """

    kind: str
    path: Path
    size: int
    age: float


def find_garbage(store: Store, older_than: float) -> list[Garbage]:
    """Returns what no run needs: of the store's local folders, and of the user's cache folder.

    What is kept: every run's checkpoints and logits in MLflow; the journal of every run that MLflow shows or has not
    got completely; all of a run that goes on or can be resumed.

    Args:
        store: The store whose runs count.
        older_than: Days for which logits and caches, which cost time to make again, must not have been used.

    Raises:
        UsageError: If there are journals and the store cannot be asked which of their runs were deleted.
    """
    cache = default_cache_file().parent
    found = [*_cut_off(store.journal_dir), *_cut_off(store.predictions_dir), *_cut_off(cache)]
    found += [*_begun_and_left(store.journal_dir), *_of_runs(store)]
    found += _unused(STORED_LOGITS, store.predictions_dir.glob("[!.]*"), older_than)
    folders = ("indexes", "pixel_statistics", "features")
    cached = (path for name in folders for path in (cache / name).glob("[!.]*"))
    images = (path for name in ("remote", "prepared") for path in (cache / name / "objects").glob("*/*"))
    return found + list(_unused(CACHE, [*cached, *images], older_than))


def remove_garbage(found: Iterable[Garbage]) -> list[str]:
    """Removes what was found; returns a line for each that could not be removed."""
    failures = []
    for item in found:
        try:
            if item.path.is_dir():
                with held_alone(item.path) as is_mine:
                    if not is_mine:
                        failures.append(f"{item.path}: a run uses it by now")
                        continue
                    shutil.rmtree(item.path)
            else:
                item.path.unlink(missing_ok=True)
        except OSError as error:
            failures.append(f"{item.path}: cannot be removed ({error.strerror or error})")
    return failures


def _cut_off(folder: Path) -> Iterator[Garbage]:
    """Yields what processes that have ended were writing; a killed one cannot clean up after itself."""
    for path in folder.rglob("*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and _age(path) * _DAY > _CUT_OFF_AFTER and not Path(f"/proc/{match[1]}").exists():
            yield _garbage(UNFINISHED_WRITE, path)


def _begun_and_left(journal_dir: Path) -> Iterator[Garbage]:
    """Yields the folders of runs whose process was killed while it made them; see `Journal.create`."""
    for folder in journal_dir.glob(".*/owner.lock"):
        if _age(folder) * _DAY > _CUT_OFF_AFTER and read_owner(folder.parent) is None:
            yield _garbage(UNFINISHED_WRITE, folder.parent)


def _of_runs(store: Store) -> Iterator[Garbage]:
    sent: dict[Path, str] = {}
    for folder in store.journal_dir.glob("[!.]*"):
        header = read_header(folder)
        if header is None or header.store != store.label:
            continue  # another store's, or no run's: the sender's log
        run = MlflowRun.read(folder)
        if run is not None and Progress.read(folder).is_complete(folder) and read_owner(folder) is None:
            sent[folder] = run.run_id
    live = live_run_ids(store) if sent else set()
    for folder, run_id in sent.items():
        if run_id not in live:
            yield _garbage(DELETED_RUN, folder)
        elif Progress.read(folder).status == "FINISHED" and not (folder / UNFINISHED).exists():
            for checkpoint in folder.glob("*.ckpt"):
                # In a store on this machine it is MLflow's own file under a second name, and takes no room.
                if checkpoint.stat().st_nlink == 1:
                    yield _garbage(SENT_CHECKPOINT, checkpoint)


def _unused(kind: str, paths: Iterable[Path], older_than: float) -> Iterator[Garbage]:
    for path in paths:
        if not _TEMPORARY.fullmatch(path.name) and _age(path) >= older_than and not _is_in_use(path):
            yield _garbage(kind, path)


def _is_in_use(path: Path) -> bool:
    """Whether a run reads or computes the features in a folder."""
    if not path.is_dir():
        return False
    with held_alone(path) as is_mine:
        return not is_mine


def _garbage(kind: str, path: Path) -> Garbage:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(status.st_size for status in (file.stat() for file in files) if status.st_nlink == 1)
    return Garbage(kind, path, size, _age(path))


def _age(path: Path) -> float:
    """Returns the days since a file was last written or, where the file system notes it, read.

    Cached features have a note whose time is that of last use; to look into a folder is no use of it.
    """
    note = path / "entry.json"
    status = os.stat(note if note.exists() else path)
    last_use = status.st_mtime if path.is_dir() else max(status.st_mtime, status.st_atime)
    return (time.time() - last_use) / _DAY
