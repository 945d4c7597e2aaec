"""How far a training run is: a line per epoch, and beneath them in a terminal a bar over the whole run."""

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar, Timer

from lit_cnn.core.bars import Bar, columns, say
from lit_cnn.core.words import about, counted, duration
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.steps import accumulated

_ESTIMATE_AFTER = 3.0  # seconds of training; by then steps take what they take
_LEAST_TOLD = 20.0  # seconds; who waits for less needs no estimate
_EVALUATION_COST = 1 / 3  # of a training step, for the same image: no way back, no step of the optimizer
_APART: ContextVar[float] = ContextVar("seconds between the lines of two epochs", default=0.0)


@contextmanager
def lines_apart(seconds: float) -> Iterator[None]:
    """Leaves out the lines of epochs that end within so many seconds of the one before, or of the beginning."""
    token = _APART.set(seconds)
    try:
        yield
    finally:
        _APART.reset(token)


class FitProgress(ProgressBar):
    """A line per epoch on stderr, and after the first steps once how long the whole run is going to take.

    In a terminal also a bar: images of the whole run, the time left, the loss; likewise for a validation or a test.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Bar | None = None
        self._epoch_images = 0  # that an epoch trains on; 0 where nobody knows
        self._images = 0
        self._since: tuple[int, float] | None = None  # images and time at the end of the first batch
        self._started = 0.0
        self._epoch_began = 0.0
        self._first = (0, 0, 0)  # epoch, step and image at which this fit began
        self._said = 0.0  # when a line was printed last
        self._is_validated = False
        self._has_told = False

    def enable(self) -> None:
        """Shows progress."""
        self._enabled = True

    def disable(self) -> None:
        """Shows nothing: Lightning calls this on all processes but the first."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar at the place where a resumed run stands."""
        self._epoch_images = _images_of_epoch(trainer)
        batches_done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        share = (batches_done / max(1, int(trainer.num_training_batches))) % 1
        self._images = round((trainer.current_epoch + share) * self._epoch_images)
        self._first = (trainer.current_epoch, trainer.global_step, self._images)
        self._since, self._has_told = None, False
        self._started = self._epoch_began = self._said = time.monotonic()
        self._open(self._total(trainer), self._images)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch's images, draws the bar if it is time, and tells once how long it will take."""
        self._images += len(batch[1]) * trainer.world_size
        if not self._enabled:
            return
        if self._since is None:
            self._since = (self._images, time.monotonic())  # the first batch waits for loaders and kernels
        elif not self._has_told and time.monotonic() - self._since[1] >= _ESTIMATE_AFTER:
            self._tell_expected(trainer, validated=trainer.current_epoch > 0)
        if self._bar is not None:
            left = self._seconds_left(trainer)
            more = [
                *([f"{duration(round(left))} left"] if math.isfinite(left) else []),
                f"loss {getattr(pl_module, 'last_loss', math.nan):.3f}",
                f"{self._rate:,.0f} img/s",
            ]
            self._bar.show(_epoch(trainer), self._images, more)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes when the epoch began."""
        self._epoch_began, self._is_validated = time.monotonic(), False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the epoch's line."""
        # On every process: with several devices, they add up what they have.
        means = pl_module.train_means() if isinstance(pl_module, LitClassifier) else {}
        if not self._enabled:
            return
        left = self._seconds_left(trainer)
        # What was validated before says nothing of this epoch.
        validated = {name: value for name, value in trainer.callback_metrics.items() if self._is_validated}
        values: dict[str, Any] = {**validated, **means}
        width = columns() if sys.stderr.isatty() else None
        seconds = time.monotonic() - self._epoch_began
        if time.monotonic() - self._said >= _APART.get():
            self._said = time.monotonic()
            say(epoch_line(_epoch(trainer), values, seconds, self._rate, left, width))
        if not self._has_told and left >= _LEAST_TOLD:
            self._tell_expected(trainer, validated=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens a bar for what is no part of a training run."""
        if trainer.state.fn != "fit":
            self._open_evaluation(trainer, trainer.val_dataloaders, trainer.num_val_batches)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Shows how far the validation is."""
        if trainer.state.fn != "fit":
            self._count(trainer, batch, "validating")
        elif self._bar is not None and args and not trainer.sanity_checking:
            self._bar.show(f"{_epoch(trainer)}, validating", self._images)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the bar of a validation by itself."""
        self._is_validated = True
        if trainer.state.fn != "fit":
            self._close()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the test's bar."""
        self._open_evaluation(trainer, trainer.test_dataloaders, trainer.num_test_batches)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Shows how far the test is."""
        self._count(trainer, batch, "testing")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the test's bar."""
        self._close()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Closes the bar, so that the error stands on a line of its own."""
        self._close()

    def _open(self, total: int | None, done: int = 0, delay: float = 0.0) -> None:
        self._close()
        if self._enabled:
            self._bar = Bar(total, initial=done, delay=delay)

    def _open_evaluation(self, trainer: pl.Trainer, loader: Any, num_batches: Any) -> None:
        total = None
        if isinstance(getattr(trainer, "datamodule", None), ImageDataModule):
            sizes = [len(batch) for batch in loader.batch_sampler]
            total = sum(sizes[: int(num_batches[0])]) * trainer.world_size
        self._images = 0
        self._open(total, delay=1.0)

    def _count(self, trainer: pl.Trainer, batch: Any, what: str) -> None:
        self._images += len(batch[1]) * trainer.world_size
        if self._bar is not None:
            self._bar.show(what, self._images)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    @property
    def _rate(self) -> float:
        """Images a second, validation included; of the steps after the first, if there are any."""
        images, since = self._since or (self._images, self._started)
        if images == self._images:
            return 0.0
        return (self._images - images) / max(time.monotonic() - since, 1e-9)

    def _total(self, trainer: pl.Trainer) -> int | None:
        """Returns the images of the whole run, if epochs or steps say how many; time may end it earlier."""
        epochs, steps = trainer.max_epochs or -1, trainer.max_steps
        batches = max(1, int(trainer.num_training_batches)) if math.isfinite(trainer.num_training_batches) else 0
        totals = [epochs * self._epoch_images] if epochs > 0 else []
        if steps > 0 and batches:
            totals.append(round(steps * accumulated(trainer, 0) / batches * self._epoch_images))
        return min(totals) if totals and self._epoch_images else None

    def _seconds_left(self, trainer: pl.Trainer) -> float:
        """Returns how long the run still trains; infinite where nobody knows."""
        total, rate = self._total(trainer), self._rate
        left = max(0, total - self._images) / rate if total is not None and rate else math.inf
        timers = [each for each in trainer.callbacks if isinstance(each, Timer)]  # type: ignore[attr-defined]
        limits = [each.time_remaining() for each in timers]
        return min([left, *(limit for limit in limits if limit is not None)])

    def _tell_expected(self, trainer: pl.Trainer, validated: bool) -> None:
        left = self._seconds_left(trainer)
        if not math.isfinite(left):
            return
        self._has_told = True
        data = getattr(trainer, "datamodule", None)
        if not validated and isinstance(data, ImageDataModule):
            left *= 1 + _EVALUATION_COST * len(data.splits.val) / max(1, self._epoch_images)
        seconds = time.monotonic() - self._started + left
        if seconds < _LEAST_TOLD:
            return
        epoch, step, image = self._first
        if trainer.max_steps > 0:
            what = counted(trainer.max_steps - step, "step")
        else:
            what = counted((trainer.max_epochs or 0) - epoch, "epoch")
        say(f"about {about(seconds)} for {f'the {what} that are left' if image else what}")


def epoch_line(
    epoch: str,
    values: Mapping[str, Any],
    seconds: float,
    rate: float,
    seconds_left: float,
    width: int | None = None,
) -> str:
    """Returns what is printed at the end of an epoch.

    Args:
        epoch: Which.
        values: Metric -> value.
        seconds: How long it took.
        rate: Images a second; 0 where it is not known.
        seconds_left: How long the run still trains; infinite where nobody knows.
        width: Columns of the terminal, in which a bar has the time left: what finds no room is left out. None for a
            log, which has everything.
    """
    digits = {"train/loss": 3, "val/loss": 3, "val/acc": 4}
    shown = [f"{name} {float(values[name]):.{places}f}" for name, places in digits.items() if name in values]
    parts = [epoch, *shown, duration(seconds), *([f"{rate:,.0f} img/s"] if rate else [])]
    if width is None:
        return "  ".join([*parts, *([f"{duration(round(seconds_left))} left"] if 0 < seconds_left < math.inf else [])])
    while len(parts) > 2 and len("  ".join(parts)) >= width:
        parts.pop()
    return "  ".join(parts)


def _images_of_epoch(trainer: pl.Trainer) -> int:
    """Returns how many images an epoch trains on, over all devices; 0 where the loader does not say."""
    batches = getattr(trainer.train_dataloader, "batch_sampler", None)
    sizes = getattr(batches, "sizes", None)
    if sizes is None or not math.isfinite(trainer.num_training_batches):
        return 0
    return int(sum(sizes[: int(trainer.num_training_batches)]) * trainer.world_size)


def _epoch(trainer: pl.Trainer) -> str:
    """Returns which epoch this is, and of how many, if that is known: steps or time may end a run."""
    epochs = trainer.max_epochs or -1
    number = str(trainer.current_epoch + 1)
    return f"epoch {number.rjust(len(str(epochs)))}/{epochs}" if epochs > 0 else f"epoch {number}"
