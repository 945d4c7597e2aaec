"""Runs that run out of disk or memory: a real small file system, a real limit of memory, one line each."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lit_cnn.cli import main
from lit_cnn.core.files import size_in_words
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.process import RunFailedError, failures_in_words
from tests.cli.test_resume import LONGER, WATCHED, assert_same_run, background_fit
from tests.faults import wait_until
from tests.forks import Forked
from tests.runs import (
    ROOT,
    SHORT,
    TrackedRun,
    copy_empty_store,
    fit,
    run_of_its_own,
    runs_in,
    same_weights,
    tracked_runs,
)

pytestmark = pytest.mark.usefixtures("empty_store")


@pytest.fixture
def small_disk(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 16 MB with an empty store in `mlruns`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        copy_empty_store(tmp_path_factory.getbasetemp(), disk)
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> TrackedRun:
    """The longer run on a disk with room."""
    return run_of_its_own(tmp_path_factory, "reference", *LONGER)


def fill(disk: Path) -> Path:
    """Writes to the disk until there is no room."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_a_resume_goes_on(
    small_disk: Path, reference: TrackedRun, tmp_path: Path
) -> None:
    arguments = (*LONGER, f"--tracking_uri=sqlite:///{small_disk}/mlruns/mlflow.db", "--resume=auto")
    with background_fit(tmp_path, *arguments) as process:
        wait_until(lambda: any(small_disk.glob("mlruns/journal/*/last.ckpt")), timeout=120)
        filler = fill(small_disk)
        assert process.wait(120) == 1
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in log
    line = next(line for line in log.splitlines() if line.startswith("lit-cnn: error: "))
    assert str(small_disk) in line and "make room" in line and "--resume auto" in line
    (checkpoint,) = small_disk.glob("mlruns/journal/*/last.ckpt")
    load_checkpoint(checkpoint)
    assert not list(checkpoint.parent.glob(".*.tmp"))

    filler.unlink()
    assert fit(*arguments) == 0
    (run,) = runs_in(small_disk / "mlruns" / "mlflow.db")
    assert_same_run(run, reference)


