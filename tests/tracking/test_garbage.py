"""`lit-cnn gc`: what no run needs goes, and nothing else."""

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_cnn.cli import main
from lit_cnn.tracking import outbox
from lit_cnn.tracking.client import connect
from lit_cnn.tracking.delivery import Courier
from lit_cnn.tracking.garbage import (
    CACHE,
    DELETED_RUN,
    SENT_CHECKPOINT,
    STORED_LOGITS,
    UNFINISHED_WRITE,
    find_garbage,
    remove_garbage,
)
from lit_cnn.tracking.journal import Journal
from lit_cnn.tracking.progress import MlflowRun
from lit_cnn.tracking.store import Store

NewJournal = Callable[..., Journal]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lit_cnn"


def finished(store: Store, new_journal: NewJournal, status: str = "FINISHED") -> Journal:
    """A run that has ended, with a checkpoint, and is in MLflow."""
    journal = new_journal("digits", "run")
    (journal.folder / "best.ckpt").write_bytes(b"weights")
    journal.append(outbox.put_file(journal.folder, journal.folder / "best.ckpt", "checkpoints"))
    journal.append({"kind": "end", "status": status, "time": 1})
    journal.close()
    Courier(store).deliver(journal.folder)
    return journal


def unlink_from_store(file: Path) -> None:
    """Makes a file a copy of its own, as it is where the store is on another machine."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)


def aged(path: Path, days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(b"1234")
    then = time.time() - days * 86_400
    os.utime(path, (then, then))
    return path


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def found_kinds(store: Store, older_than: float = 30) -> dict[Path, str]:
    return {item.path: item.kind for item in find_garbage(store, older_than)}


def test_nothing_is_found_where_nothing_is(store: Store) -> None:
    assert find_garbage(store, 0) == []


def test_a_run_in_mlflow_keeps_everything_that_takes_no_room(store: Store, new_journal: NewJournal) -> None:
    journal = finished(store, new_journal)
    assert (journal.folder / "best.ckpt").stat().st_nlink > 1
    assert found_kinds(store) == {}


def test_a_second_copy_of_a_finished_runs_checkpoint_goes(store: Store, new_journal: NewJournal) -> None:
    journal = finished(store, new_journal)
    copy = journal.folder / "best.ckpt"
    unlink_from_store(copy)
    (item,) = find_garbage(store, 30)
    assert (item.kind, item.path, item.size) == (SENT_CHECKPOINT, copy, len(b"weights"))
    remove_garbage([item])
    assert not copy.exists() and (journal.folder / "journal.jsonl").exists()


@pytest.mark.parametrize("status", ["KILLED", "FAILED"])
def test_what_a_resume_needs_stays(store: Store, new_journal: NewJournal, status: str) -> None:
    journal = finished(store, new_journal, status)
    unlink_from_store(journal.folder / "best.ckpt")
    assert found_kinds(store) == {}
    aborted = finished(store, new_journal)
    unlink_from_store(aborted.folder / "best.ckpt")
    (aborted.folder / "unfinished.json").write_text("{}")
    assert found_kinds(store) == {}


def test_a_run_that_mlflow_lacks_or_that_goes_on_stays(store: Store, new_journal: NewJournal) -> None:
    unsent = new_journal("digits", "unsent")
    (unsent.folder / "best.ckpt").write_bytes(b"weights")
    unsent.append({"kind": "end", "status": "FINISHED", "time": 1})
    running = new_journal("digits", "running")
    (running.folder / "best.ckpt").write_bytes(b"weights")
    Courier(store).deliver(running.folder)
    assert found_kinds(store, 0) == {}


def test_what_is_left_of_a_run_deleted_in_mlflow_goes(store: Store, new_journal: NewJournal) -> None:
    kept, deleted = finished(store, new_journal), finished(store, new_journal)
    (store.journal_dir / "sender.log").write_text("")  # is no run's
    run = MlflowRun.read(deleted.folder)
    assert run is not None
    connect(store).delete_run(run.run_id)
    assert found_kinds(store) == {deleted.folder: DELETED_RUN}
    remove_garbage(find_garbage(store, 30))
    assert not deleted.folder.exists() and kept.folder.exists()


def test_half_written_files_of_ended_processes_go(store: Store, new_journal: NewJournal, cache: Path) -> None:
    journal, ended = new_journal("digits", "run"), ended_process()
    logits, copies = store.predictions_dir, cache / "indexes"
    old = {
        aged(folder / f".file.{ended}.tmp", 1): UNFINISHED_WRITE for folder in (journal.folder, logits, copies, cache)
    }
    aged(logits / f".file.{os.getpid()}.tmp", 1)  # its process lives
    (copies / f".other.{ended}.tmp").write_bytes(b"1")  # too young: perhaps of another machine's process
    assert found_kinds(store) == old


def test_a_run_that_was_killed_before_it_began_goes(store: Store, new_journal: NewJournal) -> None:
    journal = new_journal("digits", "run")
    hidden = journal.folder.with_name("." + "a" * 32)
    aged(hidden / "owner.lock", 0)
    assert found_kinds(store) == {}
    aged(hidden / "owner.lock", 1)
    assert found_kinds(store) == {hidden: UNFINISHED_WRITE}
    remove_garbage(find_garbage(store, 30))
    assert not hidden.exists() and journal.folder.exists()


def test_logits_and_caches_go_when_they_were_not_used_for_long(store: Store, cache: Path) -> None:
    expected = {
        aged(store.predictions_dir / "a.safetensors", 31): STORED_LOGITS,
        aged(store.predictions_dir / "a.json", 31): STORED_LOGITS,
        aged(cache / "indexes" / "a.bytes", 31): CACHE,
        aged(cache / "indexes" / "a.npz", 31): CACHE,
        aged(cache / "pixel_statistics" / "a.json", 31): CACHE,
        aged(cache / "remote" / "objects" / "ab" / "abc", 31): CACHE,
    }
    young = aged(store.predictions_dir / "b.safetensors", 29)
    aged(cache / "file_hashes.sqlite", 400)  # small, and of use to every run
    assert found_kinds(store) == expected
    assert found_kinds(store, 29) == {**expected, young: STORED_LOGITS}


def test_cached_features_go_when_they_were_not_used_for_long_and_are_not_in_use(store: Store, cache: Path) -> None:
    old, used, read = (cache / "features" / name for name in ("old", "used", "read"))
    for entry, days in ((old, 31), (used, 1), (read, 31)):
        aged(entry / "features.npy", 31)
        aged(entry / "entry.json", days)
    lock = os.open(read, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert found_kinds(store) == {old: CACHE}
    finally:
        os.close(lock)
    assert found_kinds(store) == {old: CACHE, read: CACHE}
    (item, _) = sorted(find_garbage(store, 30), key=lambda item: item.path)
    assert item.size == 8
    remove_garbage([item])
    assert not old.exists() and used.exists()


def gc(store: Store, *options: str) -> int:
    return main(["gc", "--tracking_uri", store.tracking_uri, *options])


def test_cached_features_that_a_run_began_to_read_in_the_meantime_stay(store: Store, cache: Path) -> None:
    entry = cache / "features" / "old"
    aged(entry / "features.npy", 31)
    aged(entry, 31)
    (found,) = find_garbage(store, 30)
    lock = os.open(entry, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert remove_garbage([found]) == [f"{entry}: a run uses it by now"]
    finally:
        os.close(lock)
    assert (entry / "features.npy").exists()
    assert remove_garbage([found]) == []
    assert not entry.exists()


def test_nothing_is_removed_unless_told(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    logits = aged(store.predictions_dir / "a.safetensors", 31)
    assert gc(store) == 0
    printed = capsys.readouterr().out
    assert STORED_LOGITS in printed and "4 B in all; nothing was removed" in printed and logits.exists()
    assert gc(store, "--delete") == 0
    assert "4 B removed" in capsys.readouterr().out and not logits.exists()
    assert gc(store, "--delete") == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_json_has_every_file(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    logits = aged(store.predictions_dir / "a.safetensors", 31)
    assert gc(store, "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in found["garbage"]] == [str(logits)] and found["deleted"] is False


def test_what_cannot_be_removed_is_named(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    # What has vanished meanwhile is no failure; what lies below a file cannot be reached, not even by root.
    logits = aged(store.predictions_dir / "a.safetensors", 31)
    found = find_garbage(store, 30)
    logits.unlink()
    store.predictions_dir.rmdir()
    store.predictions_dir.write_bytes(b"")
    assert remove_garbage(found) == [f"{logits}: cannot be removed (Not a directory)"]


@pytest.mark.parametrize("days", ["-1", "nan", "soon"])
def test_a_mistake_is_one_line(store: Store, days: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gc(store, "--older_than", days) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert days in line and "give a number of days" in line
