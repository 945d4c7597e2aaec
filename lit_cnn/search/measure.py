"""What trials are compared by: a metric on val of each run's best epoch, or what the folds of each come to together."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lit_cnn.data.datamodule import ImageDataModule

OUT_OF_FOLD = "oof/acc"


@dataclass(frozen=True)
class Measure:
    """What trials are compared by.

    Attributes:
        monitor: The metric that is searched for, such as `val/acc`.
        num_folds: Of each trial; 0 for one network a trial.
    """

    monitor: str
    num_folds: int = 0

    @property
    def metric(self) -> str:
        """Its name among what a trial came to: accuracy over all folds, else the best epoch's, of folds their mean."""
        return OUT_OF_FOLD if self.num_folds and self.monitor == "val/acc" else f"best/{self.monitor}"

    @property
    def label(self) -> str:
        """What it is called."""
        return self.metric.removeprefix("best/")

    @property
    def unit(self) -> str:
        """After what it is told, so that a trial that is behind can be ended: each `epoch`, or each `fold`."""
        return "fold" if self.num_folds else "epoch"

    @property
    def is_loss(self) -> bool:
        """Whether less of it is better, and it is no share."""
        return self.monitor.endswith("loss")

    def of_folds(self, folds: Sequence[Mapping[str, float]], sizes: Sequence[int]) -> float:
        """Returns what the folds so far come to.

        Args:
            folds: Metrics of each, of the best epoch.
            sizes: How many images each has.
        """
        values = [each.get(f"best/{self.monitor}", np.nan) for each in folds]
        return float(np.average(values, weights=sizes if self.metric == OUT_OF_FOLD else None))

    def words(self, value: float | None) -> str:
        """Returns a value for reading: `96.5 %`, or a loss."""
        if value is None:
            return "none"
        return f"{value:.4g}" if self.is_loss else f"{100 * value:.1f} %"


def judging_digest(data: ImageDataModule) -> str:
    """Returns the digest of the images that judge a trial: val, or all folds and how they are cut."""
    if not data.splits.folds:
        return str(data.digests["val"])
    return hashlib.sha256(" ".join(map(data.image_set.digest_of, data.splits.folds)).encode()).hexdigest()


def num_judging(data: ImageDataModule, measure: Measure) -> int:
    """Returns how many images judge a trial."""
    return sum(map(len, data.splits.folds)) if measure.num_folds else len(data.splits.val)
