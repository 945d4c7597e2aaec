"""How long the epochs of a training take."""

import time

import lightning.pytorch as pl


class Stopwatch(pl.Callback):
    """Measures how long the epochs of a training take, validation included.

    Attributes:
        seconds: That they took.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts."""
        self._began = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops."""
        self.seconds += time.monotonic() - self._began
