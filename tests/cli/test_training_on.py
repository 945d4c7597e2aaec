"""A checkpoint given by hand: a run of its own, which goes on at the same share of its schedule."""

import os
import re
import signal
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import yaml

from lit_cnn.cli import main
from lit_cnn.training.callbacks import FitProgress
from lit_cnn.training.checkpoints import load_checkpoint, save_checkpoint
from lit_cnn.training.optimization import learning_rate_factor
from tests.cli.test_resume import LONGER, interrupted
from tests.runs import TrackedRun, fit, run_of_its_own, tracked_runs

EVERY_STEP = "--trainer.log_every_n_steps=1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrackedRun]:
    """A finished run of two epochs, and the folder that it is in."""
    run = run_of_its_own(tmp_path_factory, "finished", EVERY_STEP)
    return run.artifacts.parents[4], run


@pytest.fixture
def run(finished: tuple[Path, TrackedRun], monkeypatch: pytest.MonkeyPatch) -> TrackedRun:
    """The finished run, in whose folder the test works."""
    monkeypatch.chdir(finished[0])
    return finished[1]


def newest(folder: Path = Path()) -> TrackedRun:
    return tracked_runs(folder)[-1]


def rates(run: TrackedRun) -> np.ndarray:
    return np.array([rate for _, rate in run.history["lr"]])


def curve(num_steps: int) -> np.ndarray:
    """Returns the rates that are logged after each step of a run of this recipe."""
    return 0.004 * np.array(
        [learning_rate_factor(step, num_steps, "one_cycle", 0.25) for step in range(1, num_steps + 1)]
    )