@pytest.fixture
def failing_disk(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that can fail, with an empty store in `mlruns`; in `tmp_path / "disk"`, mounted from "image"."""
    disk, image = tmp_path / "disk", tmp_path / "image"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    for command in (["mkfs.ext4", "-q", "-F", str(image)], ["mount", "-o", "loop", str(image), str(disk)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"there is no {command[0]}")
        if done.returncode != 0:
            pytest.skip(f"{command[0]}, which needs root and loop devices: {done.stderr.strip()}")
    try:
        copy_empty_store(tmp_path_factory.getbasetemp(), disk)
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.debian
def test_a_disk_that_becomes_read_only_ends_the_run_in_one_line_and_a_resume_goes_on(
    failing_disk: Path, reference: TrackedRun, tmp_path: Path
) -> None:
    """As the kernel makes it after an error of the disk."""
    arguments = (*WATCHED, f"--tracking_uri=sqlite:///{failing_disk}/mlruns/mlflow.db", "--resume=auto")
    with background_fit(tmp_path, *arguments) as process:
        wait_until(lambda: any(failing_disk.glob("mlruns/journal/*/last.ckpt")), timeout=120)
        subprocess.run(["mount", "-o", "remount,abort", str(failing_disk)], check=True)
        assert process.wait(120) == 1
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in log
    line = next(line for line in log.splitlines() if line.startswith("lit-cnn: error: "))
    assert str(failing_disk) in line and "Read-only file system" in line and "--resume auto" in line

    wait_until(lambda: subprocess.run(["umount", str(failing_disk)], capture_output=True).returncode == 0, timeout=120)
    subprocess.run(["mount", "-o", "loop", str(tmp_path / "image"), str(failing_disk)], check=True)
    (checkpoint,) = failing_disk.glob("mlruns/journal/*/last.ckpt")
    load_checkpoint(checkpoint)
    assert fit(*arguments) == 0
    (run,) = runs_in(failing_disk / "mlruns" / "mlflow.db")
    assert_same_run(run, reference)


# Long enough for a disk to fill up, and be missed, and to have room again.
MUCH_LONGER = (*LONGER, "--trainer.max_epochs=40", "--checkpoint_seconds=0.1")


@pytest.fixture(scope="module")
def longer_reference(tmp_path_factory: pytest.TempPathFactory) -> TrackedRun:
    """The same on a disk with room."""
    return run_of_its_own(tmp_path_factory, "longer_reference", *MUCH_LONGER, "--checkpoint_seconds=60")


def test_on_a_full_disk_a_run_trains_on_and_stores_all_of_it_when_there_is_room_again(
    small_disk: Path, longer_reference: TrackedRun, tmp_path: Path
) -> None:
    arguments = (*MUCH_LONGER, f"--tracking_uri=sqlite:///{small_disk}/mlruns/mlflow.db", "--on_full_disk=continue")
    log = tmp_path / "log.txt"
    with background_fit(tmp_path, *arguments) as process:
        filler = fill_during(process, small_disk, log)
        (checkpoint,) = small_disk.glob("mlruns/journal/*/last.ckpt")
        load_checkpoint(checkpoint)  # whole, though others were to replace it
        missed = epochs_done(log)
        journal = checkpoint.with_name("journal.jsonl")
        stored = journal.stat().st_size
        wait_until(lambda: epochs_done(log) >= missed + 10)  # more lines than its last block holds
        assert journal.stat().st_size < stored + 4096
        filler.unlink()
        assert process.wait(120) == 0, log.read_text()
    lines = [line for line in log.read_text().splitlines() if line.startswith("lit-cnn: ")]
    full, again = lines
    assert str(checkpoint.parent) in full and "no room for" in full and "training goes on" in full
    assert again.startswith(f"lit-cnn: there is room again; {checkpoint} is of step ")
    (run,) = runs_in(small_disk / "mlruns" / "mlflow.db")
    assert_same_run(run, longer_reference)


def test_snapshots_that_find_no_room_are_kept_until_there_is_some(
    small_disk: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cyclic = (*MUCH_LONGER, "--model.schedule=cyclic", "--model.cycles=20", "--model.warmup_fraction=0")
    arguments = (*cyclic, f"--tracking_uri=sqlite:///{small_disk}/mlruns/mlflow.db", "--on_full_disk=continue")
    log = tmp_path / "log.txt"
    with background_fit(tmp_path, *arguments) as process:
        filler = fill_during(process, small_disk, log)
        (folder,) = small_disk.glob("mlruns/journal/*/")
        stored = len(list(folder.glob("snapshot_*.ckpt")))
        missed = epochs_done(log)
        wait_until(lambda: epochs_done(log) >= missed + 6)
        assert len(list(folder.glob("snapshot_*.ckpt"))) == stored < 15
        filler.unlink()
        assert process.wait(120) == 0, log.read_text()
    reference = run_of_its_own(tmp_path_factory, "cyclic_reference", *cyclic, "--checkpoint_seconds=60")
    (run,) = runs_in(small_disk / "mlruns" / "mlflow.db")
    assert_same_run(run, reference)
    for number in range(1, 21):
        name = f"checkpoints/snapshot_{number}.ckpt"
        assert same_weights(run.artifacts / name, reference.artifacts / name)


def test_a_run_at_whose_end_the_disk_is_still_full_fails_and_a_resume_goes_on(
    small_disk: Path, longer_reference: TrackedRun, tmp_path: Path
) -> None:
    arguments = (*MUCH_LONGER, f"--tracking_uri=sqlite:///{small_disk}/mlruns/mlflow.db", "--on_full_disk=continue")
    log = tmp_path / "log.txt"
    with background_fit(tmp_path, *arguments) as process:
        filler = fill_during(process, small_disk, log)
        assert process.wait(240) == 1
    text = log.read_text()
    assert "Traceback" not in text and "epoch 40/40" in text
    last = text.splitlines()[-1]
    assert last.startswith(f"lit-cnn: error: {small_disk}/mlruns/journal/")
    told = re.search(
        r"not stored: the weights after step (\d+).*not stored: [\d,]+ values of metrics from step (\d+) on", last
    )
    assert told and 0 < int(told[1]) <= int(told[2]) < 320
    assert "make room" in last and "--resume auto" in last

    filler.unlink()
    assert main(["sync", f"--tracking_uri=sqlite:///{small_disk}/mlruns/mlflow.db"]) == 0
    (run,) = runs_in(small_disk / "mlruns" / "mlflow.db")
    assert run.status == "FAILED"
    assert [step for step, _ in run.history["train/loss_step"]] == list(range(int(told[2])))
    assert fit(*arguments, "--resume=auto") == 0
    (run,) = runs_in(small_disk / "mlruns" / "mlflow.db")
    assert_same_run(run, longer_reference)


def fill_during(process: Forked, disk: Path, log: Path) -> Path:
    """Fills the disk after a run's first checkpoint; returns once the run has said so."""
    wait_until(lambda: any(disk.glob("mlruns/journal/*/last.ckpt")), timeout=120)
    filler = fill(disk)
    wait_until(lambda: "training goes on" in log.read_text() or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    return filler


def epochs_done(log: Path) -> int:
    return max((int(number) for number in re.findall(r"^epoch (\d+)/", log.read_text(), re.MULTILINE)), default=0)


def test_a_run_whose_checkpoints_will_not_fit_does_not_begin(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--model.arch=resnet18", f"--tracking_uri=sqlite:///{small_disk}/mlruns/mlflow.db")
    assert fit(*arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "has room for" in line and "checkpoints take" in line and "MB; make room" in line
    assert runs_in(small_disk / "mlruns" / "mlflow.db") == []


def test_room_is_asked_for_the_snapshots_too(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = f"--tracking_uri=sqlite:///{small_disk}/mlruns/mlflow.db"
    many = ("--model.schedule=cyclic", "--model.cycles=60", "--trainer.max_epochs=60")
    assert fit(*many, store) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "has room for" in line and "checkpoints take" in line


def test_a_batch_that_does_not_fit_into_memory_names_the_batch_size(tmp_path: Path) -> None:
    options = ["--data.image_size=512", "--data.batch_size=256", "--data.limit_train=256", "--model.arch=resnet18"]
    command = [sys.executable, "-m", "lit_cnn", "fit", *SHORT, *options]
    # 12 GB of addresses hold the libraries, and not the batch's activations.
    limited = ["bash", "-c", 'ulimit -v 12000000; exec "$@"', "bash", *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(limited, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2
    assert line.startswith("lit-cnn: error: --data.batch_size 256: a batch does not fit into memory")
    assert "--find_batch_size true" in line
    assert not list(tmp_path.glob("mlruns/journal/*/"))  # it is found before a run is opened
    # Later, when something else has taken the memory, the run fails in the same words.
    with (
        pytest.raises(RunFailedError, match="batch_size=256: a batch does not fit into memory"),
        failures_in_words(256),
    ):
        raise MemoryError


def test_other_errors_are_not_taken_for_want_of_room() -> None:
    for error in (RuntimeError("shapes differ"), OSError(2, "No such file or directory"), ValueError("x")):
        with pytest.raises(type(error)) as passed_on, failures_in_words(1):
            raise error
        assert passed_on.value is error


def test_the_largest_batch_is_said_and_nothing_is_tracked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--find_batch_size=true") == 0
    printed = capsys.readouterr()
    assert "--data.batch_size 128; the training set has no more images" in printed.out
    assert printed.err.count("augmenting image by image: Affine cannot be done to a whole batch") == 1
    assert tracked_runs(tmp_path) == []
    assert not list(tmp_path.glob("mlruns/journal/*")) and not list(tmp_path.glob(".scale_batch_size*"))


@pytest.mark.parametrize(
    ("num_bytes", "words"), [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (1_500_000, "1.5 MB"), (5e15, "5000.0 TB")]
)
def test_sizes_are_read_easily(num_bytes: float, words: str) -> None:
    assert size_in_words(num_bytes) == words
