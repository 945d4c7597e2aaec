"""`lit-cnn tune` on real trainings: exact numbers of trials and runs, whatever is killed."""

import errno
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from lit_cnn.cli import main
from tests import forks
from tests.faults import wait_until
from tests.runs import DIGITS, TrackedRun, tracked_runs

pytestmark = pytest.mark.usefixtures("empty_store")

SPACE = "model.lr: {low: 1e-4, high: 0.1, log: true}\nmodel.optimizer: [adamw, sgd]\n"
SHORT = (
    f"--config={DIGITS}",
    *("--data.limit_train=128", "--data.batch_size=16", "--data.num_workers=0", "--trainer.max_epochs=2"),
    *("--search", "s.yaml"),
)


@pytest.fixture(autouse=True)
def space() -> None:
    Path("s.yaml").write_text(SPACE, encoding="utf-8")


def tune(*arguments: str) -> int:
    return main(["tune", *SHORT, *arguments])


def printed_json(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text[text.index("{") :])
    return found


def started(log: Path, *arguments: str) -> forks.Forked:
    with log.open("a") as file:
        return forks.start("tune", *SHORT, *arguments, cwd=Path.cwd(), log=file.fileno())


def workers_of(pid: int) -> list[psutil.Process]:
    """Those of a search: what it started with a socket as standard input."""
    found = []
    for process in psutil.Process(pid).children():
        try:
            if os.readlink(f"/proc/{process.pid}/fd/0").startswith("socket:"):
                found.append(process)
        except OSError:
            continue
    return found


def trials_of(folder: Path) -> list[TrackedRun]:
    return [run for run in tracked_runs(folder) if "trial_number" in run.tags]


def test_ten_kills_at_random_moments_lose_and_repeat_nothing(tmp_path: Path) -> None:
    options = ("--trials=5", "--parallel=2", "--sampler=random", "--pruner=none", "--final_seeds=1", "--format=json")
    log, draw, killed = tmp_path / "log", random.Random(0), 0
    assert started(tmp_path / "whole.log", *options, "--experiment=whole", "--output=whole").wait() == 0
    again = (*options, "--experiment=killed", "--output=killed", "--resume=auto")
    command = started(log, *again)
    while killed < 10 and command.poll() is None:
        time.sleep(draw.uniform(0.2, 2.5))
        kind = draw.choice(["search", "worker", "all"])
        os.kill(command.pid, signal.SIGSTOP)
        if Path("killed/trials.json").exists():  # then it is at its end: what comes after that is another search
            os.kill(command.pid, signal.SIGCONT)
            break
        try:
            for worker in workers_of(command.pid)[: {"search": 0, "worker": 1, "all": 2}[kind]]:
                worker.kill()
        except psutil.NoSuchProcess:  # it has ended by itself
            os.kill(command.pid, signal.SIGCONT)
            break
        if kind == "worker":
            os.kill(command.pid, signal.SIGCONT)
        else:
            command.kill()
            command.wait()
            command = started(log, *again)
        killed += 1
    assert command.wait() == 0, log.read_text("utf-8")
    assert killed >= 4, log.read_text("utf-8")
    whole, found = (json.loads(Path(name, "trials.json").read_text("utf-8")) for name in ("whole", "killed"))
    own = ("trial", "seed", "state", "model.lr", "model.optimizer", "value", "test_acc", "is_best")
    assert [[row[name] for name in own] for row in found["trials"]] == [
        [row[name] for name in own] for row in whole["trials"]
    ]
    runs = {run.run_id: run for run in tracked_runs(tmp_path)}
    assert {run.status for run in runs.values()} == {"FINISHED"} and len(runs) == 2 * (1 + 5 + 1)
    children = [run for run in runs.values() if run.tags.get("mlflow.parentRunId") == found["run"]]
    assert {row["run"] for row in found["trials"]} == {run.run_id for run in children} and len(children) == 6
    assert sorted(run.tags.get("trial_number", "") for run in children) == ["", *"12345"]
    for row in found["trials"]:
        run = runs[row["run"]]
        assert run.metrics["best/val/acc"] == row["value"] and run.params["model.lr"] == str(row["model.lr"])
        assert run.tags.get("trial") == ("search" if row["state"] == "complete" else None)
        assert [step for step, _ in run.history["val/acc"]] == [7, 15]  # no epoch twice, none left out
    search = runs[found["run"]]
    assert [value for _, value in search.history["search/value"]] == [row["value"] for row in found["trials"][:5]]


