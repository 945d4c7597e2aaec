"""The sender as a process: kills, concurrent first launches, old runs by the thousand."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_cnn.tracking.journal import JOURNAL, Journal, Process, read_journal
from lit_cnn.tracking.progress import Progress
from lit_cnn.tracking.queries import find_runs
from lit_cnn.tracking.sender import LOG, Backlog, Order, Sender, sync
from lit_cnn.tracking.store import Store, resolve_store
from tests.faults import wait_until
from tests.tracking.conftest import run_python, start_python, stored_metrics
from tests.tracking_server import free_port

NewJournal = Callable[..., Journal]
# A run of a process of its own: what it needs, then what it does.
BEGIN = """
import os, sys, time
from lit_cnn.tracking.recorder import Recorder
recorder = Recorder("digits")
recorder.begin(run_name="lenet5", params={"lr": 0.1}, tags={"arch": "lenet5"})
print(recorder.key, flush=True)
"""


def logged_metrics(folder: Path) -> list[tuple[str, int, float]]:
    """What the journal holds, as `stored_metrics` gives it."""
    metrics = [record for record, _ in read_journal(folder) if record["kind"] == "metrics"]
    return sorted((name, r["step"], value) for r in metrics for name, value in r["values"].items())


def assert_stored_as_logged(store: Store, key: str) -> None:
    stored = [row[:3] for row in stored_metrics(store.database, key)]
    assert stored == logged_metrics(store.journal_dir / key)


def senders_of(journal_dir: Path) -> list[int]:
    """The senders at work in a folder, by the log that they write to."""
    return [pid for pid, log in senders().items() if log == str(journal_dir / LOG)]


def senders() -> dict[int, str]:
    """All senders of this machine: process number -> where their messages go."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().split("\0")
            if "lit_cnn.tracking.sender" in command:
                found[int(process.name)] = os.readlink(process / "fd" / "2")
        except OSError:
            continue
    return found


def wait_for_progress(folder: Path, before: int | None = None) -> None:
    """Waits until more of the journal is sent than `before`, by default than at the call."""
    start = Progress.read(folder).offset if before is None else before
    wait_until(lambda: Progress.read(folder).offset > start)


def test_a_run_arrives_and_no_process_stays(store: Store, tmp_path: Path) -> None:
    code = BEGIN + (
        "for step in range(50):\n    recorder.log_metrics({'a': step / 7}, step)\n"
        "recorder.end('FINISHED')\nprint(recorder.wait_until_sent(60), recorder.run_id)\n"
        "assert 'mlflow' not in sys.modules and 'torch' not in sys.modules"
    )
    key, sent, run_id = run_python(code, tmp_path).split()
    assert sent == "True"
    (run,) = find_runs(store, [key])
    assert (run.run_id, run.status, run.params, run.tags["arch"]) == (run_id, "FINISHED", {"lr": "0.1"}, "lenet5")
    assert_stored_as_logged(store, key)
    wait_until(lambda: not senders_of(store.journal_dir), timeout=30)


def test_a_sender_started_early_takes_the_run(store: Store, tmp_path: Path) -> None:
    early = "from lit_cnn.tracking import supervisor\nsupervisor.start_early(); supervisor.start_early()\n"
    code = BEGIN.replace("recorder = Recorder", f"{early}recorder = Recorder", 1) + (
        "recorder.log_metrics({'a': 1.0}, 0)\nrecorder.end('FINISHED')\n"
        "print(recorder.wait_until_sent(60), supervisor._early)"
    )
    key, *printed = run_python(code, tmp_path).split()
    assert printed == ["True", "[]"]
    assert_stored_as_logged(store, key)


def test_a_sender_without_a_run_ends_with_its_parent_and_writes_nothing(tmp_path: Path) -> None:
    code = (
        "from lit_cnn.tracking import supervisor\nsupervisor.start_early()\n"
        "print(supervisor._early[0][0], flush=True)\ninput()"
    )
    process = start_python(code, tmp_path)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert pid in senders()
    process.kill()
    process.communicate()
    wait_until(lambda: pid not in senders())
    assert not list(tmp_path.iterdir())