def test_a_finished_run_trains_on_for_longer_in_a_run_of_its_own(
    run: TrackedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", f"--ckpt_path=runs:/{run.run_id}", "--trainer.max_epochs=4"]) == 0  # all else is the run's
    assert f"going on from run {run.run_id} after 2 epochs with max_epochs=2" in capsys.readouterr().err
    untouched, longer = (each for each in tracked_runs(Path()) if each.run_id in (run.run_id, newest().run_id))
    assert untouched == run
    assert longer.status == "FINISHED" and longer.tags["continued_from"] == run.run_id
    assert longer.params["continued"] == "after 2 epochs with max_epochs=2"
    assert longer.params["trainer.max_epochs"] == "4" and longer.params["data.batch_size"] == "16"
    assert [step for step, _ in longer.history["train/loss_step"]] == list(range(16, 32))
    np.testing.assert_allclose(rates(longer), curve(32)[16:], rtol=1e-5, atol=1e-9)
    assert longer.metrics["best/epoch"] >= 2  # its own: the file of a better one before is another run's


@pytest.mark.parametrize(
    ("options", "steps_per_epoch", "before"),
    [
        (["--data.batch_size=64"], 2, "batch_size=16"),
        (["--trainer.accumulate_grad_batches=3"], 3, "accumulate_grad_batches=1"),
        (["--data.limit_train=200", "--ema_decay=null"], 13, "limit_train=128"),
        (["--trainer.limit_train_batches=0.5"], 4, ""),
    ],
    ids=["batch size", "accumulation", "images", "share"],
)
def test_other_steps_an_epoch_go_on_at_the_same_share(
    options: list[str], steps_per_epoch: int, before: str, run: TrackedRun
) -> None:
    assert fit(EVERY_STEP, *options, "--trainer.max_epochs=4", f"--ckpt_path=runs:/{run.run_id}") == 0
    on, first, end = newest(), 2 * steps_per_epoch, 4 * steps_per_epoch
    # What is logged while batches are accumulated is under the step before.
    assert [step for step, _ in on.history["train/loss_step"] if step >= first] == list(range(first, end))
    np.testing.assert_allclose(rates(on)[first - end :], curve(end)[first:], rtol=1e-5, atol=1e-9)
    assert before in on.params["continued"]
    assert [step for step, _ in on.history["val/acc"]] == [(n + 1) * steps_per_epoch - 1 for n in (2, 3)]


@pytest.mark.parametrize("average", [[], ["--ema_decay=0.9"]], ids=["", "averaged"])
def test_a_checkpoint_within_an_epoch_goes_on_within_it(average: list[str], tmp_path: Path) -> None:
    interrupted(signal.SIGINT, tmp_path, *LONGER, *average)
    (path,) = tmp_path.glob("mlruns/journal/*/last.ckpt")
    checkpoint = load_checkpoint(path)
    done = checkpoint["global_step"] / 8
    assert fit(*LONGER, *average, "--data.batch_size=64", f"--ckpt_path={path}") == 0
    before, on = tracked_runs(tmp_path)
    assert before.status == "KILLED" and on.status == "FINISHED"
    steps = [step for step, _ in on.history["train/loss_step"]]
    assert steps == list(range(steps[0], 24)) and abs(steps[0] / 2 - done) <= 0.5
    np.testing.assert_allclose(rates(on), curve(24)[steps[0] :], rtol=1e-5, atol=1e-9)
    if average:
        (state,) = (
            each
            for each in load_checkpoint(path.parent.parent / on.tags["lit_cnn.key"] / "last.ckpt")["callbacks"].values()
            if "latest_update_step" in each
        )
        assert state["latest_update_step"] == 24
    # The same configuration again is the unfinished run itself.
    assert main(["fit", f"--ckpt_path={path}"]) == 0
    assert [each.status for each in tracked_runs(tmp_path)] == ["FINISHED", "FINISHED"]


@pytest.mark.parametrize(
    ("steps", "place", "epochs"), [(11, "1.38", ["2/5", "3/5"]), (8, "1", ["2/5", "3/5"])], ids=["within", "at its end"]
)
def test_a_run_that_steps_have_ended_goes_on_where_it_was(
    steps: int, place: str, epochs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [EVERY_STEP, "--trainer.max_epochs=5"]
    assert fit(*options, f"--trainer.max_steps={steps}") == 0
    first = newest().run_id
    capsys.readouterr()
    assert fit(*options, "--trainer.max_steps=20", f"--ckpt_path=runs:/{first}") == 0
    lines = [line.split() for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    assert [words[1] for words in lines] == epochs  # none of them again, and without an image
    assert newest().params["continued"] == f"after {place} epochs with max_steps={steps}"
    assert [step for step, _ in newest().history["train/loss_step"]] == list(range(steps, 20))
    assert [step for step, _ in newest().history["train/loss"]] == [15, 19]
    assert fit(*options, f"--trainer.max_steps={steps}", f"--ckpt_path=runs:/{first}") == 2
    assert f"--trainer.max_steps {steps}: the run of " in capsys.readouterr().err


def test_the_same_command_goes_on_with_a_run_that_was_stopped_while_it_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit(EVERY_STEP) == 0
    options = [EVERY_STEP, "--trainer.max_epochs=4", f"--ckpt_path=runs:/{newest().run_id}"]

    def stopped(progress: FitProgress, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(FitProgress, "on_train_batch_end", stopped)
        assert fit(*options) == 128 + signal.SIGTERM
    assert fit(*options, "--resume=auto") == 0
    first, second = tracked_runs(tmp_path)
    assert second.status == "FINISHED" and second.tags["continued_from"] == first.run_id
    assert [step for step, _ in second.history["train/loss_step"]] == list(range(16, 32))


def test_what_was_not_set_before_is_said(run: TrackedRun) -> None:
    assert fit(f"--ckpt_path=runs:/{run.run_id}", "--trainer.max_epochs=3", "--model.class_weights=balanced") == 0
    assert newest().params["continued"] == "after 2 epochs with class_weights=null, max_epochs=2"


def test_what_cannot_be_meant_is_one_line(run: TrackedRun, capsys: pytest.CaptureFixture[str]) -> None:
    best, last = (run.artifacts / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    runs = tracked_runs(Path())
    for options, expected in {
        (
            f"--ckpt_path={best}",
        ): f"is of weights alone; last.ckpt of a run, or runs:/RUN_ID, has the optimizer's state "
        f"and the place too; give that, or start anew from these weights: --model.weights {best}",
        (f"--ckpt_path={last}",): "--trainer.max_epochs 2: the run of ",
        (
            f"--ckpt_path={last}",
            "--model.arch_options={batch_norm: true}",
        ): "is of --model.arch_options none",
        (f"--ckpt_path={last}", "--model.arch=test_resnet"): "is of --model.arch lit/lenet5",
        ("--ckpt_path=runs:/123456789",): "123456789",
    }.items():
        assert fit(*options) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-cnn: error: ")]
        assert expected in line
    assert tracked_runs(Path()) == runs
    assert main(["test", f"--ckpt_path={best}", "--model.arch=test_resnet"]) == 2
    assert "is of --model.arch lit/lenet5" in capsys.readouterr().err


def test_images_that_were_trained_on_are_counted(run: TrackedRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.max_epochs=3", "--data.split_seed=1", f"--ckpt_path=runs:/{run.run_id}") == 0
    assert "warning: the run that it goes on from was trained on" in capsys.readouterr().err
    assert newest().tags["lit_cnn.trained_on"].endswith("images of test")
    # A second time, on the same split: the first run's images are still known.
    assert fit("--trainer.max_epochs=4", "--data.split_seed=1", f"--ckpt_path=runs:/{newest().run_id}") == 0
    second, first = reversed(tracked_runs(Path())[-2:])
    assert second.tags["lit_cnn.trained_on"] == first.tags["lit_cnn.trained_on"]
    # So are those that its weights have seen, where a run starts with them, and by what starts with that one's.
    capsys.readouterr()
    short = ("--trainer.max_epochs=1", "--data.split_seed=1", "--report=false")
    for weights in (run.run_id, second.run_id):
        assert fit(*short, f"--model.weights=runs:/{weights}", "--model.transfer=full") == 0
        said = capsys.readouterr()
        assert "warning: the run whose weights it starts from was trained on" in said.err
        assert "These figures are too good: what it started from was trained on" in said.out
        assert newest().tags["lit_cnn.trained_on"] == first.tags["lit_cnn.trained_on"]
    # The same split says nothing.
    assert fit("--trainer.max_epochs=1", f"--model.weights=runs:/{run.run_id}", "--model.transfer=full") == 0
    assert "was trained on" not in capsys.readouterr().err and "lit_cnn.trained_on" not in newest().tags
    # Each fold was trained on in part, by a run without folds.
    assert fit("--folds=2", *short[::2], f"--model.weights=runs:/{run.run_id}", "--model.transfer=full") == 0
    said = capsys.readouterr()
    assert said.err.count("warning: the run whose weights it starts from was trained on") == 2
    assert re.search(r"These figures are too good: .+ of the \d+ images of the folds", said.out)


@pytest.mark.parametrize("callback", [False, True])
def test_a_time_that_is_used_up_is_refused(callback: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timer = "--trainer.callbacks+=lightning.pytorch.callbacks.Timer", "--trainer.callbacks.duration=00:00:00:01"
    options = [*(timer if callback else ["--trainer.max_time=00:00:00:01"]), "--trainer.max_epochs=1000"]
    assert fit(*options) == 0
    assert fit(*options, f"--ckpt_path=runs:/{newest().run_id}") == 2
    assert "--trainer.max_time: the run of " in capsys.readouterr().err
    assert len(tracked_runs(tmp_path)) == 1


def test_a_run_that_is_resumed_for_longer_is_shown_with_its_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(signal.SIGINT, tmp_path, *LONGER)
    assert fit(*LONGER, "--trainer.max_epochs=13", "--resume=auto") == 0
    assert fit("--seed_everything=1", *LONGER, "--trainer.max_epochs=13", "--data.num_workers=1") == 0
    assert "max_epochs: 13" in (newest().artifacts / "config.yaml").read_text()
    capsys.readouterr()
    assert main(["compare", "--experiment=digits", "--split=val"]) == 0
    table = capsys.readouterr().out
    assert "max_epochs" not in table and " 2 " in table  # one row of two seeds


def test_auto_resumes_no_run_of_another_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted(signal.SIGINT, tmp_path, *LONGER, "--experiment=one")
    interrupted(signal.SIGINT, tmp_path, *LONGER, "--experiment=two")
    assert fit(*LONGER, "--experiment=three", "--resume=auto", "--trainer.max_epochs=1") == 0
    assert "is unfinished and in experiment two, not three; this run starts anew" in capsys.readouterr().err
    assert fit(*LONGER, "--experiment=one", "--resume=auto") == 0
    assert [run.status for run in tracked_runs(tmp_path)] == ["FINISHED", "KILLED", "FINISHED"]


def test_no_class_of_a_checkpoint_is_called(
    run: TrackedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(run.artifacts / "checkpoints" / "last.ckpt")
    config = yaml.safe_load(checkpoint["lit_cnn"]["config"])
    config["trainer"]["callbacks"] = [{"class_path": "no.such.Callback"}]
    record = {**checkpoint["lit_cnn"], "config": yaml.safe_dump(config)}
    save_checkpoint({**checkpoint, "lit_cnn": record}, tmp_path / "other.ckpt")
    assert main(["fit", f"--ckpt_path={tmp_path / 'other.ckpt'}", "--trainer.max_epochs=3"]) == 0
    assert "--trainer.callbacks of the run before: not taken over" in capsys.readouterr().err