def test_trials_are_pruned_and_the_best_is_trained_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer = ("--trainer.max_epochs=4", "--data.limit_train=512", "--data.batch_size=64")
    assert tune("--trials=6", "--final_seeds=3", *longer) == 0
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert lines[:3] == [
        *("  model.lr: 0.0001 to 0.1 (log)", "  model.optimizer: adamw, sgd"),
        "6 trials of up to 4 epochs, drawn by TPE, pruned by asha",
    ]
    assert [line.split(":")[0] for line in lines if line.startswith("trial ") and " of 6" in line] == [
        f"trial {number} of 6" for number in range(1, 7)
    ]
    (search,) = tracked_runs(tmp_path, "search")
    runs = trials_of(tmp_path)
    pruned = [run for run in runs if "pruned" in run.tags]
    assert pruned and all(run.status == "FINISHED" and run.tags["trial"] == "search" for run in runs)
    for run in pruned:
        epochs = int(run.tags["pruned"].split()[2])
        assert run.tags["pruned"] == f"after epoch {epochs} of 4" and len(run.history["val/acc"]) == epochs < 4
    assert not any("test/acc" in run.metrics for run in runs)  # a trial is never tested
    finals = [run for run in tracked_runs(tmp_path, "fit") if "final_seed" in run.tags]
    assert [run.tags["seed"] for run in finals] == ["1", "2", "3"] and all("test/acc" in run.metrics for run in finals)
    document = json.loads(Path("search/trials.json").read_text("utf-8"))
    complete = [row for row in document["trials"] if row["state"] == "complete"]
    best = max(complete, key=lambda row: row["value"])
    values = [row["value"] for row in document["trials"] if row["state"] == "final"]
    assert document["best"] == {name: best[name] for name in ("model.lr", "model.optimizer")}
    assert document["optimism"] == pytest.approx(best["value"] - sum(values) / 3)
    assert document["optimism_low"] <= document["optimism"] <= document["optimism_high"]
    said = " ".join(printed.out.split())
    assert said.startswith(f"Take lr {best['model.lr']}, optimizer {best['model.optimizer']}: ")
    assert search.tags["mlflow.note.content"] == document["answer"] and document["answer"] in said
    assert "as the best of the trials" in said
    assert "Too few complete trials (" in said and "more --trials, or --pruner none." in said
    assert search.metrics["test/acc"] == pytest.approx(sum(run.metrics["test/acc"] for run in finals) / 3)
    names = {"trials.csv", "trials.json", "history.png", "slices.png", "report.html", "best.yaml"}
    assert {file.name for file in (search.artifacts / "search").iterdir()} == names
    # The file is all that it takes to train the best, to the same bit.
    assert main(["fit", "--config", "search/best.yaml", "--seed_everything=1", "--experiment=again"]) == 0
    again = tracked_runs(tmp_path)[-1]
    assert again.metrics["test/acc"] == finals[0].metrics["test/acc"]
    assert yaml.safe_load(Path("search/best.yaml").read_text("utf-8"))["model"]["lr"] == best["model.lr"]
    # A trial is no result; the best with new seeds is one.
    capsys.readouterr()
    assert main(["compare", "--experiment", "digits", "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_and_the_search_goes_on(number: int, tmp_path: Path) -> None:
    options = ("--trials=3", "--sampler=random", "--pruner=none", "--final_seeds=0", "--format=json")
    log = tmp_path / "log"
    command = started(log, *options, "--trainer.max_epochs=3")
    wait_until(lambda: "trial 1 of 3" in log.read_text("utf-8"))
    workers = workers_of(command.pid)
    assert len(workers) == 1
    command.send_signal(number)
    assert command.wait() == 128 + number
    name = signal.Signals(number).name
    assert log.read_text("utf-8").splitlines()[-1] == (
        f"lit-cnn: stopped by {name}; the same command with --resume auto goes on"
    )
    assert not workers[0].is_running() or workers[0].status() == psutil.STATUS_ZOMBIE
    (search,) = tracked_runs(tmp_path, "search")
    assert search.status == "KILLED"
    # Another search is not gone on with.
    other = started(tmp_path / "other", *options, "--trainer.max_epochs=3", "--model.weight_decay=0.1", "--resume=auto")
    assert other.wait() == 2
    assert (
        "is another one: its model.weight_decay is 0.05, here it is 0.1; give what that had"
        in ((tmp_path / "other").read_text("utf-8").splitlines()[-1])
    )
    # More trials than at first are the same search.
    more = started(log, *options[1:], "--trials=4", "--trainer.max_epochs=3", "--resume=auto")
    assert more.wait() == 0, log.read_text("utf-8")
    assert [run.tags["trial_number"] for run in sorted(trials_of(tmp_path), key=lambda r: r.tags["trial_number"])] == [
        *"1234"
    ]
    (search,) = tracked_runs(tmp_path, "search")
    assert search.status == "FINISHED"


def test_a_trial_that_fails_is_told_and_the_search_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.yaml").write_text("model.lr: [0.001, 1e30]\nmodel.optimizer: [sgd]", encoding="utf-8")
    assert tune("--final_seeds=0", "--format=json") == 0
    printed = capsys.readouterr()
    assert "2 trials of up to 2 epochs, every combination, pruned by asha" in printed.err
    (failed,) = [row for row in printed_json(printed.out)["trials"] if row["state"] == "failed"]
    assert failed["model.lr"] == 1e30 and failed["value"] is None
    assert "lr 1e+30, optimizer sgd: failed: --model.lr 1e+30: the loss is" in printed.err
    assert len(trials_of(tmp_path)) == 1  # the other was refused before it began


def test_a_search_ends_where_the_first_trials_fail_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.yaml").write_text("model.lr: [1e30, 1e31, 1e32, 1e33]", encoding="utf-8")
    assert tune("--model.optimizer=sgd") == 1
    expected = "the first 3 trials failed in the same way: --model.lr 1e+3"
    assert expected in capsys.readouterr().err.splitlines()[-1]
    wait_until(lambda: [run.status for run in tracked_runs(tmp_path, "search")] == ["FAILED"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--search=none.yaml"],
            "--search none.yaml: no such file, and no search of that name; give a file, or",
        ),
        (["--search=lr", "--model.lr=0.1"], "--search lr: model.lr: --model.lr 0.1 on the command line is for all"),
        (["--trials=0"], "0: give a whole number of at least 1"),
        (["--budget=soon"], "soon: give a time such as 90s, 60m or 2h"),
        (["--parallel=100000"], "--parallel 100000: takes at least"),
        (["--sampler=grid"], "model.lr 0.0001 to 0.1 (log): has no end of values, and a grid tries all; give a list"),
        (["--sampler=gp"], "argument --sampler: invalid choice"),
        (["--output=s.yaml"], "--output s.yaml: cannot be written (Not a directory); give another folder"),
        (["--track=false"], "--track false: every trial is a tracked run"),
        (["--ckpt_path=x.ckpt"], "--ckpt_path x.ckpt: a search trains anew"),
        (["--trainer.devices=2"], "--trainer.devices 2: a trial has one device; give --parallel for several"),
        (["--model.lrr=1"], "--model.lrr 1: no such option"),
        (["--study=nodb://u:secret@host/db"], "--study nodb://host/db: cannot be opened"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(*words) == 2
    said = capsys.readouterr().err
    assert expected in said.splitlines()[-1] and "secret" not in said
    assert not trials_of(tmp_path)


@pytest.mark.parametrize(
    ("searched", "words", "expected"),
    [
        ("data.fold: [0, 1]", ["--data.num_folds=2"], "data.fold: is the same for all trials"),
        ("trainer.limit_val_batches: [1, 2]", [], "trainer.limit_val_batches: is the same for all trials"),
        ("data.batch_size: [16, 32]", ["--trainer.limit_val_batches=2"], "data.batch_size: decides how many val"),
        ("config/augment: [none, strong]", ["--data.augment=[]"], "config/augment none: sets data.augment, and so"),
        ("config/augment: [none, strong]", ["--data={augment: []}"], "config/augment none: sets data.augment, and so"),
        ("config: [a.yaml, b.yaml]", ["--model.lr", "0.1"], "config a.yaml: sets model.lr, and so does the command"),
        ("config: [a.yaml, b.yaml]\nmodel.lr: [0.1, 0.2]", [], "config a.yaml: sets model.lr, which is searched too"),
        (
            "config/augment: [none, strong]\nconfig: [a.yaml, d.yaml]",
            [],
            "config/augment none: sets data.augment, and so does config d.yaml, otherwise: one of them would win",
        ),
        ("config: [a.yaml, c.yaml]", [], "config c.yaml: sets data.split_seed, which is the same for all trials"),
        ("model.lr: [0.1, 0.2]", ["--model={lr: 0.3}"], "model.lr: is given on the command line for all trials"),
    ],
)
def test_what_would_win_in_every_trial_or_choose_what_judges_is_refused(
    searched: str, words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("b.yaml").write_text("include: a.yaml\nmodel: {lr: 0.1}", encoding="utf-8")
    Path("a.yaml").write_text("model: {lr: 0.2, weight_decay: 0.1}", encoding="utf-8")
    Path("c.yaml").write_text("include: a.yaml\ndata: {split_seed: 3}", encoding="utf-8")
    Path("d.yaml").write_text("data: {augment: [{class_path: albumentations.HorizontalFlip}]}", encoding="utf-8")
    Path("s.yaml").write_text(searched, encoding="utf-8")
    assert main(["tune", *(text for text in SHORT if "batch_size" not in text), *words]) == 2
    assert f"--search s.yaml: {expected}" in capsys.readouterr().err.splitlines()[-1]
    assert tracked_runs(tmp_path) == []


def test_values_that_the_parser_refuses_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Path("s.yaml").write_text("model.optimizer_options: [{momentum: 0.9}, 3]", encoding="utf-8")
    assert tune() == 2
    assert "--search s.yaml: model.optimizer_options 3: " in capsys.readouterr().err.splitlines()[-1]
    Path("s.yaml").write_text("model.cut_at: [7, 8, 9, 10]", encoding="utf-8")
    assert tune() == 2
    assert "--model.cut_at 8: no such stage to end with" in capsys.readouterr().err.splitlines()[-1]
    assert tracked_runs(tmp_path) == []


def test_a_report_that_cannot_be_written_leaves_the_search_to_be_resumed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("s.yaml").write_text("model.lr: [0.001, 0.002]", encoding="utf-8")
    with monkeypatch.context() as patch:
        write = Path.write_text

        def full(file: Path, *arguments: Any, **options: Any) -> int:
            if file.name == "best.yaml":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(file, *arguments, **options)

        patch.setattr(Path, "write_text", full)
        assert tune("--trials=1", "--final_seeds=1", "--trainer.max_epochs=1") == 2
    printed = capsys.readouterr()
    assert "1 trial of up to 1 epoch, drawn by TPE" in printed.err
    assert "--output search: cannot be written (No space left on device); give" in printed.err.splitlines()[-1]
    again = ("--trials=1", "--final_seeds=1", "--trainer.max_epochs=1", "--resume=auto", "--format=json")
    assert tune(*again) == 0
    document = printed_json(capsys.readouterr().out)
    runs = {run.run_id for run in tracked_runs(tmp_path)}
    assert "(how much of that was luck takes 3 new seeds to tell)" in document["answer"]
    assert document["optimism"] is None
    assert len(runs) == 3 and runs == {document["run"], *(row["run"] for row in document["trials"])}


def test_a_budget_ends_the_trials(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune("--trials=50", "--budget=1s", "--final_seeds=1", "--format=csv") == 0
    printed = capsys.readouterr()
    assert "the budget is spent after 1 trial of 50" in printed.err
    assert len(printed.out.splitlines()) == 1 + 1 + 1


def test_more_trials_go_on_with_a_finished_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ("--sampler=random", "--final_seeds=1", "--trainer.max_epochs=1", "--format=json", "--resume=auto")

    def search(trials: int, *more: str) -> tuple[dict[str, Any], str]:
        assert tune(f"--trials={trials}", *short, *more) == 0
        printed = capsys.readouterr()
        return printed_json(printed.out), printed.err

    first, said = search(1)
    assert "finished" not in said
    more, said = search(2)
    assert "going on with the finished search of 1 trial in " in said and "going on after 1 of them" in said
    assert more["run"] == first["run"] and more["trials"][0] == {**first["trials"][0], "is_best": False}
    assert [row["state"] for row in more["trials"]] == ["complete", "complete", "final"]
    # Another one is the best now, and was trained anew; the run has what that came to.
    assert first["best"] != more["best"]
    (run,) = tracked_runs(tmp_path, "search")
    assert (run.status, run.metrics["test/acc"]) == ("FINISHED", more["trials"][-1]["test_acc"])
    # With another database it stays as it is.
    assert tune("--trials=3", *short, "--study=sqlite:///other.db") == 2
    assert "this search has its trials in its own file; leave it out" in capsys.readouterr().err.splitlines()[-1]
    wait_until(lambda: [each.status for each in tracked_runs(tmp_path, "search")] == ["FINISHED"])
    again, said = search(1)
    assert "this search is finished, with 2 trials, in " in said and "more --trials go on with it" in said
    assert again["run"] != more["run"] and again["best"] == first["best"]
