"""What arrives in MLflow, also when a delivery is cut off, repeated or met by a resume."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from lit_cnn.tracking import outbox
from lit_cnn.tracking.delivery import Courier
from lit_cnn.tracking.journal import Journal
from lit_cnn.tracking.progress import MlflowRun, Progress
from lit_cnn.tracking.store import Store
from tests.tracking.conftest import stored_metrics

NewJournal = Callable[..., Journal]


def end(journal: Journal, status: str = "FINISHED", time: int = 5000) -> None:
    journal.append({"kind": "end", "status": status, "time": time})
    journal.close()


def run_of(store: Store, journal: Journal) -> Run:
    run = MlflowRun.read(journal.folder)
    assert run is not None
    return MlflowClient(store.tracking_uri).get_run(run.run_id)


def artifact(store: Store, journal: Journal, path: str) -> Path:
    return Path(run_of(store, journal).info.artifact_uri) / path


def log_file(journal: Journal, file: Path, artifact_path: str) -> dict[str, Any]:
    record = outbox.put_file(journal.folder, file, artifact_path)
    journal.append(record)
    return record


def test_everything_arrives(store: Store, new_journal: NewJournal) -> None:
    journal = new_journal("digits", "lenet5_scratch")
    journal.append({"kind": "params", "values": {f"p{i}": "x" for i in range(250)} | {"long": "y" * 7000}})
    journal.append({"kind": "tags", "values": {"arch": "lenet5", "long": "z" * 9000}})
    journal.log_metrics({"loss": math.nan, "acc": 0.1 + 0.2, "up": math.inf, "down": -math.inf}, 7)
    data = {"kind": "dataset", "name": "digits", "digest": "d" * 64, "context": "train", "source": "scikit-learn"}
    journal.append({**data, "schema": "{}", "profile": None})
    end(journal)
    Courier(store).deliver(journal.folder)

    run = run_of(store, journal)
    assert (run.info.run_name, run.info.status, run.info.end_time) == ("lenet5_scratch", "FINISHED", 5000)
    assert run.info.start_time == journal.header.created
    assert run.data.params == {f"p{i}": "x" for i in range(250)} | {"long": "y" * 6000}
    assert run.data.tags["arch"] == "lenet5"
    assert len(run.data.tags["long"]) == 8000
    assert (run.data.tags["lit_cnn.key"], run.data.tags["mlflow.user"]) == (journal.header.key, "ada")
    biggest = sys.float_info.max  # MLflow's stand-in for infinity
    assert [row[:4] for row in stored_metrics(store.database, journal.header.key)] == [
        ("acc", 7, 0.1 + 0.2, False),
        ("down", 7, -biggest, False),
        ("loss", 7, 0.0, True),
        ("up", 7, biggest, False),
    ]
    assert run.inputs is not None
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, given.tags[0].value) == ("digits", "d" * 36, "train")
    assert Progress.read(journal.folder).is_complete(journal.folder)


def test_a_repeated_delivery_changes_nothing(store: Store, new_journal: NewJournal, tmp_path: Path) -> None:
    journal = new_journal()
    journal.append({"kind": "params", "values": {"lr": "0.1"}})
    for step in range(700):
        journal.log_metrics({"a": step / 7, "b": math.nan, "c": math.inf}, step)
    (tmp_path / "table.csv").write_text("1,2")
    log_file(journal, tmp_path / "table.csv", "")
    end(journal)
    Courier(store).deliver(journal.folder)
    before = stored_metrics(store.database, journal.header.key)
    assert len(before) == 2100
    for lost in ("sent.json", "run.json"):  # cut off before it was noted
        (journal.folder / lost).unlink()
        Courier(store).deliver(journal.folder)
        assert stored_metrics(store.database, journal.header.key) == before
    client = MlflowClient(store.tracking_uri)
    assert len(client.search_runs(["1"])) == 1
    assert artifact(store, journal, "table.csv").read_text() == "1,2"


def test_a_delivery_goes_on_after_each_possible_cut(store: Store, new_journal: NewJournal) -> None:
    journal = new_journal()
    courier = Courier(store)
    for step in range(5):
        journal.log_metrics({"a": step}, step)
        courier.deliver(journal.folder)
        assert len(stored_metrics(store.database, journal.header.key)) == step + 1
    assert run_of(store, journal).info.status == "RUNNING"
    assert not Progress.read(journal.folder).is_complete(journal.folder)


def test_a_time_limit_leaves_the_rest_for_later(store: Store, new_journal: NewJournal) -> None:
    journal = new_journal()
    for step in range(2000):
        journal.log_metrics({"a": step}, step)
    end(journal)
    courier = Courier(store)
    calls = 0
    while not Progress.read(journal.folder).is_complete(journal.folder):
        courier.deliver(journal.folder, time_limit=0)
        calls += 1
    assert calls > 3
    assert len(stored_metrics(store.database, journal.header.key)) == 2000


def test_one_call_may_hold_more_metrics_than_a_batch(store: Store, new_journal: NewJournal) -> None:
    journal = new_journal()
    journal.log_metrics({"small": 1.0}, 0)
    journal.log_metrics({f"class/{i}": i for i in range(1700)}, 1)
    Courier(store).deliver(journal.folder)
    assert len(stored_metrics(store.database, journal.header.key)) == 1701


def test_a_killed_run_is_killed_and_a_resumed_one_goes_on(store: Store, new_journal: NewJournal) -> None:
    journal = new_journal()
    journal.append({"kind": "params", "values": {"lr": "0.1", "epochs": "3"}})
    journal.log_metrics({"a": 1.0}, 1)
    journal.close()  # as the kernel does when the process dies
    courier = Courier(store)
    courier.deliver(journal.folder)
    run = run_of(store, journal)
    assert run.info.status == "KILLED"
    assert run.info.start_time <= run.info.end_time <= run.info.start_time + 60_000
    assert Progress.read(journal.folder).is_complete(journal.folder)

    again = Journal.reopen(journal.folder)
    again.append({"kind": "params", "values": {"lr": "0.2", "epochs": "3", "new": "1"}})
    again.log_metrics({"a": 1.0}, 1)
    again.log_metrics({"a": 2.0}, 2)
    courier.deliver(journal.folder)
    assert run_of(store, journal).info.status == "RUNNING"
    end(again)
    courier.deliver(journal.folder)
    run = run_of(store, journal)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "epochs": "3", "new": "1"}
    assert run.data.tags["lit_cnn.param_changed.lr"] == "0.2"
    assert "lit_cnn.param_changed.epochs" not in run.data.tags
    assert [row[:3] for row in stored_metrics(store.database, journal.header.key)] == [("a", 1, 1.0), ("a", 2, 2.0)]


def test_a_torn_end_does_not_keep_a_dead_run_unfinished(store: Store, new_journal: NewJournal) -> None:
    journal = new_journal()
    journal.log_metrics({"a": 1.0}, 1)
    journal.close()
    with (journal.folder / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind": "metr')
    Courier(store).deliver(journal.folder)
    assert run_of(store, journal).info.status == "KILLED"
    assert Progress.read(journal.folder).is_complete(journal.folder)


@pytest.mark.parametrize("parent_first", [True, False])
def test_a_child_finds_its_parent(store: Store, new_journal: NewJournal, parent_first: bool) -> None:
    parent = new_journal(run_name="seeds")
    child = new_journal(run_name="seed0", parent_key=parent.header.key)
    courier = Courier(store)
    for journal in (parent, child) if parent_first else (child, parent):
        courier.deliver(journal.folder)
    tags = run_of(store, child).data.tags
    assert tags["mlflow.parentRunId"] == run_of(store, parent).info.run_id
    assert (tags["mlflow.runType"], tags["label"]) == ("evaluation", "seed0")  # see tracking/ui.py
    assert "mlflow.runType" not in run_of(store, parent).data.tags
    assert len(MlflowClient(store.tracking_uri).search_runs(["1"])) == 2


def test_a_checkpoint_takes_its_space_once(store: Store, new_journal: NewJournal) -> None:
    journal = new_journal()
    checkpoint = journal.folder / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    for _ in range(2):  # the same file again: a link to what is there already
        record = log_file(journal, checkpoint, "checkpoints")
        Courier(store).deliver(journal.folder)
    stored = artifact(store, journal, "checkpoints/best.ckpt")
    assert stored.samefile(checkpoint)
    assert checkpoint.stat().st_nlink == 2
    assert not outbox.path_of(journal.folder, record["target"], record["sha256"]).exists()
    assert [path.name for path in stored.parent.iterdir()] == ["best.ckpt"]


def test_a_file_may_change_once_it_is_logged(store: Store, new_journal: NewJournal, tmp_path: Path) -> None:
    journal = new_journal()
    courier = Courier(store)
    file = tmp_path / "table.csv"
    for text in ("one", "two", "one"):
        file.write_text(text)
        log_file(journal, file, "evaluation")
        file.write_text("spoilt")
        courier.deliver(journal.folder)
        assert artifact(store, journal, "evaluation/table.csv").read_text() == text


def test_a_file_that_was_written_to_in_place_is_not_passed_off(store: Store, new_journal: NewJournal) -> None:
    journal = new_journal()
    checkpoint = journal.folder / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    log_file(journal, checkpoint, "checkpoints")
    checkpoint.write_bytes(b"other weights")
    Courier(store).deliver(journal.folder)
    assert not artifact(store, journal, "checkpoints/best.ckpt").exists()
    tags = run_of(store, journal).data.tags
    assert tags["lit_cnn.not_stored.checkpoints/best.ckpt"] == "the file was written to after it was logged"


def test_a_deleted_experiment_is_named_and_nothing_is_lost(store: Store, new_journal: NewJournal) -> None:
    client = MlflowClient(store.tracking_uri)
    client.delete_experiment(client.create_experiment("digits"))
    journal = new_journal("digits")
    journal.log_metrics({"a": 1.0}, 1)
    with pytest.raises(ValueError, match="experiments restore --experiment-id 1"):
        Courier(store).deliver(journal.folder)
    progress = Progress.read(journal.folder)
    assert progress.offset == 0
    assert "restore" in str(progress.error)
    client.restore_experiment("1")
    Courier(store).deliver(journal.folder)
    assert len(stored_metrics(store.database, journal.header.key)) == 1
    assert Progress.read(journal.folder).error is None


@pytest.mark.parametrize("name", ["digits", "a b/ü", "../x", ".hidden", "x" * 300])
def test_an_experiments_files_stay_in_the_store(store: Store, new_journal: NewJournal, name: str) -> None:
    journal = new_journal(name)
    journal.append(outbox.put_text(journal.folder, "hello", "notes/a.txt"))
    Courier(store).deliver(journal.folder)
    stored = artifact(store, journal, "notes/a.txt")
    assert stored.read_text() == "hello"
    assert store.artifact_location is not None
    assert stored.resolve().is_relative_to(store.artifact_location)
