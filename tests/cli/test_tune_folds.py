"""`lit-cnn tune --folds`: each trial is a fold set, with the values of `lit-cnn fit --folds`, whatever is killed."""

import json
from pathlib import Path
from typing import Any

import pytest

from lit_cnn.cli import main
from lit_cnn.training.parents import summarize
from tests.cli.test_tune import SHORT, started, workers_of
from tests.faults import wait_until
from tests.runs import tracked_runs

pytestmark = pytest.mark.usefixtures("empty_store")

OPTIONS = ("--folds=2", "--trials=3", "--sampler=random", "--final_seeds=1", "--format=json", "--data.batch_size=64")
OF_ROW = ("trial", "seed", "state", "model.lr", "value", "test_acc", "folds", "is_best")


@pytest.fixture(autouse=True)
def space() -> None:
    Path("s.yaml").write_text("model.lr: {low: 1e-3, high: 0.1, log: true}", encoding="utf-8")


def document_in(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "trials.json").read_text("utf-8"))
    return found


@pytest.mark.slow
def test_a_killed_search_has_the_folds_and_values_of_a_whole_one_and_of_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *SHORT, *OPTIONS, "--experiment=whole", "--output=whole"]) == 0
    said = capsys.readouterr().err
    assert "3 trials of 2 folds of up to 2 epochs, drawn by chance, pruned by asha" in said
    assert "trial 1: fold 1 of 2, oof/acc " in said and "trained anew on 2 folds with seeds 1, and tested" in said

    log, again = tmp_path / "log", (*OPTIONS, "--experiment=killed", "--output=killed", "--resume=auto")
    for words in ("trial 1: fold 1 of 2", "and tested\ntrial", ""):
        command = started(log, *again)
        if not words:
            break
        wait_until(lambda words=words: words in log.read_text("utf-8"), timeout=60)  # type: ignore[misc]
        workers = workers_of(command.pid)
        command.kill()
        for worker in workers if "tested" in words else ():
            worker.kill()
        command.wait()
    assert command.wait() == 0, log.read_text("utf-8")
    whole, found = document_in("whole"), document_in("killed")
    rows = [[row[name] for name in OF_ROW] for row in found["trials"]]
    assert rows == [[row[name] for name in OF_ROW] for row in whole["trials"]]

    runs = {run.run_id: run for run in tracked_runs(tmp_path)}
    children = [run for run in runs.values() if run.tags.get("mlflow.parentRunId") == found["run"]]
    named = [name for row in found["trials"] for name in row["run"].split()]
    assert sorted(named) == sorted(run.run_id for run in children)
    assert {run.status for run in runs.values()} == {"FINISHED"}
    for row in found["trials"]:
        folds = [runs[name] for name in row["run"].split()]
        is_final = row["state"] == "final"
        assert [run.tags["fold"] for run in folds] == [*"01"][: row["folds"] or 2]
        assert {run.tags["trial"] for run in folds} == {"fold" if is_final else "search"}
        assert {run.tags.get("trial_number") for run in folds} == {None if is_final else str(row["trial"])}
        assert all([step for step, _ in run.history["val/acc"]] == [1, 3] for run in folds)
        assert [run.tags.get("pruned") for run in folds if "pruned" in run.tags] == (
            ["after fold 1 of 2"] if row["state"] == "pruned" else []
        )
        tested = summarize([run.metrics for run in folds]).get("test/acc")
        assert row["test_acc"] == (pytest.approx(tested) if is_final else None)
    assert "pruned" in {row["state"] for row in found["trials"]}

    # What a fold set trained by hand comes to.
    assert main(["fit", "--folds=2", "--config=killed/best.yaml", "--seed_everything=1"]) == 0
    (by_hand,) = [run.metrics for run in tracked_runs(tmp_path, "folds")]
    (final,) = [row for row in found["trials"] if row["state"] == "final"]
    assert (final["value"], final["test_acc"]) == (by_hand["oof/acc"], by_hand["test/acc"])
    optimism = found["trials"][[row["is_best"] for row in found["trials"]].index(True)]["value"]
    assert f"Among 3 trials it had oof/acc {100 * optimism:.2f} %; with new seeds it has" in found["answer"]
    assert "--folds 2 --config killed/best.yaml" in Path("killed/best.yaml").read_text("utf-8")


def test_another_metric_is_the_mean_over_the_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.yaml").write_text("model.lr: [0.001, 0.01]", encoding="utf-8")
    loss = ("--monitor=val/loss", "--monitor_mode=min", "--folds=2", "--final_seeds=0", "--pruner=none")
    assert main(["tune", *SHORT, *loss, "--trainer.max_epochs=1", "--format=json"]) == 0
    printed = capsys.readouterr().out
    runs = {run.run_id: run for run in tracked_runs(tmp_path)}
    for row in json.loads(printed[printed.index("{") :])["trials"]:
        own = [runs[name].metrics["best/val/loss"] for name in row["run"].split()]
        assert len(own) == 2 and row["value"] == pytest.approx(sum(own) / 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--folds=1"], "argument --folds: 1: give a whole number of at least 2"),
        (["--folds=many"], "argument --folds: many: give a whole number"),
        (["--folds=200"], "--folds 200: class 0 has 142 images beside the test images: too few"),
        (["--folds=3", "--data.fold=2"], "--data.fold 2: is chosen by --folds"),
        (["--folds=3", "--trainer.limit_val_batches=1"], "--trainer.limit_val_batches 1: the folds are to predict"),
        (["--folds=3", "--data.split_seed=seed"], "--data.split_seed seed: each seed would have another test"),
    ],
)
def test_what_cannot_be_folds_is_one_line_before_anything_starts(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *SHORT, *words]) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("mlruns/journal/*"))
