"""A signal at every place of a run: how the run ends, and what a resume makes of it."""

import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import psutil
import pytest
import torch

from lit_cnn.training.callbacks import RunCheckpoints, RunInterrupted
from tests.cli.test_resume import LONGER, assert_same_run, background_fit, only_run, statuses
from tests.faults import wait_until
from tests.runs import TrackedRun, fit, run_of_its_own, tracked_runs

Place = Literal["step", "after step", "last step", "after last step", "validation", "after validation", "test"]

# Two batches of validation and of test, so that a signal may come between them.
PACE = (*LONGER, "--trainer.max_epochs=4", "--data.val_fraction=0.3", "--data.test_fraction=0.3")
TWO_DEVICES = ("--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp")

pytestmark = pytest.mark.usefixtures("empty_store")


class SignalAt(pl.Callback):
    """Sends a process of the run a signal, in the second epoch and from within.

    Args:
        place: Where in the epoch.
        number: Which signal.
        rank: Of the process; -1 sends it to all of them, as a terminal does.
    """

    def __init__(self, place: Place, number: int, rank: int = 0) -> None:
        self.place = place
        self.number = number
        self.rank = rank

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Watches the network's own hook, which comes after those of all callbacks."""

        def on_train_batch_end(outputs: Any, batch: Any, step: int) -> None:
            self._send_at("after last step" if _is_last(trainer, step) else "after step", trainer, step)

        pl_module.on_train_batch_end = on_train_batch_end  # type: ignore[assignment, method-assign]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, step: int) -> None:
        """Sends it before a step."""
        self._send_at("last step" if _is_last(trainer, step) else "step", trainer, step)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, step: int, *args: Any
    ) -> None:
        """Sends it between two batches, or after the last one."""
        self._send_at("after validation" if step else "validation", trainer)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, step: int, *args: Any
    ) -> None:
        """Sends it between the two batches of the test after training."""
        if self.place == "test" and step == 0:
            os.kill(os.getpid(), self.number)

    def _send_at(self, place: Place, trainer: pl.Trainer, step: int = 2) -> None:
        first = place not in ("step", "after step") or step == 2
        if place == self.place and first and trainer.current_epoch == 1 and trainer.global_rank == max(self.rank, 0):
            os.kill(os.getpid() if self.rank >= 0 else 0, self.number)


def _is_last(trainer: pl.Trainer, step: int) -> bool:
    return step == trainer.num_training_batches - 1


def test_a_resume_misses_no_gradient_and_no_validation_within_an_epoch(tmp_path: Path) -> None:
    # Of eight batches the third is half a step, and the fourth is followed by a validation.
    options = (*PACE, "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=0.5")
    assert fit(*options) == 0
    assert fit(*options, *signal_at("step", signal.SIGTERM)) == 128 + signal.SIGTERM
    assert fit(*options, "--resume=auto") == 0
    whole, resumed = tracked_runs(tmp_path, "fit")
    assert len(whole.history["val/acc"]) == 8
    assert_same_run(resumed, whole)


def test_a_signal_that_comes_while_devices_agree_counts_at_the_next_step() -> None:
    checkpoints = RunCheckpoints(every_seconds=math.inf)

    def reduce(own: torch.Tensor, reduce_op: str) -> torch.Tensor:
        checkpoints.signal_number = signal.SIGTERM
        return own

    epoch_loop = SimpleNamespace(
        batch_idx=0, batch_progress=SimpleNamespace(is_last_batch=False), _should_accumulate=lambda: False
    )
    trainer: Any = SimpleNamespace(
        world_size=2,
        strategy=SimpleNamespace(root_device="cpu", reduce=reduce),
        fit_loop=SimpleNamespace(epoch_loop=epoch_loop),
        check_val_every_n_epoch=1,
        val_check_batch=8,
    )
    checkpoints.on_train_batch_end(trainer, pl.LightningModule())
    with pytest.raises(RunInterrupted, match=str(int(signal.SIGTERM))):
        checkpoints.on_train_batch_end(trainer, pl.LightningModule())


def signal_at(place: Place, number: int, rank: int = 0) -> tuple[str, ...]:
    """Returns the options that send a signal."""
    name = "--trainer.callbacks"
    values = {"place": place, "number": int(number), "rank": rank}
    return (f"{name}+={__name__}.SignalAt", *(f"{name}.{option}={value}" for option, value in values.items()))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> TrackedRun:
    """The uninterrupted run."""
    return run_of_its_own(tmp_path_factory, "reference", *PACE)


@pytest.mark.parametrize(
    ("number", "place"), [(signal.SIGTERM, place) for place in get_args(Place)] + [(signal.SIGINT, "validation")]
)
def test_a_signal_ends_the_run_wherever_it_comes(
    number: signal.Signals, place: Place, reference: TrackedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(*PACE, *signal_at(place, number)) == 128 + number
    assert f"stopped by {number.name}" in capsys.readouterr().err.splitlines()[-1]
    wait_until(lambda: statuses(tmp_path) == ["KILLED"])

    assert fit(*PACE, "--resume=auto") == 0
    assert_same_run(only_run(tmp_path), reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "rank", "place"),
    [(signal.SIGTERM, 1, "after step"), (signal.SIGINT, 0, "validation"), (signal.SIGINT, -1, "step")],
)
def test_two_devices_stop_at_the_same_step(
    number: signal.Signals, rank: int, place: Place, two_devices: TrackedRun, tmp_path: Path
) -> None:
    with background_fit(tmp_path, *PACE, *TWO_DEVICES, *signal_at(place, number, rank)) as process:
        assert process.wait(120) == 128 + number
        wait_until(lambda: not running(process.pid))
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in log and f"stopped by {number.name}" in log.splitlines()[-1]
    wait_until(lambda: statuses(tmp_path) == ["KILLED"])

    with background_fit(tmp_path, *PACE, *TWO_DEVICES, "--resume=auto") as process:
        assert process.wait(120) == 0
    assert_same_run(only_run(tmp_path), two_devices)


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory: pytest.TempPathFactory) -> TrackedRun:
    """The uninterrupted run on two devices."""
    folder = tmp_path_factory.mktemp("two_devices")
    with background_fit(folder, *PACE, *TWO_DEVICES) as process:
        assert process.wait(120) == 0
    return only_run(folder)


def running(group: int) -> list[int]:
    """Returns the processes of a group that run."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group:
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found
