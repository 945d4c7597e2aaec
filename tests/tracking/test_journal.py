"""The journal: nothing lost, nothing twice, however the process ends."""

import fcntl
import json
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_cnn.core.errors import UsageError
from lit_cnn.tracking.journal import JOURNAL, Journal, Process, Record, RunHeader, read_header, read_journal, read_owner
from lit_cnn.tracking.store import Store
from tests.tracking.conftest import run_python, start_python

NewJournal = Callable[..., Journal]
BEGIN = """
import os, sys, time
from pathlib import Path
from lit_cnn.tracking.journal import Journal, RunHeader
journal = Journal.create(Path("journal"), RunHeader.new("digits", "lenet5", "sqlite:mlflow.db", None, "ada"))
"""


def records(folder: Path, kind: str) -> list[Record]:
    return [record for record, _ in read_journal(folder) if record["kind"] == kind]


def values(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(r["step"], r["values"][name]) for r in records(folder, "metrics") if name in r["values"]]


def test_what_is_logged_can_be_read_at_once(new_journal: NewJournal) -> None:
    journal = new_journal()
    journal.log_metrics({"train/loss": 0.1 + 0.2, "val/acc": 1}, 3)
    assert values(journal.folder, "train/loss") == [(3, 0.1 + 0.2)]
    assert values(journal.folder, "val/acc") == [(3, 1.0)]
    assert read_header(journal.folder) == journal.header
    assert abs(records(journal.folder, "metrics")[0]["time"] - time.time() * 1000) < 60_000


def test_nan_and_infinities_are_kept_in_valid_json(new_journal: NewJournal) -> None:
    journal = new_journal()
    journal.log_metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.5}, 0)
    line = (journal.folder / JOURNAL).read_text().splitlines()[-1]
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found = records(journal.folder, "metrics")[0]["values"]
    assert math.isnan(found["a"])
    assert (found["b"], found["c"], found["d"]) == (math.inf, -math.inf, 0.5)


def test_reading_goes_on_from_an_offset_and_stops_before_a_part_of_a_line(new_journal: NewJournal) -> None:
    journal = new_journal()
    journal.log_metrics({"a": 1}, 0)
    *_, (_, offset) = read_journal(journal.folder)
    journal.log_metrics({"a": 2}, 1)
    with (journal.folder / JOURNAL).open("ab") as file:
        file.write(b'{"kind": "metrics", "st')
    later = list(read_journal(journal.folder, offset))
    assert [record["step"] for record, _ in later] == [1]
    assert list(read_journal(journal.folder, later[-1][1])) == []


@pytest.mark.parametrize("tail", [b'{"kind": "metrics", "st', b"\0" * 100, b"\0" * 100 + b"\n", b'{"kind": "met\n'])
def test_resume_drops_a_torn_end_and_logs_each_step_once(new_journal: NewJournal, tail: bytes) -> None:
    first = new_journal()
    for step in range(10):
        first.log_metrics({"loss": step, "lr": 1.0}, step)
    first.close()
    with (first.folder / JOURNAL).open("ab") as file:
        file.write(tail)
    second = Journal.reopen(first.folder)
    for step in range(6, 14):  # the checkpoint was that of step 5
        second.log_metrics({"loss": step, "lr": 1.0}, step)
    second.log_metrics({"new": 7.0}, 3)  # not logged before, though the step is an old one
    second.close()
    assert values(first.folder, "loss") == [(step, step) for step in range(14)]
    assert values(first.folder, "lr") == [(step, 1.0) for step in range(14)]
    assert values(first.folder, "new") == [(3, 7.0)]
    assert len(records(first.folder, "attempt")) == 1


def test_an_old_step_that_was_never_logged_is_not_taken_for_a_repetition(new_journal: NewJournal) -> None:
    journal = new_journal()
    for step in (10, 20, 15, 20, 15, 25):
        journal.log_metrics({"test/acc": step / 100}, step)
    assert values(journal.folder, "test/acc") == [(10, 0.1), (20, 0.2), (15, 0.15), (25, 0.25)]


