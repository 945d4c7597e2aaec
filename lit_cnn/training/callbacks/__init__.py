"""What happens around the training step, one callback a file."""

from typing import Literal

import lightning.pytorch as pl

from lit_cnn.training.callbacks.averaging import EqualAverage, MovingAverage, RunAverage, average_of_run
from lit_cnn.training.callbacks.fit_progress import FitProgress
from lit_cnn.training.callbacks.run_checkpoints import RunCheckpoints, RunInterrupted
from lit_cnn.training.callbacks.snapshots import Snapshots
from lit_cnn.training.callbacks.step_metrics import StepMetrics, waits_too_long
from lit_cnn.training.callbacks.whitening import Whitening
from lit_cnn.training.feature_cache import FeatureCache

__all__ = [
    "EqualAverage",
    "FitProgress",
    "MovingAverage",
    "RunAverage",
    "RunCheckpoints",
    "RunInterrupted",
    "Snapshots",
    "StepMetrics",
    "Whitening",
    "default_callbacks",
    "waits_too_long",
]


def default_callbacks(
    *,
    monitor: str = "val/acc",
    monitor_mode: Literal["max", "min"] = "max",
    checkpoint_seconds: float = 60.0,
    on_full_disk: Literal["stop", "continue"] = "stop",
    ema_decay: float | None = None,
    swa_start: int | None = None,
    progress_bar: bool = True,
    tracked: bool = False,
) -> list[pl.Callback]:
    """Returns the callbacks that every run has, for a `Trainer` of one's own too.

    They write `best.ckpt` and `last.ckpt`, with any logger or none (see `RunCheckpoints` for where), log the loss of
    single steps, speed and learning rate, compute features of what is frozen once, keep a snapshot at each end of a
    cyclic learning rate, and show progress.

    Args:
        monitor: The metric that says which epoch is best.
        monitor_mode: Whether its `max` or its `min` is best.
        checkpoint_seconds: Seconds of training after which `last.ckpt` is written within an epoch too.
        on_full_disk: `stop` or `continue`; see `RunCheckpoints`.
        ema_decay: Validate and keep a moving average of the weights, with this decay in (0, 1).
        swa_start: The same with the equal average of the weights at the ends of all epochs from this one (1, 2, …) on.
        progress_bar: Give False with `Trainer(enable_progress_bar=False)`.
        tracked: See `RunCheckpoints`.

    Raises:
        UsageError: If both averages are asked for, or the decay is out of its range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> import lit_cnn
        >>> trainer = Trainer(max_epochs=3, logger=False, callbacks=lit_cnn.callbacks(monitor="val/f1"))
    """
    checkpoints = RunCheckpoints(monitor, monitor_mode, checkpoint_seconds, on_full_disk, tracked)
    # The first layer is whitened before features are computed with it.
    callbacks = [StepMetrics(), checkpoints, Whitening(), FeatureCache(), Snapshots(checkpoints)]
    average = average_of_run(ema_decay, swa_start)
    if isinstance(average, EqualAverage):
        # best.ckpt is to be the best of the averages, not of what was before them.
        average.begins = lambda: checkpoints.best.clear()
    return [*callbacks, *([average] if average else []), *([FitProgress()] if progress_bar else [])]
