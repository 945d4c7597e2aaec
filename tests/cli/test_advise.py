"""`lit-cnn advise` on real trainings: what is printed is what the runs have."""

import json
from pathlib import Path

import pytest
import torch

from lit_cnn.cli import main
from lit_cnn.models import create_model
from tests import forks
from tests.cli.test_tune import workers_of
from tests.faults import wait_until
from tests.runs import image_folder, tracked_runs

CLASSES = ("dark", "medium", "bright")
pytestmark = pytest.mark.usefixtures("empty_store")


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Those of short runs of a small network on 90 images."""
    root = image_folder(tmp_path / "images", CLASSES, per_class=40)
    torch.manual_seed(0)
    torch.save(create_model("timm/test_resnet", num_classes=5, in_channels=3, image_size=32).state_dict(), "w.pth")
    return [
        "--data.dataset=image_folder",
        f"--data.root={root}",
        "--data.image_size=32",
        "--data.num_workers=0",
        "--data.batch_size=8",
        "--model.arch=timm/test_resnet",
        "--model.weights=w.pth",
        "--trainer.max_epochs=2",
    ]


def advise(*arguments: str) -> int:
    return main(["advise", *arguments])


def test_every_trial_is_a_run_and_the_advice_one_that_names_them(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--regimes", "scratch", "head_only", "--sizes", "30", "60", "--format", "json"]
    assert advise(*options, *chosen, "--output", "a") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out[printed.out.index("{") :])
    assert "starting guess for" in printed.err and ": head_only" in printed.err
    # The guess first, small before large.
    assert [(row["regime"], row["images"]) for row in found["trials"]] == [
        ("head_only", 30),
        ("scratch", 30),
        ("head_only", 60),
        ("scratch", 60),
    ]
    runs = {run.run_id: run for run in tracked_runs(tmp_path, "fit")}
    for row in found["trials"]:
        run = runs[row["run"]]
        assert run.tags["transfer"] == row["regime"] and run.params["data.limit_train"] == str(row["images"])
        assert run.metrics["best/val/acc"] == pytest.approx(row["val_acc"], abs=1e-6)
        assert "test/acc" not in run.metrics
        assert (run.params.get("model.weights") == "w.pth") == (row["regime"] == "head_only")
        # The regime's own recipe, and the user's words over it.
        assert run.params["model.lr"] == ("0.003" if row["regime"] == "head_only" else "0.001")
        assert run.params["trainer.max_epochs"] == "2"
    (advice,) = tracked_runs(tmp_path, "advice")
    # What a resume would go on from: each trial, with the time that it took.
    (kept,) = [json.loads(file.read_text("utf-8")) for file in tmp_path.glob("mlruns/journal/*/results.json")]
    assert [each["id"] for each in kept.values()] == [row["run"] for row in found["trials"]]
    assert all(each["seconds"] > 0 for each in kept.values())
    assert {run.tags["mlflow.parentRunId"] for run in runs.values()} == {advice.run_id}
    # A trial is no result: only who asks for trials gets them.
    assert {run.tags["trial"] for run in runs.values()} == {"advice"}
    assert main(["compare", "--experiment", "images", "--split", "val"]) == 2
    assert "has no finished runs but trials; name them in --runs, or give --filter" in capsys.readouterr().err
    assert main(["compare", "--experiment", "images", "--split", "val", "--filter", "tags.trial = 'advice'"]) == 0
    assert advice.tags["members"].split() == [row["run"] for row in found["trials"]]
    assert advice.tags["mlflow.note.content"] == found["answer"] and "with 60 training images" in found["answer"]
    names = {"trials.csv", "trials.json", "advice.png", "report.html"}
    assert {file.name for file in (advice.artifacts / "advice").iterdir()} == names
    assert {file.name for file in Path("a").iterdir()} == names


def test_no_trial_begins_that_would_end_after_the_budget(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The first of each kind is tried, however long it takes; what then is spent is spent.
    assert advise(*options, "--regimes", "scratch", "--sizes", "30", "60", "--budget", "0.001") == 0
    printed = capsys.readouterr()
    assert "60 images: left out, --budget 0.1 s is spent" in printed.err
    assert "with 30 training images. There is nothing here to compare it with." in " ".join(printed.out.split())
    assert "Report: advice/report.html" in printed.out and Path("advice/report.html").is_file()
    assert len(tracked_runs(tmp_path, "fit")) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sizes", "1000"], "--sizes 1000: there are"),
        (["--sizes", "few"], "few: give numbers of training images"),
        (["--output", "a.png"], "a.png: give a folder; the picture is advice.png in it"),
        (["--budget", "0"], "0: give a time such as 90s, 60m or 2h"),
        (["--regimes", "gradual"], "argument --regimes: invalid choice"),
        (["--model.weights=null"], "--model.weights: the regimes but scratch need weights"),
        (["--model.lrr", "1"], "--model.lrr"),
        (["--track=false"], "--track false: every trial is a tracked run"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(
    words: list[str], expected: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert advise(*options, *words) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert tracked_runs(tmp_path) == []


@pytest.mark.slow
def test_trials_are_trained_at_once_and_none_twice_after_a_kill(options: list[str], tmp_path: Path) -> None:
    log, words = tmp_path / "log", ["--regimes", "scratch", "head_only", "--sizes", "30", "60", "--parallel=2"]

    def started() -> forks.Forked:
        with log.open("a") as file:
            return forks.start("advise", *options, *words, "--resume=auto", cwd=Path.cwd(), log=file.fileno())

    def num_kept() -> int:
        kept = [json.loads(file.read_text("utf-8")) for file in tmp_path.glob("mlruns/journal/*/results.json")]
        return len(kept[0]) if kept else 0

    command = started()
    wait_until(lambda: num_kept() > 0, timeout=90)
    for process in [*workers_of(command.pid)[:1], command]:
        process.kill()
    command.wait()
    assert started().wait() == 0, log.read_text("utf-8")
    found = json.loads(Path("advice/trials.json").read_text("utf-8"))
    (advice,) = tracked_runs(tmp_path, "advice")
    runs = tracked_runs(tmp_path, "fit")
    assert advice.status == "FINISHED" and {run.status for run in runs} == {"FINISHED"}
    assert sorted(run.run_id for run in runs) == sorted(row["run"] for row in found["trials"]) and len(runs) == 4
    assert {run.tags["mlflow.parentRunId"] for run in runs} == {advice.run_id}
    for run in runs:
        assert len(run.history["val/acc"]) == 2  # no epoch twice


def test_trials_that_all_fail_end_in_one_line(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        advise(*options, "--regimes", "scratch", "--sizes", "30", "60", "--model.lr=1e30", "--model.optimizer=sgd") == 1
    )
    printed = capsys.readouterr()
    assert "failed: --model.lr 1e+30: the loss is" in printed.err
    assert "no trial came to its end" in printed.err.splitlines()[-1]
