"""`best.ckpt` and `last.ckpt` of a run, and its end by a signal."""

import contextlib
import copy
import itertools
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.callbacks import Checkpoint
from tqdm import tqdm

from lit_cnn.core.files import CANNOT_WRITE
from lit_cnn.training.callbacks.averaging import averaged
from lit_cnn.training.checkpoints import save_checkpoint
from lit_cnn.training.metrics import log_now

# Epochs shorter than that many seconds, as those on cached features, share a checkpoint: to write and sync it would
# take longer than to train them, and a kill costs no more than they did.
_SHORT_EPOCH = 1.0
_SAY_EVERY = 60.0  # seconds between two lines about a full disk
_FOLDER = "checkpoints"  # of a fit that is no tracked run


class RunInterrupted(BaseException):
    """A signal asked the run to stop; raised between two steps, after a checkpoint.

    Args:
        signal_number: Which signal.
        at_once: Raised in the midst of a step, by a second signal: the other processes of a run do not know of it.
    """

    def __init__(self, signal_number: int, at_once: bool = False) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number
        self.at_once = at_once


class RunCheckpoints(Checkpoint):
    """Keeps the best and the last checkpoint of a run, `best.ckpt` and `last.ckpt`.

    Lightning's own ModelCheckpoint writes either by time or at the end of epochs, and at an epoch's end before that
    epoch's metrics reach the logger; a kill in between would lose them. Here the journal is durable first.

    A tracked run says where they go. In any other fit that is a new folder `checkpoints` (`checkpoints_2`, …) below the
    trainer's `log_dir`, without a logger its `default_root_dir`; a fit that resumes from a checkpoint in such a folder
    goes on there.

    Args:
        monitor: The metric that says which epoch is best.
        mode: `max` or `min`.
        every_seconds: Seconds of training after which `last.ckpt` is written within an epoch too.
        on_full_disk: `stop` ends the run where a checkpoint finds no room; `continue` keeps the one before, says so,
            trains on and tries again at the next one. Where the last of all finds none, the run ends too.
        tracked: A tracked run says where checkpoints go, by setting `folder`; until then none is written.

    Attributes:
        folder: Where they go; None as long as that is not known.
    """

    def __init__(
        self,
        monitor: str = "val/acc",
        mode: Literal["max", "min"] = "max",
        every_seconds: float = 60.0,
        on_full_disk: Literal["stop", "continue"] = "stop",
        tracked: bool = False,
    ) -> None:
        self.monitor = monitor
        self.mode = mode
        self.every_seconds = every_seconds
        self.on_full_disk = on_full_disk
        self.tracked = tracked
        self.folder: Path | None = None
        self.best: dict[str, float] = {}
        self.is_tied = False  # whether an earlier epoch is as good as the best by `monitor`
        self.signal_number: int | None = None  # that this process received
        self._agreed: int | None = None  # that all processes of the run know of
        self._written = time.monotonic()
        self._unwritten: dict[str, dict[str, Any]] = {}  # by the names that the files will have
        self._stored_step = 0
        self._has_said_full = False
        self._said = -math.inf

    @property
    def best_path(self) -> Path | None:
        """The best checkpoint's file, if there is one yet."""
        return self.folder / "best.ckpt" if self.folder and self.best else None

    @property
    def best_model_path(self) -> str:
        """The same as text, by which `Trainer.test(ckpt_path="best")` finds it."""
        return str(self.best_path or "")

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on in the folder of the checkpoint that a fit resumes from, if it is one of this trainer's."""
        if trainer.state.fn != "fit" or self.tracked or self.folder is not None or not trainer.ckpt_path:
            return
        resumed = Path(trainer.ckpt_path).resolve().parent
        if resumed.parent == _place(trainer).resolve() and resumed.name.startswith(_FOLDER):
            self.folder = resumed

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds a folder, outside of a tracked run, and says which."""
        if self.tracked or self.folder is not None:
            return
        place = _place(trainer)
        folder = _new_folder(place) if trainer.is_global_zero else None
        self.folder = trainer.strategy.broadcast(folder)
        if trainer.is_global_zero:
            self._say(f"best.ckpt and last.ckpt go to {self.folder}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps `best.ckpt` and logs `best/…` if this epoch is the best so far.

        Of epochs that are equal the one with the lower `val/loss`: with a dozen val images many have the same accuracy,
        and the first of them may be the third of twenty.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking or self.folder is None:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        metrics[self.monitor] = self._monitored(trainer)
        if self.best and not self._is_better(metrics):
            return
        self.is_tied = bool(self.best) and metrics[self.monitor] == self.best[self.monitor]
        self.best = {**metrics, "epoch": trainer.current_epoch}
        self.keep(trainer, "best.ckpt")
        log_now(trainer, {f"best/{name}": value for name, value in self.best.items()})

    def keep(self, trainer: pl.Trainer, name: str) -> None:
        """Writes what was just validated, weights only, into the run's folder.

        After an epoch of less than a second, or without room for it, it stays in memory, to be written with the next
        `last.ckpt`.

        Args:
            trainer: In its validation.
            name: Of the file.

        Raises:
            OSError: If there is no room, and the run is to stop then.
        """
        if self.folder is None:
            return
        with averaged(trainer):  # they are what was validated
            self._unwritten[name] = trainer._checkpoint_connector.dump_checkpoint(weights_only=True)
            if trainer.world_size > 1:
                self._write_kept(trainer)
                trainer.strategy.barrier("RunCheckpoints.keep")
                return
            try:
                if self._is_due(trainer, _SHORT_EPOCH):
                    with self._room_or_later():
                        self._write_kept(trainer)
            finally:
                # What waits is to stay as it is while the network trains on, and not to fill a GPU.
                if name in self._unwritten:
                    self._unwritten[name] = copy.deepcopy(move_data_to_device(self._unwritten[name], "cpu"))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the step of the checkpoint that the run goes on from, and the first process's best epoch."""
        self._stored_step = trainer.global_step
        self.best = trainer.strategy.broadcast(self.best)  # another host may not see the file of the best

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Writes `last.ckpt` if it is time, or if a signal came; the latter then ends the run."""
        if not _can_resume_here(trainer):
            return
        if self._is_due(trainer, self.every_seconds):
            self._write_last(trainer)
        self._stop_if_agreed()

    def on_validation_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Ends the run if a signal came; `last.ckpt` is then the one before.

        Several devices validate to the end: one may have a batch more than the others, and nobody to agree with.
        """
        if trainer.world_size == 1:
            self.stop_if_signalled()

    def on_test_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Does the same in the test after training."""
        self.on_validation_batch_start(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes `last.ckpt`; after an epoch of less than a second only if it is the last one."""
        steps, epochs = trainer.max_steps, trainer.max_epochs or -1
        is_last = trainer.should_stop or 0 <= steps <= trainer.global_step or 0 <= epochs <= trainer.current_epoch + 1
        if self._is_due(trainer, _SHORT_EPOCH) or is_last:
            self._write_last(trainer, is_last)
        self._stop_if_agreed()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes what is still to be written."""
        self._write_kept(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Writes what is still to be written; where it cannot be, the exception gets a note of it."""
        try:
            self._write_kept(trainer)
        except OSError as error:
            exception.add_note(f"not stored: {', '.join(self._unwritten)} ({error.strerror})")

    def state_dict(self) -> dict[str, Any]:
        """Returns the best metrics so far."""
        return {"best": self.best, "is_tied": self.is_tied}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best metrics so far, where the run goes on that they belong to.

        A run that starts from another's checkpoint has no best epoch yet: the file of that one is the other run's.
        """
        if self.folder is not None and (self.folder / "best.ckpt").exists():
            self.best = dict(state_dict["best"])
            self.is_tied = state_dict.get("is_tied", False)  # 0.3 and before kept the first of them

    def _monitored(self, trainer: pl.Trainer) -> float:
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ValueError(f"no metric {self.monitor} to monitor; there are {known}")
        return float(trainer.callback_metrics[self.monitor])

    def _is_better(self, metrics: Mapping[str, float]) -> bool:
        """Whether an epoch's metrics beat the best ones; NaN beats nothing."""
        new, old = metrics[self.monitor], self.best[self.monitor]
        if new == old:
            return metrics.get("val/loss", math.inf) < self.best.get("val/loss", math.inf)
        return new > old if self.mode == "max" else new < old

    def _is_due(self, trainer: pl.Trainer, seconds: float) -> bool:
        """Tells whether to write, since a signal came or since it is time; several devices agree on both."""
        number = self.signal_number or 0  # read once: a signal that comes from here on is for the next time
        due = number > 0 or time.monotonic() - self._written >= seconds
        if trainer.world_size > 1:
            own = torch.tensor([number, due], device=trainer.strategy.root_device)
            number, due = trainer.strategy.reduce(own, reduce_op="max").tolist()
        self._agreed = number or None
        return bool(due)

    def _stop_if_agreed(self) -> None:
        if self._agreed is not None:
            raise RunInterrupted(self._agreed)

    def _write_last(self, trainer: pl.Trainer, is_last: bool = False) -> None:
        if self.folder is None:
            return
        with self._room_or_later(is_last):
            for logger in trainer.loggers if trainer.is_global_zero else ():
                if hasattr(logger, "flush"):
                    logger.flush()
            self._write_kept(trainer)  # first, as last.ckpt tells of it
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            _write(trainer, checkpoint, self.folder / "last.ckpt")
            trainer.strategy.barrier("RunCheckpoints.last")
            self._stored_step = trainer.global_step
            if self._has_said_full:
                self._has_said_full = False
                self._say(f"there is room again; {self.folder / 'last.ckpt'} is of step {self._stored_step}")
        self._written = time.monotonic()

    def _write_kept(self, trainer: pl.Trainer) -> None:
        if self.folder is None:
            return
        for name, checkpoint in list(self._unwritten.items()):
            _write(trainer, checkpoint, self.folder / name)
            del self._unwritten[name]

    @contextlib.contextmanager
    def _room_or_later(self, is_last: bool = False) -> Iterator[None]:
        """Lets training go on where there is no room, if that is wanted and there is a next time."""
        try:
            yield
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
            if is_last or self.on_full_disk == "stop":
                error.add_note(f"not stored: the weights after step {self._stored_step}")
                raise
            if time.monotonic() - self._said >= _SAY_EVERY:
                self._said, self._has_said_full = time.monotonic(), True
                kept = f"the checkpoint of step {self._stored_step}" if self._stored_step else "no checkpoint yet"
                self._say(f"{error.filename}: {error.strerror}; training goes on, with {kept}, and tries again")

    @staticmethod
    def _say(line: str) -> None:
        tqdm.write(f"lit-cnn: {line}", file=sys.stderr)

    def stop_if_signalled(self) -> None:
        """Ends the run if a signal came.

        Raises:
            RunInterrupted: If so.
        """
        if self.signal_number is not None:
            raise RunInterrupted(self.signal_number)


def _write(trainer: pl.Trainer, checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint with its digest, whichever plugin the trainer has for its own."""
    if trainer.is_global_zero:
        save_checkpoint(checkpoint, path)


def _place(trainer: pl.Trainer) -> Path:
    return Path(trainer.log_dir or trainer.default_root_dir)


def _new_folder(place: Path) -> Path:
    """Makes the first of `checkpoints`, `checkpoints_2`, … that is not there: nothing of another fit is replaced."""
    for number in itertools.count(1):
        folder = place / (_FOLDER if number == 1 else f"{_FOLDER}_{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    return folder


def _can_resume_here(trainer: pl.Trainer) -> bool:
    """Tells whether a resume would miss nothing: a validation that is due, or gradients that wait for more of them."""
    loop = trainer.fit_loop.epoch_loop
    batches = 1 + (loop.total_batch_idx if trainer.check_val_every_n_epoch is None else loop.batch_idx)
    every = trainer.val_check_batch
    validates = loop.batch_progress.is_last_batch or (every is not None and batches % every == 0)
    return not validates and not loop._should_accumulate()