def test_an_order_survives_its_line(store: Store) -> None:
    order = Order(store, Process.this())
    assert order.to_json().count("\n") == 1
    assert Order.from_json(order.to_json()) == order


@pytest.mark.slow
def test_a_killed_sender_is_replaced_and_sends_nothing_twice(store: Store, tmp_path: Path) -> None:
    code = BEGIN + (
        "step = 0\nwhile not os.path.exists('stop'):\n"
        "    recorder.log_metrics({'a': step / 7, 'b': 0.5}, step); step += 1; time.sleep(0.0005)\n"
        "recorder.end('FINISHED')\nprint(recorder.wait_until_sent(60))"
    )
    process = start_python(code, tmp_path)
    assert process.stdout is not None
    key = process.stdout.readline().strip()
    folder = store.journal_dir / key
    wait_for_progress(folder, before=0)
    (killed,) = senders_of(store.journal_dir)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: set(senders_of(store.journal_dir)) - {killed})
    (tmp_path / "stop").touch()
    out, err = process.communicate(timeout=90)
    assert (process.returncode, out.strip()) == (0, "True"), err
    assert len(logged_metrics(folder)) > 100
    assert_stored_as_logged(store, key)


def test_a_killed_training_is_sent_by_its_orphaned_sender(store: Store, tmp_path: Path) -> None:
    code = BEGIN + "for step in range(10**9):\n    recorder.log_metrics({'a': step}, step); time.sleep(0.001)"
    process = start_python(code, tmp_path)
    assert process.stdout is not None
    key = process.stdout.readline().strip()
    wait_for_progress(store.journal_dir / key, before=0)
    process.kill()
    process.communicate()
    wait_until(lambda: not senders_of(store.journal_dir))
    assert find_runs(store, [key])[0].status == "KILLED"
    assert_stored_as_logged(store, key)


def test_ctrl_c_does_not_reach_the_sender(store: Store, tmp_path: Path) -> None:
    code = BEGIN + (
        "recorder.log_metrics({'a': 1.0}, 1)\n"
        "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    recorder.end('KILLED')\n"
        "print(recorder.wait_until_sent(60))"
    )
    process = start_python("import os; os.setsid()\n" + code, tmp_path)
    assert process.stdout is not None
    key = process.stdout.readline().strip()
    wait_for_progress(store.journal_dir / key, before=0)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert out.strip() == "True", err
    assert (store.journal_dir / "sender.log").read_text() == ""
    assert find_runs(store, [key])[0].status == "KILLED"


