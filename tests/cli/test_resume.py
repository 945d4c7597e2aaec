"""Interrupted runs: real signals, real kills, and what MLflow and the weights look like after the resume."""

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import psutil
import pytest
import torch

from lit_cnn.cli import main
from lit_cnn.cli.lit_cli import LitCLI
from lit_cnn.core.randomness import SCHEME_VERSION
from lit_cnn.models import create_model
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.record import check_randomness
from lit_cnn.training.start import find_start
from tests.faults import kills, wait_until
from tests.forks import Forked, start
from tests.runs import SHORT, TrackedRun, fit, image_folder, run_of_its_own, same_weights, tracked_runs

# Long enough to be caught in the middle, with a checkpoint after nearly every step.
LONGER = ("--trainer.max_epochs=12", "--checkpoint_seconds=0.02", "--trainer.log_every_n_steps=1")
STEPS = 96
RESNET = ("--model.arch=test_resnet", "--data.in_channels=3")
# A process of its own is watched from here: on a fast machine it was over before the signal came.
WATCHED = (*LONGER, "--trainer.callbacks+=tests.cli.test_resume.Unhurried")

pytestmark = pytest.mark.usefixtures("empty_store")


class Unhurried(pl.Callback):
    """Makes every step of a `background_fit` last long enough for somebody outside to act on it."""

    def on_train_batch_end(self, *args: Any) -> None:
        """Waits in a process that leads its session; the same run is resumed in the tests' own."""
        if os.getsid(0) == os.getpid():
            time.sleep(0.05)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> TrackedRun:
    """The longer run, uninterrupted."""
    run = run_of_its_own(tmp_path_factory, "reference", *LONGER)
    assert [step for step, _ in run.history["train/loss_step"]] == list(range(STEPS))
    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_between_two_steps_and_a_resume_ends_as_if_there_had_been_none(
    number: signal.Signals, reference: TrackedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert interrupted(number, tmp_path, *LONGER) == 128 + number
    assert f"stopped by {number.name}" in capsys.readouterr().err.splitlines()[-1]
    wait_until(lambda: statuses(tmp_path) == ["KILLED"])
    assert last_step(only_run(tmp_path)) < STEPS - 1

    assert fit(*LONGER, "--resume=auto") == 0
    assert_same_run(only_run(tmp_path), reference)


def test_sigterm_to_the_process_is_survived_too(reference: TrackedRun, tmp_path: Path) -> None:
    with background_fit(tmp_path, *WATCHED) as process:
        wait_until(lambda: any(tmp_path.glob("mlruns/journal/*/last.ckpt")), timeout=120)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    wait_until(lambda: statuses(tmp_path) == ["KILLED"])

    assert fit(*WATCHED, "--resume=auto") == 0
    assert_same_run(only_run(tmp_path), reference)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda one: one.name)
def test_a_signal_to_all_processes_of_a_run_is_survived_too(
    number: signal.Signals, reference: TrackedRun, tmp_path: Path
) -> None:
    """As a terminal, a batch system or `timeout` sends it: the workers get it besides."""
    arguments = (*WATCHED, "--data.num_workers=2", "--resume=auto")
    with background_fit(tmp_path, *arguments) as process:
        wait_until(lambda: any(tmp_path.glob("mlruns/journal/*/last.ckpt")), timeout=120)
        assert len(psutil.Process(process.pid).children()) >= 2
        os.killpg(process.pid, number)
        assert process.wait(60) == 128 + number
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in log and f"stopped by {number.name}" in log.splitlines()[-1]
    wait_until(lambda: statuses(tmp_path) == ["KILLED"])

    assert fit(*arguments) == 0
    assert_same_run(only_run(tmp_path), reference)


def test_preemption_as_slurm_announces_it_stops_once_and_a_relaunch_goes_on(
    reference: TrackedRun, tmp_path: Path
) -> None:
    with background_fit(tmp_path, *WATCHED, "--resume=auto") as process:
        wait_until(lambda: any(tmp_path.glob("mlruns/journal/*/last.ckpt")), timeout=120)
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (128 + signal.SIGUSR1, 128 + signal.SIGTERM)
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    wait_until(lambda: statuses(tmp_path) == ["KILLED"])

    assert fit(*WATCHED, "--resume=auto") == 0
    assert_same_run(only_run(tmp_path), reference)


