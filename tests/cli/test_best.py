"""`lit-cnn best` on real trainings: what it says is what its model does on images that chose nothing."""

import json
import signal
import time
from pathlib import Path

import pytest

import lit_cnn
from lit_cnn.cli import main
from lit_cnn.evaluation.predictor import PredictionList
from tests import forks
from tests.runs import image_folder, tracked_runs

CLASSES = ("dark", "medium", "bright")
pytestmark = pytest.mark.usefixtures("empty_store")
SMALL = ("--archs", "lenet5", "timm/test_resnet", "--regimes", "scratch", "--data.num_workers=0", "--format=json")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images", CLASSES, per_class=30)


@pytest.mark.slow
def test_the_best_is_tested_once_and_exported_as_it_was_tested(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["best", str(images), *SMALL, "--budget", "60s"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert "tries lenet5 and timm/test_resnet, scratch: 2 configurations" in printed.err
    assert "training lenet5" not in printed.err and "training lenet5" in Path("best/trainings.log").read_text("utf-8")
    assert found["answer"].startswith("Take ") and "the test images chose nothing" in found["answer"]
    (taken,) = [way for way in found["ways"] if way["is_taken"]]
    # The cheapest of those that are not measurably worse: none that costs less is more accurate.
    cheaper = [way for way in found["ways"] if way["multiply_adds"] < taken["multiply_adds"]]
    assert all(way["val_acc"] <= taken["val_acc"] for way in cheaper)
    # The exported model is right on as many test images as is said.
    data = lit_cnn.ImageDataModule("image_folder", root=images)
    model = lit_cnn.load(found["export"])
    test = data.splits.test
    predicted = model.predict([images / data.image_set.paths[index] for index in test])
    assert isinstance(predicted, PredictionList)
    said = [each.label for each in predicted]
    right = [data.class_names[data.image_set.labels[index]] for index in test]
    assert found["num_test"] == len(test)
    assert round(found["test_acc"] * len(test)) == sum(map(str.__eq__, said, right))
    # Nothing was tested that was only tried.
    trials = [run for run in tracked_runs(tmp_path, "fit") if run.tags.get("trial") == "best"]
    assert trials and not any("test/acc" in run.metrics for run in tracked_runs(tmp_path, "fit"))
    (parent,) = tracked_runs(tmp_path, "best")
    assert parent.status == "FINISHED" and {run.tags["mlflow.parentRunId"] for run in trials} == {parent.run_id}
    by_id = {run.run_id: run for run in tracked_runs(tmp_path)}
    for row in found["trainings"]:
        run = by_id[row["run"]]
        metric = "oof/acc" if run.tags["kind"] == "folds" else "best/val/acc"
        assert run.metrics[metric] == pytest.approx(row["val_acc"], abs=1e-6)
    assert not Path("best/plan.json").exists()
    page = Path("best/report.html").read_text("utf-8")
    assert found["answer"][:40] in page and "<svg" in page


@pytest.mark.slow
def test_who_stops_it_gets_the_best_so_far_and_can_go_on(images: Path, tmp_path: Path) -> None:
    command = ("best", images, *SMALL, "--budget", "100s")
    with open(tmp_path / "out.json", "w+") as out, open(tmp_path / "err.txt", "w+") as err:
        process = forks.start(*command, cwd=tmp_path, log=out.fileno(), errors=err.fileno())
        until = time.monotonic() + 120
        while "val images; " not in (tmp_path / "err.txt").read_text("utf-8"):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert found["was_stopped"] and "this is the best so far" in found["answer"]
    assert Path(found["export"]).is_dir() and Path("best/plan.json").is_file()
    assert main([*map(str, command[:-1]), "120s", "--resume=auto"]) == 0  # for longer
    again = json.loads(Path("best/best.json").read_text("utf-8"))
    before, now = ([row["run"] for row in each["trainings"]] for each in (found, again))
    assert now[: len(before)] == before and len(now) > len(before)
    assert again["seconds"] > found["seconds"]
    (parent,) = tracked_runs(tmp_path, "best")
    assert parent.status == "FINISHED"


def test_a_plan_of_another_search_is_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("best").mkdir()
    for kept, reason in (
        ({"key": "another", "spent": 9.0, "extents": {}, "done": {}}, "is of a search with other options or images"),
        ({"spent": 9.0}, "holds no plan (KeyError"),
    ):
        Path("best/plan.json").write_text(json.dumps(kept))
        assert main(["best", str(images), *SMALL, "--resume=auto"]) == 2
        assert f"--resume auto: best/plan.json {reason}" in capsys.readouterr().err
    assert tracked_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--budget", "soon"], "argument --budget: soon: give a time such as 90s, 60m or 2h"),
        (["--budget", "0m"], "argument --budget: 0m: give a time such as 90s, 60m or 2h"),
        (["--trainer.max_epochs=3"], "--trainer.max_epochs 3: is what is searched for; give --budget"),
        (["--model.arch=lenet5"], "--model.arch lenet5: is what is searched for; give --archs"),
        (["--track=false"], "--track false: every trial is a tracked run; leave it out"),
        (["--archs", "lenet55"], "--archs lenet55"),
        (["--output", "README"], "--output README: cannot be written (File exists); give another folder"),
    ],
)
def test_mistakes_are_one_line(
    images: Path, options: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("README").write_text("a file")
    assert main(["best", str(images), *options]) == 2
    (said,) = capsys.readouterr().err.splitlines()[-1:]
    assert said.startswith("lit-cnn: error: ") and line in said
    assert not Path("best/plan.json").exists() and tracked_runs(tmp_path) == []
