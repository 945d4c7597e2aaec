"""How far a training run is: one bar in a terminal, a line per epoch elsewhere."""

import math
import sys
import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.classifier import LitClassifier


class FitProgress(ProgressBar):
    """One bar over the whole run, in images: epoch, loss, val/acc, images/s and the time left for all epochs.

    Where standard error is no terminal, a line per epoch instead.

    Args:
        refresh_seconds: The bar is drawn at most this often, so that it costs nothing per step.
    """

    def __init__(self, refresh_seconds: float = 0.25) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self._enabled = True
        self._bar: Any = None
        self._drawn = 0.0
        self._images = 0
        self._first_images = 0
        self._started = 0.0

    def enable(self) -> None:
        """Shows progress."""
        self._enabled = True

    def disable(self) -> None:
        """Shows nothing: Lightning calls this on all processes but the first."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar at the place where a resumed run stands."""
        batch_size, epoch_images = self._sizes(trainer)
        done_in_epoch = trainer.fit_loop.epoch_loop.batch_progress.current.completed * batch_size
        self._images = trainer.current_epoch * epoch_images + done_in_epoch % epoch_images
        self._first_images = self._images
        self._started = time.monotonic()
        if self._enabled and sys.stderr.isatty():
            max_epochs = trainer.max_epochs or -1
            total = max_epochs * epoch_images if max_epochs > 0 else None
            self._bar = tqdm(
                total=total, initial=self._images, unit="img", unit_scale=True, dynamic_ncols=True, smoothing=0.05
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch's images and draws the bar if it is time."""
        self._images += len(batch[1]) * trainer.world_size
        if self._bar is not None and time.monotonic() - self._drawn >= self.refresh_seconds:
            self._draw(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says that the bar stands still for the validation."""
        if self._bar is not None:
            self._bar.set_description(f"{_epoch(trainer)} validating")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the bar, or prints the epoch's line."""
        # On every process: with several devices, they add up what they have.
        means = pl_module.train_means() if isinstance(pl_module, LitClassifier) else {}
        if self._bar is not None:
            self._draw(trainer, pl_module)
        elif self._enabled:
            print(self._line(trainer, means), file=sys.stderr, flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Closes the bar, so that the error stands on a line of its own."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._drawn = time.monotonic()
        shown = {"loss": f"{getattr(pl_module, 'last_loss', math.nan):.3f}"}
        if "val/acc" in trainer.callback_metrics:
            shown["val/acc"] = f"{float(trainer.callback_metrics['val/acc']):.4f}"
        self._bar.set_description(_epoch(trainer), refresh=False)
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(self._images - self._bar.n)
        self._bar.refresh()

    def _line(self, trainer: pl.Trainer, means: dict[str, float]) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = (self._images - self._first_images) / seconds
        total = max(trainer.max_epochs or 0, 0) * self._sizes(trainer)[1]
        values: dict[str, Any] = {**trainer.callback_metrics, **means}
        shown = [name for name in ("train/loss", "val/loss", "val/acc") if name in values]
        metrics = "  ".join(f"{name} {float(values[name]):.4f}" for name in shown)
        seconds_left = max(0, total - self._images) / max(rate, 1e-9)
        left = f"  left {timedelta(seconds=round(seconds_left))}" if total else ""
        return f"{_epoch(trainer)}  {metrics}  {rate:,.0f} img/s{left}"

    @staticmethod
    def _sizes(trainer: pl.Trainer) -> tuple[int, int]:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            return 1, int(trainer.num_training_batches)
        return data.batch_size, len(data.splits.train)


def _epoch(trainer: pl.Trainer) -> str:
    """Returns which epoch this is, and of how many, if that is known: steps or time may end a run."""
    of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{of}"