def test_last_means_the_one_unfinished_run_of_the_same_configuration(
    reference: TrackedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(signal.SIGINT, tmp_path, *LONGER)
    none = "--ckpt_path last: no unfinished run"
    assert refused(capsys, *LONGER, "--model.lr=0.001", "--ckpt_path=last").startswith(none)
    assert fit(*LONGER, "--ckpt_path=last", "--data.num_workers=1") == 0
    assert_same_run(only_run(tmp_path), reference)
    # Finished now: there is nothing to go on with.
    assert refused(capsys, *LONGER, "--ckpt_path=last").startswith(none)


@pytest.mark.parametrize("choice", ["--ckpt_path=last", "--resume=auto"])
def test_several_unfinished_runs_are_listed(choice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted(signal.SIGINT, tmp_path, *LONGER)
    interrupted(signal.SIGINT, tmp_path, *LONGER)
    message = refused(capsys, *LONGER, choice)
    assert message.startswith("2 unfinished runs have this configuration")
    checkpoints = list(tmp_path.glob("mlruns/journal/*/last.ckpt"))
    assert len(checkpoints) == 2
    assert all(str(path) in message for path in checkpoints)


# A run of the first scheme has the digest of a run of 0.2: see test_kept_checkpoint.py.
OF_0_2 = ("--data.split_scheme=1", "--data.crop_pct=1.0")


def test_a_run_of_the_first_scheme_goes_on_with_its_own_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*LONGER, "--data.normalize=train")
    assert fit(*options, *OF_0_2) == 0
    interrupted(signal.SIGINT, tmp_path, *options, *OF_0_2)
    (last,) = (path for path in tmp_path.glob("mlruns/journal/*/last.ckpt") if not is_finished(path.parent))
    for how in ("--resume=auto", "--ckpt_path=last", f"--ckpt_path={last}"):
        setup, start = find_start(LitCLI("fit", [*SHORT, *options, how]).setup)
        assert start.path == last
        assert setup.config["data"]["split_scheme"] == setup.data.options["split_scheme"] == 1
        assert setup.model.hparams["class_counts"] == setup.data.class_counts
    capsys.readouterr()
    assert fit(*options, "--resume=auto") == 0
    assert "going on as lit_cnn" in capsys.readouterr().err
    whole, resumed = tracked_runs(tmp_path)
    assert resumed.params["data.split_scheme"] == "1"
    assert resumed.tags["split_digest"] == whole.tags["split_digest"]
    assert_same_run(resumed, whole)


@pytest.mark.slow
def test_seeds_that_an_earlier_version_began_all_have_its_split(tmp_path: Path) -> None:
    seeds = ("--seeds", "0", "1")
    assert interrupted(signal.SIGINT, tmp_path, *LONGER, *OF_0_2, *seeds) == 128 + signal.SIGINT
    assert fit(*LONGER, *seeds, "--resume", "auto") == 0
    (parent,) = tracked_runs(tmp_path, "seeds")
    children = tracked_runs(tmp_path, "fit")
    assert [child.tags["seed"] for child in children] == ["0", "1"]
    assert {run.tags["split_digest"] for run in (parent, *children)} == {children[0].tags["split_digest"]}
    assert {run.status for run in (parent, *children)} == {"FINISHED"}


def test_resume_auto_on_other_images_says_what_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = image_folder(tmp_path / "pets", ["cat", "dog"], 40, size=16)
    of_data = ("--data.dataset=image_folder", f"--data.root={root}", "--data.in_channels=1", "--resume=auto")
    options = (*of_data, "--data.limit_train=null", "--trainer.max_epochs=40", "--checkpoint_seconds=0.02")
    assert interrupted(signal.SIGINT, tmp_path, *options) == 128 + signal.SIGINT

    def told(*more: str) -> tuple[str, bool]:
        """What is said where the run would start now, and whether that is where the unfinished one stands."""
        capsys.readouterr()
        _, start = find_start(LitCLI("fit", [*SHORT, *options, *more]).setup)
        return capsys.readouterr().err, start.path is not None

    begun = "lenet5_scratch_pets in .* is unfinished and of other images: {}; this run starts anew\n"

    def assert_told(what: str) -> None:
        said, is_resumed = told()
        assert re.fullmatch(begun.format(re.escape(what)), said) and not is_resumed

    assert told() == ("", True)
    shutil.copy(root / "cat" / "01.png", root / "cat" / "02.png")
    assert_told("the bytes of some changed")
    (root / "cat" / "02.png").unlink()
    assert_told("1 image removed (cat/02.png)")
    assert told("--data.batch_size=3") == ("", False)
    shutil.copy(root / "cat" / "01.png", root / "dog" / "new.png")
    (root / "cat" / "00.png").unlink()
    assert_told("1 image added (dog/new.png), 2 images removed (cat/00.png (and 1 more))")


def test_resume_auto_starts_anew_where_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert fit("--trainer.max_epochs=1", "--resume=auto") == 0
    assert only_run(tmp_path).status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        (*RESNET, "--trainer.precision=bf16-mixed"),
        (*RESNET, "--trainer.precision=32-true"),
        ("--model.optimizer=muon",),
    ],
    ids=["resnet in bf16", "resnet in float32", "muon"],
)
def test_a_resume_is_exact_in_either_precision_and_with_muon(how: tuple[str, ...], tmp_path: Path) -> None:
    options = (*LONGER, *how)
    assert fit(*options) == 0
    interrupted(signal.SIGINT, tmp_path, *options)
    assert fit(*options, "--resume=auto") == 0
    whole, resumed = tracked_runs(tmp_path)
    assert_same_run(resumed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("evened_out", ["--data.sampler=balanced", "--model.class_weights=balanced"])
def test_a_resume_is_exact_where_classes_are_evened_out(evened_out: str, tmp_path: Path) -> None:
    options = (*LONGER, evened_out, "--monitor=val/balanced_acc")
    assert fit(*options) == 0
    interrupted(signal.SIGINT, tmp_path, *options)
    assert fit(*options, "--resume=auto", "--data.num_workers=1") == 0
    whole, resumed = tracked_runs(tmp_path)
    assert_same_run(resumed, whole)
    scores = [value for _, value in whole.history["val/balanced_acc"]]
    assert whole.metrics["best/val/balanced_acc"] == max(scores)
    assert 0 < whole.metrics["test/f1"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["last_stages", "gradual"])
def test_a_resume_is_exact_where_stages_are_frozen(regime: str, tmp_path: Path) -> None:
    net = create_model("test_resnet", num_classes=10, in_channels=3, image_size=32)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    options = (
        *LONGER,
        "--model.arch=test_resnet",
        "--data.in_channels=3",
        f"--model.weights={tmp_path / 'weights.pth'}",
        f"--model.transfer={regime}",
        "--model.unfreeze_every=2",
        "--model.layer_decay=0.7",
        "--model.head_lr_factor=3",
    )
    assert fit(*options) == 0
    interrupted(signal.SIGINT, tmp_path, *options)
    assert fit(*options, "--resume=auto") == 0
    whole, resumed = tracked_runs(tmp_path)
    assert_same_run(resumed, whole)
    assert whole.name == f"test_resnet_{regime}_digits"


def test_a_resume_goes_on_with_the_weights_and_their_average(tmp_path: Path) -> None:
    options = (*LONGER, "--ema_decay=0.9", "--model.arch_options={batch_norm: true}")
    assert fit(*options) == 0
    interrupted(signal.SIGINT, tmp_path, *options)
    assert fit(*options, "--resume=auto") == 0
    whole, resumed = tracked_runs(tmp_path)
    assert_same_run(resumed, whole)
    one, other = (load_checkpoint(run.artifacts / "checkpoints" / "last.ckpt") for run in (whole, resumed))
    for key in ("current_model_state", "averaging_state"):
        assert one[key].keys() == other[key].keys() and len(one[key]) > 0
        assert all(torch.equal(one[key][name], other[key][name]) for name in one[key])


def test_a_resumed_run_may_train_longer(tmp_path: Path) -> None:
    interrupted(signal.SIGINT, tmp_path, *LONGER)
    assert fit(*LONGER, "--trainer.max_epochs=8", "--resume=auto") == 0
    run = only_run(tmp_path)
    assert run.status == "FINISHED"
    assert [step for step, _ in run.history["train/loss_step"]] == list(range(64))
    assert [step for step, _ in run.history["val/acc"]] == list(range(7, 64, 8))


def test_a_resumed_run_cannot_have_fewer_epochs_than_it_has_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--trainer.max_epochs=3") == 0
    run = only_run(tmp_path)
    checkpoint = run.artifacts / "checkpoints" / "last.ckpt"
    message = refused(capsys, f"--ckpt_path={checkpoint}", "--trainer.max_epochs=2")
    assert message.startswith("--trainer.max_epochs 2: the run of ") and "has trained 3 epochs already" in message
    assert only_run(tmp_path) == run


def test_another_learning_rate_from_a_checkpoint_opens_a_run_that_names_the_first(tmp_path: Path) -> None:
    assert fit("--trainer.max_epochs=1", "--trainer.log_every_n_steps=1") == 0
    first = only_run(tmp_path)
    checkpoint = first.artifacts / "checkpoints" / "last.ckpt"
    assert fit(f"--ckpt_path={checkpoint}", "--model.lr=0.001", "--trainer.log_every_n_steps=1") == 0
    untouched, second = tracked_runs(tmp_path)
    assert untouched == first
    assert second.tags["continued_from"] == first.run_id
    assert second.params["model.lr"] == "0.001"
    assert [step for step, _ in second.history["train/loss_step"]] == list(range(8, 16))
    assert 0 < max(value for _, value in second.history["lr"]) <= 0.001


def test_kill_while_several_seeds_train_loses_only_what_was_not_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with background_fit(tmp_path, *WATCHED, "--seeds", "0", "1") as process:
        wait_until(lambda: any(tmp_path.glob("mlruns/journal/*/results.json")), timeout=120)
        wait_until(lambda: len(list(tmp_path.glob("mlruns/journal/*/last.ckpt"))) == 2)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    (finished,) = (path.parent for path in tmp_path.glob("mlruns/journal/*/last.ckpt") if is_finished(path.parent))
    written = (finished / "journal.jsonl").read_bytes()

    assert fit(*WATCHED, "--seeds", "0", "1", "--resume", "auto") == 0
    assert (finished / "journal.jsonl").read_bytes() == written
    (parent,) = tracked_runs(tmp_path, "seeds")
    children = tracked_runs(tmp_path, "fit")
    assert [child.tags["seed"] for child in children] == ["0", "1"]
    assert {run.status for run in (parent, *children)} == {"FINISHED"}
    for child in children:
        assert [step for step, _ in child.history["train/loss_step"]] == list(range(STEPS))
    assert parent.metrics["test/acc"] == pytest.approx(sum(child.metrics["test/acc"] for child in children) / 2)


def test_kill_at_a_random_moment_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    assert list(kills(1, 0, tmp_path)) == [True]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_more_kills_without_and_with_workers(num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert list(kills(2, num_workers, tmp_path, seed=1)) == [True, True]


def interrupted(number: signal.Signals, folder: Path, *arguments: str) -> int:
    """Runs a fit in this process, sends it a signal after its first new checkpoint, and returns the exit code."""
    before = set(folder.glob("mlruns/journal/*/last.ckpt"))
    ended = threading.Event()

    def send_signal() -> None:
        while not ended.wait(0.005):
            if set(folder.glob("mlruns/journal/*/last.ckpt")) - before:
                os.kill(os.getpid(), number)
                return

    # A signal that came too late would else end the tests.
    previous = signal.signal(number, lambda *_: None)
    sender = threading.Thread(target=send_signal)
    sender.start()
    try:
        return fit(*arguments)
    finally:
        ended.set()
        sender.join()
        signal.signal(number, previous)


@contextmanager
def background_fit(folder: Path, *arguments: str) -> Iterator[Forked]:
    """Starts a fit as a process of its own, killed at the end if it still runs."""
    with (folder / "log.txt").open("wb") as log:
        process = start("fit", *SHORT, *arguments, cwd=folder, log=log.fileno())
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def assert_same_run(run: TrackedRun, reference: TrackedRun) -> None:
    """Same weights, and every value once, at the same steps: clocks are compared by their steps only."""
    assert run.status == "FINISHED"
    for name in ("best.ckpt", "last.ckpt"):
        assert same_weights(run.artifacts / "checkpoints" / name, reference.artifacts / "checkpoints" / name)
    assert comparable(run) == comparable(reference)


def comparable(run: TrackedRun) -> dict[str, list[Any]]:
    return {
        name: [step for step, _ in rows] if name.startswith(("time/", "data/")) else list(rows)
        for name, rows in run.history.items()
    }


def only_run(folder: Path) -> TrackedRun:
    (run,) = tracked_runs(folder)
    return run


def statuses(folder: Path) -> list[str]:
    return [run.status for run in tracked_runs(folder)]


def last_step(run: TrackedRun) -> int:
    return max(step for rows in run.history.values() for step, _ in rows)


def is_finished(run_folder: Path) -> bool:
    return not (run_folder / "unfinished.json").exists()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Returns the one line with which a fit is refused."""
    capsys.readouterr()
    assert main(["fit", *SHORT, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("lit-cnn: error: ")


def test_a_checkpoint_of_another_scheme_of_randomness_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    for scheme, is_told in ((SCHEME_VERSION, False), (SCHEME_VERSION - 1, True)):
        check_randomness({"lit_cnn": {"randomness_scheme": scheme}})
        assert (f"drew by scheme {scheme} of the randomness" in capsys.readouterr().err) == is_told
