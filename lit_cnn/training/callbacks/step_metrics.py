"""The loss and the learning rate of single steps, an epoch's speed, and how long it waited for images."""

import os
import sys
import time
from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.metrics import log_now

# A run that waits for data for a larger share of an epoch says so, unless the epoch is over before anybody minds.
_MOST_WAITING, _LEAST_SECONDS = 0.2, 3.0


class StepMetrics(pl.Callback):
    """Logs `train/loss_step` and `lr` every `log_every_n_steps` steps, speed and waiting for data every epoch.

    `time/images_per_second` is the speed over all devices, validation included. `data/wait_fraction` is the share of
    the time between the first and the last training batch of an epoch in which training waited for the next batch; so
    the start of worker processes does not count.
    """

    def __init__(self) -> None:
        self._epoch_started = 0.0
        self._epoch_images = 0
        self._first_batch_started = 0.0
        self._batch_ended: float | None = None
        self._waited = 0.0
        self._has_warned = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the epoch's clocks."""
        self._epoch_started, self._epoch_images = time.monotonic(), 0
        self._batch_ended, self._waited = None, 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        """Adds the time since the last batch's end to that of waiting."""
        now = time.monotonic()
        if self._batch_ended is None:
            self._first_batch_started = now
        else:
            self._waited += now - self._batch_ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the step's loss and learning rate."""
        self._epoch_images += len(batch[1])
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a connector
        makes_step = not trainer.fit_loop.epoch_loop._should_accumulate()
        if makes_step and trainer.global_step % every == 0 and isinstance(pl_module, LitClassifier):
            metrics = {"train/loss_step": pl_module.last_loss}
            if not pl_module.solves_head:
                metrics["lr"] = pl_module.learning_rate
            log_now(trainer, metrics)
        _check_sender(trainer)
        self._batch_ended = time.monotonic()

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Checks the sender to MLflow, which a long validation would put off."""
        _check_sender(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the epoch's speed and waiting; says once if more than a fifth of the time was waiting."""
        if self._epoch_images == 0 or self._batch_ended is None:
            return
        seconds = max(time.monotonic() - self._epoch_started, 1e-9)
        waited = self._waited / max(self._batch_ended - self._first_batch_started, 1e-9)
        metrics = {
            "time/images_per_second": self._epoch_images * trainer.world_size / seconds,
            "data/wait_fraction": waited,
        }
        log_now(trainer, metrics)
        if waits_too_long(waited, seconds) and not self._has_warned and trainer.is_global_zero:
            self._has_warned = True
            workers = getattr(getattr(trainer, "datamodule", None), "num_workers", 0)
            tqdm.write(
                f"lit-cnn: training waited for images {waited:.0%} of the time; more num_workers (now {workers} "
                f"on {os.cpu_count()} cores), a cheaper augment or smaller files would help",
                file=sys.stderr,
            )


def _check_sender(trainer: pl.Trainer) -> None:
    if isinstance(trainer.logger, JournalLogger) and trainer.is_global_zero:
        trainer.logger.check_sender()


def waits_too_long(fraction: float, seconds: float) -> bool:
    """Returns whether a run says that it waits: a share, in [0, 1], of an epoch of so many seconds."""
    return fraction > _MOST_WAITING and seconds > _LEAST_SECONDS
