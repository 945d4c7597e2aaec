"""`lit-cnn report`: what a run came to, shown again, from its stored page or one that is made anew."""

import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_cnn.cli import main
from lit_cnn.evaluation import report as reports
from lit_cnn.evaluation.run_numbers import _csv_rows
from lit_cnn.training.out_of_fold import FOLDER, LOGITS, read_out_of_fold
from tests.runs import fit, fold_sets, inside, three_seeds, tracked_runs


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["report", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def without_pictures(page: Path) -> str:
    return re.sub('base64,[^"]*', "", page.read_text("utf-8"))


def test_of_folds_the_logits_make_the_page_that_training_made(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(fold_sets(tmp_path_factory.getbasetemp()) / "mlruns", tmp_path / "mlruns")
    folder = tmp_path
    for num_folds, label in (("3", "fold 2"), ("2", "split 4, fold 1")):
        (parent,) = [run for run in tracked_runs(folder, "folds") if run.tags["num_folds"] == num_folds]
        artifacts = folder / "mlruns" / "artifacts" / "digits" / parent.run_id / "artifacts"
        stored = artifacts / "report" / "report.html"
        assert stored.is_file() is (num_folds == "3")  # the other one was trained with --report=false
        said = shown(capsys, f"runs:/{parent.run_id[:10]}")
        found = json.loads(shown(capsys, parent.run_id, "--format", "json"))
        with monkeypatch.context() as patch:
            patch.setattr(reports, "_stored", lambda *_: ())
            anew = shown(capsys, parent.run_id, "--output", tmp_path / num_folds)
        line = parent.tags["mlflow.note.content"].split("\n\n")[0].replace("\\", "")
        assert " ".join(said.split()).startswith(line) and f"Report: {stored.relative_to(folder)}" in said
        assert label in said and "report.html (made anew)" in anew
        out_of_fold = read_out_of_fold(artifacts / FOLDER / LOGITS)
        assert out_of_fold is not None
        assert np.trace(found["confusion"]) == out_of_fold.correct.sum() and np.sum(found["confusion"]) == 1438
        assert found["oof_optimism"] == pytest.approx(parent.metrics["oof/optimism"])
        assert len(found["rows"]) == int(parent.metrics["folds"]) and found["rows"][-1]["fold"] == label
        assert without_pictures(tmp_path / num_folds / "report.html") == without_pictures(stored)
        assert (tmp_path / num_folds / "folds.csv").read_text() == (stored.parent / "folds.csv").read_text()


@pytest.mark.usefixtures("empty_store")
@pytest.mark.parametrize("tests", [True, False])
def test_a_run_without_a_page_gets_one_and_keeps_it(
    tests: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--report=false", f"--test_after_fit={tests}") == 0
    (run,) = tracked_runs(tmp_path)
    said = shown(capsys, run.run_id[:8])
    page = run.artifacts / "report" / "report.html"
    assert "(made anew)" in said and f"On the {'test' if tests else 'val'} images." in said
    for part in ("curves.png", "confusion.png", "classes.csv"):
        assert (page.parent / part).is_file()
    split, num, share = ("test", 359, run.metrics["test/acc"]) if tests else ("val", 143, run.metrics["best/val/acc"])
    wrong = re.search(r"(\d+) of (\d+) (\w+) images are classified wrongly", page.read_text("utf-8"))
    assert wrong is not None and wrong[2] == str(num) and wrong[3] == split
    # In fp32, where the run computed in bf16 if the processor can.
    assert int(wrong[1]) == pytest.approx(num * (1 - share), abs=2)
    assert "(made anew)" not in shown(capsys, run.run_id[:8])
    # What the store has not is read from the journal.
    (tmp_path / "mlruns" / "mlflow.db").unlink()
    shutil.copytree(page.parent, tmp_path / "mlruns" / "journal" / (key := run.tags["lit_cnn.key"]) / "report")
    assert f"Report: mlruns/journal/{key}/report/report.html" in shown(capsys, key)


def test_seeds_are_a_table_and_a_page(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = three_seeds(tmp_path_factory.getbasetemp())
    (parent,) = tracked_runs(folder, "seeds")
    with inside(folder):
        said = shown(capsys, parent.run_id, "--output", tmp_path / "page")
        rows: list[dict[str, Any]] = json.loads(
            shown(capsys, parent.run_id, "--output", tmp_path / "page", "--format", "json")
        )["rows"]
    assert "3 seeds: " in said and [row["name"] for row in rows] == ["seed 0", "seed 1", "seed 2"]
    assert np.mean([row["test_acc"] for row in rows]) == pytest.approx(parent.metrics["test/acc"])
    assert "<td>seed 2</td>" in (tmp_path / "page" / "report.html").read_text("utf-8")


@pytest.mark.usefixtures("empty_store")
def test_what_cannot_be_shown_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["report", *arguments]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        return line

    assert fit("--trainer.max_epochs=1", "--report=false") == 0
    (run,) = tracked_runs(tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE runs SET status = 'KILLED'")
    assert "was stopped before its end; the command that began it, with --resume auto, goes on" in told(run.run_id)
    assert "run 0123456789: not in sqlite" in told("0123456789")
    assert "arguments are required: RUN" in told()


def test_cells_of_a_stored_file_are_what_they_were(tmp_path: Path) -> None:
    file = tmp_path / "classes.csv"
    file.write_text("class,recall,support,is_best,model.arch,seconds\n001,0.5,12,False,1_0,\n")
    of_first = {"class": "001", "recall": 0.5, "support": 12, "is_best": False, "model.arch": "1_0", "seconds": None}
    assert _csv_rows(file) == [of_first]
