"""What happens around the training step, one callback a file."""

from lit_cnn.training.callbacks.averaging import EqualAverage, MovingAverage, RunAverage
from lit_cnn.training.callbacks.fit_progress import FitProgress
from lit_cnn.training.callbacks.run_checkpoints import RunCheckpoints, RunInterrupted
from lit_cnn.training.callbacks.snapshots import Snapshots
from lit_cnn.training.callbacks.step_metrics import StepMetrics, waits_too_long
from lit_cnn.training.callbacks.whitening import Whitening

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
    "waits_too_long",
]