@pytest.mark.parametrize("name", ["acc@5", "", "/a", "a//b", "../a", "a/", "a" * 251])
def test_a_name_that_mlflow_refuses_is_refused(new_journal: NewJournal, name: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_length_limit, _validate_metric_name

    with pytest.raises(UsageError, match="metric"):
        new_journal().log_metrics({name: 0.5}, 0)
    with pytest.raises(MlflowException):  # the rule is MLflow's, not ours
        _validate_length_limit("name", 250, name)
        _validate_metric_name(name or None)


def test_a_killed_process_loses_nothing_that_it_logged(tmp_path: Path) -> None:
    code = BEGIN + "for step in range(10**9):\n    journal.log_metrics({'a': step}, step)\n    print(step, flush=True)"
    process = start_python(code, tmp_path)
    assert process.stdout is not None
    for _ in range(200):
        said = int(process.stdout.readline())
    process.kill()
    rest = process.communicate()[0].split()
    (folder,) = (tmp_path / "journal").iterdir()
    steps = [step for step, _ in values(folder, "a")]
    assert steps == list(range(len(steps)))
    assert len(steps) > max([said, *map(int, rest)])
    assert read_owner(folder) is None


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    code = (
        "import resource\n"
        + BEGIN
        + "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        + "for step in range(100):\n"
        + "    try:\n        journal.log_metrics({'a': 0.5}, step)\n"
        + "    except OSError as error:\n        print(step, error.strerror); break"
    )
    step, reason = run_python(code, tmp_path).split(maxsplit=1)
    assert "space" in reason or "large" in reason
    (folder,) = (tmp_path / "journal").iterdir()
    assert (folder / JOURNAL).read_bytes().endswith(b"\n")
    assert [step for step, _ in values(folder, "a")] == list(range(int(step)))


WAITING = (
    "import resource\n"
    + BEGIN
    + """
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

journal.buffer_when_disk_full = True
limit(1000)
for step in range(100):
    journal.log_metrics({"a": 0.5, "b": 1.0}, step)
journal.log_metrics({"a": 0.5}, 99)  # was logged, though it is not in the file
assert journal.is_waiting
try:
    journal.flush()
except OSError as error:
    print(error.filename.endswith("journal.jsonl"), error.strerror)
"""
)


def test_what_finds_no_room_waits_and_is_written_in_order(tmp_path: Path) -> None:
    code = WAITING + "limit(10**6)\njournal.log_metrics({'a': 0.5}, 100)\njournal.flush()\nprint(journal.is_waiting)"
    told, is_waiting = run_python(code, tmp_path).splitlines()
    assert re.fullmatch(r"True (File too large|No space).*: no room for \d+ values of metrics from step \d+ on", told)
    assert is_waiting == "False"
    (folder,) = (tmp_path / "journal").iterdir()
    assert values(folder, "a") == [(step, 0.5) for step in range(101)]
    assert values(folder, "b") == [(step, 1.0) for step in range(100)]


def test_where_no_room_comes_the_last_line_says_how_the_run_ended(tmp_path: Path) -> None:
    # A limit of a file's size is none that a reserve in another file could lift: it is lifted here by its bytes.
    code = WAITING + (
        "reserve = (journal.folder / 'reserve').stat().st_size\nprint(journal.forget_unwritten())\n"
        "assert not (journal.folder / 'reserve').exists()\nlimit(1000 + reserve)\n"
        "journal.append({'kind': 'end', 'status': 'FAILED', 'time': 1})\njournal.flush()\njournal.close()"
    )
    lost = run_python(code, tmp_path).splitlines()[1]
    (folder,) = (tmp_path / "journal").iterdir()
    stored = [step for step, _ in values(folder, "a")]
    assert stored == list(range(len(stored)))
    assert lost == f"{2 * (100 - len(stored))} values of metrics from step {len(stored)} on"
    assert records(folder, "end") == [{"kind": "end", "status": "FAILED", "time": 1}]


def test_the_owner_is_known_until_it_ends(new_journal: NewJournal, tmp_path: Path) -> None:
    journal = new_journal()
    assert read_owner(journal.folder) == Process.this()
    seen = run_python(
        f"from pathlib import Path; from lit_cnn.tracking.journal import *\n"
        f"print(read_owner(Path({str(journal.folder)!r})).pid)",
        tmp_path,
    )
    assert int(seen) == os.getpid()
    journal.close()
    assert read_owner(journal.folder) is None


def test_a_run_that_is_running_is_not_resumed(new_journal: NewJournal) -> None:
    journal = new_journal()
    size = (journal.folder / JOURNAL).stat().st_size
    with pytest.raises(UsageError, match="still running"):
        Journal.reopen(journal.folder)
    assert (journal.folder / JOURNAL).stat().st_size == size


def test_whoever_asks_for_the_owner_delays_a_resume_and_does_not_refuse_it(
    new_journal: NewJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_cnn.tracking.journal._CLAIM_PATIENCE", 0.0)
    journal = new_journal()
    journal.close()
    asker = os.open(journal.folder / "owner.lock", os.O_RDONLY)
    fcntl.flock(asker, fcntl.LOCK_SH)
    threading.Timer(0.3, os.close, [asker]).start()
    began = time.monotonic()
    Journal.reopen(journal.folder).close()
    assert time.monotonic() - began >= 0.3


def test_what_is_no_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run"):
        Journal.reopen(tmp_path)
    with pytest.raises(UsageError, match="no run"):
        Journal.reopen(tmp_path / "nothing")


def test_a_forked_worker_does_not_outlive_its_parent_as_owner(tmp_path: Path) -> None:
    code = BEGIN + (
        "pid = os.fork()\n"
        "if pid == 0:\n    sys.stdout.close(); os.close(1); os.close(2); time.sleep(60); os._exit(0)\n"
        "print(pid, flush=True); os.kill(os.getpid(), 9)"
    )
    process = start_python(code, tmp_path)
    worker = int(process.communicate(timeout=60)[0])
    try:
        os.kill(worker, 0)  # still there
        (folder,) = (tmp_path / "journal").iterdir()
        assert read_owner(folder) is None
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_journal_appears_whole(store: Store) -> None:
    journal = Journal.create(store.journal_dir, RunHeader.new("digits", "lenet5", store.label, None, "ada"))
    assert [path.name for path in store.journal_dir.iterdir()] == [journal.header.key]
    journal.close()
