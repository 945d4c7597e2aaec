"""What a person sees of a run: its lines and bar while it trains, its sentences and its report at the end."""

import csv
import errno
import fcntl
import json
import math
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lit_cnn.core.bars import bar_format
from lit_cnn.tracking.journal import read_journal
from lit_cnn.training import run_report
from lit_cnn.training.callbacks.fit_progress import epoch_line
from lit_cnn.training.history import read_history
from tests.conftest import Finished
from tests.runs import ROOT, SHORT, TrackedRun, fit, image_folder, same_weights, tracked_runs

FILES = {"report.html", "curves.png", "confusion.png", "classes.csv", "mistakes.png", "examples.png"}
NUM_TEST = 359  # of the digits


@pytest.fixture(scope="module")
def run(trained: Path) -> TrackedRun:
    return tracked_runs(trained, "fit")[0]


def in_a_terminal(*arguments: str, cwd: Path, columns: int) -> str:
    """Returns what `lit-cnn fit` writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    # No fork of tests/forks.py: Python settles as it starts what it may do with its output.
    command = [sys.executable, "-m", "lit_cnn", "fit", *SHORT, *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, cwd=cwd, env=env)
    os.close(theirs)
    written = b""
    while True:
        try:
            block = os.read(ours, 1 << 16)
        except OSError:  # nobody writes any more
            break
        written += block
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return written.decode().replace("\r\n", "\n")


@pytest.mark.usefixtures("empty_store")
def test_a_terminal_keeps_a_line_per_epoch_and_no_line_is_too_long(tmp_path: Path) -> None:
    text = in_a_terminal("--trainer.max_epochs=3", cwd=tmp_path, columns=80)
    assert "\x1b" not in text
    text = text[text.index("training lenet5") : text.index("\nReport: ")]
    shown = re.split("[\r\n]", text)
    assert max(map(len, shown)) <= 80
    bars = [part for part in shown if " images" in part and "%" in part and " right" not in part]
    assert bars and all(re.match(r"(epoch [123]/3(, validating)?|testing) +\d+% ", bar) for bar in bars)
    # What a carriage return writes over is gone: the epochs' lines are what stays.
    kept = [line.rsplit("\r", 1)[-1] for line in text.split("\n")]
    epochs = [line.split()[1] for line in kept if re.match(r"epoch .*train/loss .*val/loss .*val/acc ", line)]
    assert epochs == ["1/3", "2/3", "3/3"]


@pytest.mark.parametrize("width", [20, 39, 60, 79, 200])
def test_a_bar_and_an_epochs_line_fit_any_terminal(width: int) -> None:
    more = ["1 h 20 min left", "loss 0.612", "12,521 img/s"]
    for title, total in [
        ("epoch  3/10", 1_222_260),
        ("epoch 3", None),
        ("features of training images, view 1 of 1", 9),
    ]:
        text, columns = bar_format(title, 5, total, "images", more, width)
        assert columns == width and len(text.replace("{bar}", 8 * "=")) <= width
        assert text.startswith(title[:width])
        assert width < 200 or ("img/s" in text and "{bar}" in text) is (total is not None)
    values = {"train/loss": 1.8412, "val/loss": 0.6935, "val/acc": 0.8252}
    line = epoch_line("epoch  3/10", values, 72.0, 12_521, 90.0, width)
    assert len(line) < max(width, 32) and line.startswith("epoch  3/10  train/loss 1.841")
    whole = "epoch  3/10  train/loss 1.841  val/loss 0.694  val/acc 0.8252  1 min 12 s  12,521 img/s"
    assert whole.startswith(line)
    assert epoch_line("epoch  3/10", values, 72.0, 12_521, 90.0) == f"{whole}  1 min 30 s left"
    assert epoch_line("epoch 3", {}, 0.4, 0.0, math.inf) == "epoch 3  0.4 s"


@pytest.mark.usefixtures("empty_store")
def test_a_log_has_whole_lines_and_the_end_in_sentences(lit_cnn_cli: Callable[..., Finished], tmp_path: Path) -> None:
    done = lit_cnn_cli("fit", *SHORT)
    assert done.returncode == 0
    out, err = done.stdout, done.stderr
    assert not re.search(r"[\x1b\r]", out + err)
    assert (
        len(re.findall(r"^epoch [12]/2  train/loss \S+  val/loss \S+  val/acc \S+  \S+ s  \S+ img/s", err, re.M)) == 2
    )
    (run,) = tracked_runs(tmp_path)
    said, report, then, last = out.splitlines()
    correct = round(run.metrics["test/acc"] * NUM_TEST)
    assert said.startswith(f"{correct} of {NUM_TEST} test images right: ")
    assert (tmp_path / report.removeprefix("Report: ")).read_text().startswith("<!doctype html>")
    assert then == f"Next: lit-cnn predict FOLDER --model {run.run_id[:8]}, lit-cnn ui"
    assert last == f"run {run.run_id}"
    assert run.tags["mlflow.note.content"].replace("\\", "").startswith(said)
    assert run.tags["label"].startswith("lenet5 · scratch · 32 px")


def test_the_report_says_what_the_test_found(run: TrackedRun, trained: Path) -> None:
    folder = run.artifacts / "report"
    assert {file.name for file in folder.iterdir()} == FILES
    rows = list(csv.DictReader((folder / "classes.csv").read_text(encoding="utf-8").splitlines()))
    right = sum(float(row["recall"]) * int(row["support"]) for row in rows)
    assert sum(int(row["support"]) for row in rows) == NUM_TEST
    assert right / NUM_TEST == pytest.approx(run.metrics["test/acc"], abs=1e-6)
    assert np.mean([float(row["recall"]) for row in rows]) == pytest.approx(run.metrics["test/balanced_acc"], abs=1e-6)
    page = (folder / "report.html").read_text(encoding="utf-8")
    answer = re.search('<p class="answer">(.*?)</p>', page)
    assert answer and answer[1].startswith(f"{round(right)} of {NUM_TEST} test images right: ")
    for said in ("61,706", "model.lr", "<td>128</td>", "Training images as validation would see them"):
        assert said in page
    (parent,) = tracked_runs(trained, "seeds")
    mean, deviation = (100 * parent.metrics[name] for name in ("test/acc", "test/acc_std"))
    note = parent.tags["mlflow.note.content"]
    assert note.startswith(f"3 seeds: {mean:.2f} ± {deviation:.2f} % of the test images right")
    assert not (parent.artifacts / "report").exists()


@pytest.mark.usefixtures("empty_store")
def test_without_a_report_nothing_is_left_and_the_weights_are_the_same(
    run: TrackedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--report=false") == 0
    (without,) = tracked_runs(tmp_path)
    assert not list(tmp_path.rglob("report*"))
    assert "Report:" not in capsys.readouterr().out
    assert without.tags["config_digest"] == run.tags["config_digest"]
    note, of_report = run.tags["mlflow.note.content"].split("\n\n")
    assert without.tags["mlflow.note.content"] == note and of_report.startswith("Report: report/report.html")
    checkpoints = (each.artifacts / "checkpoints" / "last.ckpt" for each in (run, without))
    assert same_weights(*checkpoints)


@pytest.mark.usefixtures("empty_store")
def test_what_a_report_cannot_have_is_told_in_a_line_and_the_run_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*args: object) -> None:
        raise ValueError("no such\nfont")

    monkeypatch.setattr(run_report, "plot_curves", fails)
    assert fit() == 0
    assert "lit-cnn: warning: the report lacks the curves (no such font)\n" in capsys.readouterr().err

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_report, "write_text_atomically", full)
    assert fit("--seed_everything=1") == 0
    assert "lit-cnn: warning: no report: " in capsys.readouterr().err
    lacking, without = tracked_runs(tmp_path)
    assert {file.name for file in (lacking.artifacts / "report").iterdir()} == FILES - {"curves.png"}
    assert "Missing: the curves (no such font)" in (lacking.artifacts / "report/report.html").read_text("utf-8")
    assert lacking.status == without.status == "FINISHED"
    assert not (without.artifacts / "report").exists() and "test/acc" in without.metrics


@pytest.mark.usefixtures("empty_store")
def test_images_that_are_gone_at_the_end_are_not_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = image_folder(tmp_path / "images", ["dark", "gray"], 20)
    image_folder(tmp_path / "images", ["same"], 20, seed=1)
    write = run_report.write_run_report

    def write_later(*args: object) -> object:
        shutil.rmtree(folder)
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("lit_cnn.training.ending.write_run_report", write_later)
    source = ["--data.dataset=image_folder", f"--data.root={folder}", "--data.limit_train=null"]
    assert fit(*source, "--data.in_channels=1") == 0
    assert "warning: the report lacks the mistakes (" in capsys.readouterr().err
    (run,) = tracked_runs(tmp_path)
    assert run.status == "FINISHED" and (run.artifacts / "report" / "report.html").is_file()


@pytest.mark.usefixtures("empty_store")
def test_without_a_test_val_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--test_after_fit=false", "--trainer.max_epochs=1") == 0
    (run,) = tracked_runs(tmp_path)
    correct = round(run.metrics["best/val/acc"] * 143)
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"The one epoch has {correct} of 143 val images right") and "Nothing was tested" in said
    assert {file.name for file in (run.artifacts / "report").iterdir()} == {"report.html", "curves.png", "examples.png"}


def test_curves_are_by_epoch_and_a_pause_does_not_count(run: TrackedRun, trained: Path, tmp_path: Path) -> None:
    folder = trained / "mlruns" / "journal" / run.tags["lit_cnn.key"]
    history = read_history(folder, 2)
    for name in ("train/loss", "val/loss", "val/acc"):
        epochs, values = history.curves[name]
        assert epochs == [1, 2]
        assert values == [value for _, value in sorted(run.history[name])]
    # The same run, cut after its first epoch and resumed an hour later.
    records = [record for record, _ in read_journal(folder)]
    first = next(place for place, each in enumerate(records) if "train/loss" in each.get("values", ()))
    cut = records[: first + 1]
    pause = {"kind": "attempt", "time": cut[-1]["time"] + 3_600_000}
    later = [{**each, "time": each["time"] + 3_600_000} if "time" in each else each for each in records[first + 1 :]]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [*cut, pause, *later]))
    resumed = read_history(tmp_path, 2)
    assert resumed.curves == history.curves
    assert history.seconds - 60 < resumed.seconds <= history.seconds
    # One that goes on from another run's third epoch counts on.
    assert read_history(folder, 5).curves["val/acc"][0] == [4, 5]


@pytest.mark.debian
@pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs Debian's package chromium-driver")
def test_the_page_opens_by_itself_in_a_browser(run: TrackedRun, tmp_path: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for switch in ("headless=new", "no-sandbox", "disable-gpu", f"user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument(f"--{switch}")
    alone = shutil.copyfile(run.artifacts / "report" / "report.html", tmp_path / "alone.html")
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(alone.as_uri())
        assert "test images right" in browser.find_element("css selector", ".answer").text
        pictures = browser.find_elements("css selector", "img")
        assert len(pictures) == 4
        assert all(picture.get_property("naturalWidth") > 300 for picture in pictures)
        assert browser.get_log("browser") == []
        messages = (json.loads(each["message"])["message"] for each in browser.get_log("performance"))
        sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        asked = {each["request"]["url"] for each in sent if each["documentURL"] == alone.as_uri()}
        assert alone.as_uri() in asked and not {url for url in asked if not url.startswith("data:")} - {alone.as_uri()}
        for width in (400, 1200):
            browser.set_window_size(width, 900)
            scrolled, shown = (
                browser.execute_script(f"return document.documentElement.{name}")
                for name in ("scrollWidth", "clientWidth")
            )
            assert scrolled <= shown
            widths = [picture.size["width"] for picture in browser.find_elements("css selector", "img")]
            assert max(widths) <= shown  # on a telephone too, nothing has to be moved to be seen
    finally:
        browser.quit()


@pytest.mark.parametrize("num_classes", [60, 200])
def test_of_very_many_classes_the_table_has_those_with_the_fewest_images(num_classes: int, tmp_path: Path) -> None:
    labels = np.repeat(np.arange(num_classes), np.arange(1, num_classes + 1)[::-1])
    image_set = SimpleNamespace(labels=labels, class_names=[f"kind {number}" for number in range(num_classes)])
    splits = {"train": np.arange(len(labels)), "val": np.arange(3), "test": np.arange(3)}
    data: Any = SimpleNamespace(image_set=image_set, splits=splits)
    files, section = run_report.images(data, tmp_path)
    shown = re.findall(r"<td>(kind \d+)</td>", section)
    if num_classes == 60:
        assert shown == image_set.class_names and not files
        return
    assert shown == [f"kind {number}" for number in range(199, 179, -1)] and "of 200 classes with the fewest" in section
    lines = files[0].read_text("utf-8").splitlines()
    assert files[0].name == "images.csv" and "images.csv has all of them" in section
    assert lines[:2] == ["class,train,val,test", "kind 0,200,3,3"] and len(lines) == 201
