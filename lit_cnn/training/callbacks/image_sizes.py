"""`ImageSizes`: training images that grow from epoch to epoch."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl

from lit_cnn.training.image_sizes import check_image_sizes, size_of_epoch


class ImageSizes(pl.Callback):
    """Shrinks training images as `ImageDataModule(image_sizes=…)` says; validation and test see all of them.

    The size is a function of the epoch, so a run that is gone on with has the same.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks the sizes, where there are some."""
        if stage == "fit" and _sizes(trainer):
            check_image_sizes(trainer.datamodule, pl_module.hparams, trainer.max_epochs)  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Says how large the images of the step are to be; a run may be gone on with in the midst of an epoch."""
        if sizes := _sizes(trainer):
            pl_module.train_size = size_of_epoch(sizes, trainer.current_epoch, trainer.max_epochs or 1)


def _sizes(trainer: pl.Trainer) -> Sequence[int] | None:
    data = getattr(trainer, "datamodule", None)
    return getattr(data, "options", {}).get("image_sizes")
