"""How long a training takes that has been built and opened."""

import time

import lightning.pytorch as pl


class Stopwatch(pl.Callback):
    """Measures how long a training takes from its features that are cached to the end of its last epoch.

    Attributes:
        seconds: That it took.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts."""
        self._began = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops."""
        self.seconds += time.monotonic() - self._began
