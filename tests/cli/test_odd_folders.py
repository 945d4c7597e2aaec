"""Folders as people have them: each is read right, or refused in one line, by check-data, fit and predict."""

import csv
import json
from pathlib import Path

import pytest

from lit_cnn.cli import main
from lit_cnn.data.sources import load_image_set
from tests.odd_folders import CASES, Case
from tests.runs import SHORT, three_seeds, tracked_runs

ONE_STEP = ("--trainer.max_steps=1", "--test_after_fit=false", "--data.batch_size=4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, *_ = tracked_runs(three_seeds(tmp_path_factory.getbasetemp()), "fit")
    return run.artifacts / "checkpoints" / "best.ckpt"


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_read_right_or_refused_in_one_line(
    name: str, checkpoint: Path, empty_store: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, root = CASES[name], tmp_path / "root"
    root.mkdir()
    case.make(root)
    options = [*SHORT, "--data.dataset=image_folder", f"--data.root={root}", "--data.limit_train=null"]
    options += ["--data.in_channels=1", *case.options]
    check_is_read(case, root, options, capsys) if case.classes else check_is_refused(case, options, capsys)
    code = main(["predict", f"--ckpt_path={checkpoint}", "--num_workers=0", str(root)])
    told = capsys.readouterr().err
    if not case.predicted:
        assert code == 2 and "holds no images" in told.splitlines()[-1]
        return
    assert code == 0
    assert ("unread_file" in told) == any("unread_file" in text or "HEIC" in text for text in case.said)
    with open("predictions.csv", newline="") as table:
        assert len(list(csv.DictReader(table))) == case.predicted


def check_is_read(case: Case, root: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", *options, "--format=json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {each["kind"] for each in findings}.issuperset(case.noted)
    assert "error" not in {each["severity"] for each in findings}
    assert main(["fit", *options, *ONE_STEP]) == 0
    told = capsys.readouterr().err
    assert all(text in told for text in case.said), told
    # Besides what is said of small sets, and of a run of a single step.
    others = ("few_test_images", "the run ended before its first validation")
    warnings = [line for line in told.splitlines() if "warning" in line and not any(word in line for word in others)]
    assert len(warnings) == len(case.said[:1]), f"one warning, or none: {told}"
    of_data = dict(option.removeprefix("--data.").split("=", 1) for option in options if "--data." in option)
    names = of_data["class_names"].strip("[]").split(", ") if "class_names" in of_data else None
    found = load_image_set(of_data["dataset"], root, class_names=names)
    assert found.class_names == case.classes
    sizes = {split: len(members) for split, members in found.splits.items()} or {"all": len(found.labels)}
    assert sizes == dict(case.splits)


def check_is_refused(case: Case, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["check-data", *options], ["fit", *options, *ONE_STEP]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("lit-cnn: error: --data.root") and all(text in line for text in case.said), line
    assert not Path("mlruns/1").exists(), "no run was opened"