@pytest.mark.slow
def test_eight_first_launches_at_once(tmp_path: Path) -> None:
    code = BEGIN + (
        "for step in range(20):\n    recorder.log_metrics({'a': step}, step)\n"
        "recorder.end('FINISHED')\nprint(recorder.wait_until_sent(200))"
    )
    launched = [start_python(code, tmp_path) for _ in range(8)]
    said = [process.communicate(timeout=240) for process in launched]
    assert [process.returncode for process in launched] == [0] * 8, said
    keys, sent = zip(*(out.split() for out, _ in said), strict=True)
    assert set(sent) == {"True"}, said
    store = resolve_store(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    for run in find_runs(store, list(keys)):
        assert (run.status, run.experiment_name) == ("FINISHED", "digits")
    for key in keys:
        assert_stored_as_logged(store, key)


def test_an_unreachable_server_is_given_up_soon_and_the_run_kept(tmp_path: Path, fresh_database: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    code = BEGIN + (
        "recorder.log_metrics({'a': 1.0}, 1)\nrecorder.end('FINISHED')\n"
        "start = time.monotonic()\nprint(recorder.wait_until_sent(60), time.monotonic() - start)"
    )
    key, sent, seconds = run_python(code, tmp_path, MLFLOW_TRACKING_URI=uri).split()
    assert sent == "False"
    assert float(seconds) < 9  # 5, and more on a busy machine
    journal_dir = tmp_path / "mlruns" / "journal"
    store, ends = Store(uri, None, journal_dir), time.monotonic() + 30
    # On a busy machine the run's own sender may still be at it, and sync leaves the run to it.
    while not (summary := sync(store, show_progress=False)).failed and time.monotonic() < ends:
        time.sleep(0.2)
    assert list(summary.failed) == [key]
    assert "does not answer" in summary.failed[key]
    assert len(logged_metrics(journal_dir / key)) == 1


def test_sync_sends_what_is_left(store: Store, new_journal: NewJournal, capsys: pytest.CaptureFixture[str]) -> None:
    ended, killed, running = new_journal(), new_journal(), new_journal()
    for journal in (ended, killed, running):
        journal.log_metrics({"a": 1.0}, 1)
    ended.append({"kind": "end", "status": "FAILED", "time": 1})
    ended.close()
    killed.close()
    summary = sync(store)
    assert sorted(summary.sent) == sorted([ended.header.key, killed.header.key])
    assert (summary.running, summary.failed) == ([running.header.key], {})
    states = [run.status for run in find_runs(store, [j.header.key for j in (ended, killed, running)])]
    assert states == ["FAILED", "KILLED", "RUNNING"]
    assert "3 of 3 runs" in capsys.readouterr().err
    assert sync(store).sent == []


def test_one_run_in_trouble_does_not_keep_the_others_back(store: Store, new_journal: NewJournal) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store.tracking_uri)
    client.delete_experiment(client.create_experiment("gone"))
    bad, good = new_journal("gone"), new_journal("digits")
    for journal in (bad, good):
        journal.log_metrics({"a": 1.0}, 1)
        journal.close()
    summary = sync(store, show_progress=False)
    assert summary.sent == [good.header.key]
    assert "is deleted" in summary.failed[bad.header.key]


def test_journals_of_another_store_are_left_to_it(store: Store, new_journal: NewJournal) -> None:
    journal = new_journal()
    journal.close()
    other = Store("http://127.0.0.1:9", None, store.journal_dir)
    backlog = Backlog(other)
    assert backlog.unfinished() == []
    assert backlog.elsewhere == {"sqlite:mlflow.db": 1}
    assert sync(other, show_progress=False).elsewhere == {"sqlite:mlflow.db": 1}


def test_a_journal_whose_first_line_is_damaged_is_named(store: Store, new_journal: NewJournal) -> None:
    cut_off, without_store, good = new_journal(), new_journal(), new_journal()
    for journal in (cut_off, without_store, good):
        journal.log_metrics({"a": 1.0}, 1)
        journal.close()
    file = cut_off.folder / JOURNAL
    file.write_bytes(file.read_bytes()[5:])
    file = without_store.folder / JOURNAL
    file.write_text(file.read_text().replace('"store"', '"stone"'))
    summary = sync(store, show_progress=False)
    assert summary.sent == [good.header.key] and summary.elsewhere == {}
    assert sorted(summary.failed) == sorted([cut_off.header.key, without_store.header.key])
    assert f"{file}: its first line" in summary.failed[without_store.header.key]


def test_a_thousand_old_runs_are_passed_over_quickly(store: Store, new_journal: NewJournal) -> None:
    journal = new_journal()
    journal.append({"kind": "end", "status": "FINISHED", "time": 1})
    journal.close()
    progress = Progress(complete_size=(journal.folder / JOURNAL).stat().st_size)
    progress.write(journal.folder)
    for number in range(999):
        shutil.copytree(journal.folder, store.journal_dir / f"{number:032x}")
    new = new_journal()
    backlog = Backlog(store)
    start = time.process_time()
    assert [folder for folder, _ in backlog.unfinished()] == [new.folder]
    first = time.process_time()
    backlog.unfinished()
    again = time.process_time()
    assert first - start < 1
    assert again - first < 0.1


def test_a_sender_with_nothing_to_do_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_cnn.tracking.sender._PATIENCE_IDLE", 0.1)
    Sender(store, Process(1, "somebody")).serve()


def test_a_journal_of_a_living_process_is_left_to_its_own_sender(
    store: Store, new_journal: NewJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_cnn.tracking.sender._PATIENCE_IDLE", 0.1)
    journal = new_journal()
    Sender(store, Process(1, "somebody else")).serve()
    assert Progress.read(journal.folder).status is None
    journal.close()
    Sender(store, Process(1, "somebody else")).serve()
    assert Progress.read(journal.folder).status == "KILLED"
