"""Finding runs and their files, and what the user is told when they are not there."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lit_cnn.core.errors import UsageError
from lit_cnn.tracking import outbox, resolve_store
from lit_cnn.tracking.delivery import Courier
from lit_cnn.tracking.journal import Journal
from lit_cnn.tracking.queries import (
    BEST_CHECKPOINT,
    artifact_names,
    artifact_sha256,
    download_artifact,
    experiment_id,
    find_runs,
    repair_moved_store,
    search_runs,
    upload_artifact,
)
from lit_cnn.tracking.run import Run
from lit_cnn.tracking.runs import runs as runs_of
from lit_cnn.tracking.store import Store

NewJournal = Callable[..., Journal]


@pytest.fixture
def runs(store: Store, new_journal: NewJournal) -> list[Journal]:
    """Two finished runs; the first has a checkpoint."""
    journals = []
    for number in range(2):
        journal = new_journal("digits", f"run{number}")
        journal.append({"kind": "tags", "values": {"arch": "lenet5"}})
        journal.log_metrics({"val/acc": 0.5 + number / 4}, 0)
        journals.append(journal)
    (journals[0].folder / "best.ckpt").write_bytes(b"weights")
    journals[0].append(outbox.put_file(journals[0].folder, journals[0].folder / "best.ckpt", "checkpoints"))
    for journal in journals:
        journal.append({"kind": "end", "status": "FINISHED", "time": 1})
        Courier(store).deliver(journal.folder)
    return journals


def test_runs_are_found_by_either_id_and_by_its_beginning(store: Store, runs: list[Journal]) -> None:
    keys = [journal.header.key for journal in runs]
    found = find_runs(store, keys[::-1])
    assert [run.name for run in found] == ["run1", "run0"]
    assert find_runs(store, [found[0].run_id, keys[0][:8], found[0].run_id[:8]]) == [found[0], found[1], found[0]]
    assert find_runs(store, [Run(found[1].run_id, "run0", {})]) == [found[1]]
    assert found[0].metrics == {"val/acc": 0.75}
    assert (found[0].experiment_name, found[0].status) == ("digits", "FINISHED")


def test_runs_are_a_data_frame(store: Store, runs: list[Journal], new_journal: NewJournal) -> None:
    other = new_journal("other", "later")
    other.append(
        {"kind": "tags", "values": {"arch": "resnet20", "kind": "fit", "seed": "3", "label": "resnet20 · seed 3"}}
    )
    other.log_metrics({"best/val/acc": 0.9}, 0)
    Courier(store).deliver(other.folder)
    frame = runs_of(tracking_uri=store.tracking_uri)
    assert frame["name"].tolist()[0] == "later" and sorted(frame["name"]) == ["later", "run0", "run1"]
    assert frame["start_time"].is_monotonic_decreasing and str(frame["start_time"].dt.tz) == "UTC"
    row = frame.iloc[0]
    assert (row["kind"], row["arch"], row["seed"], row["best/val/acc"]) == ("fit", "resnet20", "3", 0.9)
    assert frame.columns.tolist()[:3] == ["label", "best/val/acc", "test/acc"]
    assert sorted(frame["label"]) == ["resnet20 · seed 3", "run0", "run1"]  # a name where there is no label
    assert row["experiment"] == "other" and frame["test/acc"].isna().all()
    assert row["id"] == find_runs(store, [other.header.key])[0].run_id
    found = runs_of("digits", "metrics.`val/acc` < 0.6", store.tracking_uri)
    assert found["name"].tolist() == ["run0"] and found.columns.tolist() == frame.columns.tolist()
    none = runs_of("digits", "metrics.`val/acc` > 0.9", store.tracking_uri)
    assert len(none) == 0 and none.columns.tolist() == frame.columns.tolist()
    with pytest.raises(UsageError, match=r"nosuch: not in .*digits, other"):
        runs_of("nosuch", tracking_uri=store.tracking_uri)
    with pytest.raises(UsageError, match="MLflow does not understand it"):
        runs_of("digits", "seed is 7", store.tracking_uri)


@pytest.mark.parametrize("run_id", ["0123456789ab", "zzzzzzzz", "abc", "' or 1=1", ""])
def test_a_run_that_is_not_there_is_named(store: Store, runs: list[Journal], run_id: str) -> None:
    with pytest.raises(UsageError) as refused:
        find_runs(store, [runs[0].header.key, run_id])
    assert run_id in str(refused.value)
    assert "\n" not in str(refused.value)


def test_search_filters_and_sorts(store: Store, runs: list[Journal]) -> None:
    found = search_runs(store, "digits", "tags.arch = 'lenet5'", "metrics.`val/acc` DESC")
    assert [run.name for run in found] == ["run1", "run0"]
    assert [run.name for run in search_runs(store, "digits", "metrics.`val/acc` < 0.6")] == ["run0"]


def test_a_search_without_a_result_says_why(store: Store, runs: list[Journal]) -> None:
    with pytest.raises(UsageError, match=r"nosuch: .*there are: Default, digits"):
        search_runs(store, "nosuch")
    with pytest.raises(UsageError, match=r"val/acc >> 3.*does not understand"):
        search_runs(store, "digits", "metrics.val/acc >> 3")
    with pytest.raises(UsageError, match=r"arch = 'vgg'.*matches no run"):
        search_runs(store, "digits", "tags.arch = 'vgg'")
    assert experiment_id(store, "digits") == "1"


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    missing = resolve_store(f"sqlite:///{tmp_path}/no/mlflow.db")
    with pytest.raises(UsageError, match="no runs there yet"):
        search_runs(missing, "digits")
    assert not (tmp_path / "no").exists()
    with pytest.raises(UsageError, match=r"127.0.0.1:9: does not answer .*refused"):
        find_runs(resolve_store("http://127.0.0.1:9"), ["0123456789"])


def test_a_checkpoint_is_used_where_it_lies(store: Store, runs: list[Journal]) -> None:
    first, second = find_runs(store, [journal.header.key for journal in runs])
    assert download_artifact(store, first, BEST_CHECKPOINT).samefile(runs[0].folder / "best.ckpt")
    with pytest.raises(UsageError, match=rf"run {second.run_id}: run1 has no file checkpoints/best.ckpt"):
        download_artifact(store, second, BEST_CHECKPOINT)


def test_a_file_is_put_among_a_runs_and_named(store: Store, runs: list[Journal], tmp_path: Path) -> None:
    first, second = find_runs(store, [journal.header.key for journal in runs])
    assert artifact_names(store, first, "logits") == set()
    for content in (b"1", b"2", b"2"):
        (tmp_path / "a").unlink(missing_ok=True)
        (tmp_path / "a").write_bytes(content)
        upload_artifact(store, first, tmp_path / "a", "logits")
    upload_artifact(store, first, tmp_path / "a", "logits")  # is there already, as the same file
    assert download_artifact(store, first, "logits/a").read_bytes() == b"2"
    assert artifact_names(store, first, "logits") == {"a"}
    with pytest.raises(UsageError, match=r"takes no a: .*No such file"):
        upload_artifact(store, second, tmp_path / "a", "logits")  # never had a file, so it has no folder
    away = replace(first, artifact_uri="mlflow-artifacts:/1/x/artifacts")
    nobody = resolve_store("http://127.0.0.1:9")
    for call in (lambda: upload_artifact(nobody, away, tmp_path / "a", ""), lambda: artifact_names(nobody, away, "")):
        with pytest.raises(UsageError, match=r"127.0.0.1:9: does not answer"):
            call()


def test_a_checkpoints_digest_is_its_own_or_what_the_run_says(store: Store, runs: list[Journal]) -> None:
    (run,) = find_runs(store, [runs[0].header.key])
    digest = hashlib.sha256(b"weights").hexdigest()
    assert artifact_sha256(run, BEST_CHECKPOINT) == digest
    elsewhere = replace(run, artifact_uri="mlflow-artifacts:/1/x/artifacts")
    assert artifact_sha256(elsewhere, BEST_CHECKPOINT) is None
    tagged = replace(elsewhere, tags={f"lit_cnn.sha256.{BEST_CHECKPOINT}": "ab"})
    assert artifact_sha256(tagged, BEST_CHECKPOINT) == "ab"


@pytest.mark.parametrize("leave_original", [False, True])
def test_a_moved_or_copied_store_finds_its_files(
    store: Store, runs: list[Journal], tmp_path: Path, leave_original: bool
) -> None:
    old, new = tmp_path / "mlruns", tmp_path / "renamed project" / "mlruns"
    shutil.copytree(old, new)
    if not leave_original:
        shutil.rmtree(old)
    moved = resolve_store(f"sqlite:///{new}/mlflow.db")
    (run,) = find_runs(moved, [runs[0].header.key])
    assert download_artifact(moved, run, BEST_CHECKPOINT) == Path(run.artifact_uri) / "checkpoints" / "best.ckpt"
    assert Path(run.artifact_uri).is_relative_to(new)
    assert repair_moved_store(moved) == {}


def test_a_run_goes_on_in_a_moved_store(store: Store, new_journal: NewJournal, tmp_path: Path) -> None:
    journal = new_journal("digits")
    journal.append(outbox.put_text(journal.folder, "first", "a.txt"))
    journal.close()
    Courier(store).deliver(journal.folder)
    (tmp_path / "mlruns").rename(tmp_path / "moved")
    moved = resolve_store(f"sqlite:///{tmp_path}/moved/mlflow.db")
    again = Journal.reopen(moved.journal_dir / journal.header.key)
    again.append(outbox.put_text(again.folder, "second", "b.txt"))
    Courier(moved).deliver(again.folder)
    again.close()
    (run,) = find_runs(moved, [journal.header.key])
    assert download_artifact(moved, run, "a.txt").read_text() == "first"
    assert download_artifact(moved, run, "b.txt").read_text() == "second"
    assert not (tmp_path / "mlruns").exists()


def test_files_kept_elsewhere_on_purpose_stay_there(store: Store, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store.tracking_uri)
    elsewhere = tmp_path / "elsewhere" / "artifacts"
    (elsewhere / "x").mkdir(parents=True)
    client.create_experiment("x", artifact_location=str(elsewhere / "x"))
    client.create_experiment("bucket", artifact_location="s3://bucket/artifacts/x")
    assert repair_moved_store(store) == {}
