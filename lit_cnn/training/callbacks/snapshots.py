"""The weights at the ends of the learning rate's cycles, kept with a run: members of an ensemble from one training."""

from typing import Any

import lightning.pytorch as pl

from lit_cnn.core.errors import UsageError
from lit_cnn.training.callbacks.run_checkpoints import RunCheckpoints


class Snapshots(pl.Callback):
    """Writes `snapshot_1.ckpt` and so on beside `best.ckpt`: what was validated at the end of each cycle.

    Huang et al. 2017, "Snapshot ensembles: train 1, get M for free", section 3. Logs `snapshot_1/val/acc` and so on.

    Args:
        checkpoints: Who knows the run's folder.
        cycle_epochs: Epochs in a cycle.
    """

    def __init__(self, checkpoints: RunCheckpoints, cycle_epochs: int) -> None:
        self.checkpoints = checkpoints
        self.cycle_epochs = cycle_epochs

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps a snapshot if a cycle ends here: before the `last.ckpt` that is written at the epoch's end."""
        number, rest = divmod(trainer.current_epoch + 1, self.cycle_epochs)
        if trainer.state.fn != "fit" or trainer.sanity_checking or self.checkpoints.folder is None or rest:
            return
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        self.checkpoints.keep(trainer, f"snapshot_{number}.ckpt")
        accuracy = {f"snapshot_{number}/val/acc": float(trainer.callback_metrics["val/acc"])}
        for logger in trainer.loggers:
            logger.log_metrics(accuracy, trainer.global_step - 1)

    def state_dict(self) -> dict[str, Any]:
        """Returns how long a cycle is."""
        return {"cycle_epochs": self.cycle_epochs}


def check_same_cycles(checkpoint: dict[str, Any], cycle_epochs: int | None) -> None:
    """Refuses to go on with cycles of another length: the snapshots so far would not be at their ends.

    Args:
        checkpoint: With all that training needs.
        cycle_epochs: Epochs in a cycle of the run; None without cycles.

    Raises:
        UsageError: If so.
    """
    saved = checkpoint.get("callbacks", {}).get(Snapshots.__name__, {}).get("cycle_epochs", cycle_epochs)
    if cycle_epochs is not None and saved != cycle_epochs:
        raise UsageError(
            f"--model.cycles: would be {cycle_epochs} epochs each, and the checkpoint's are {saved}; keep "
            "--trainer.max_epochs and --model.cycles, or start anew"
        )
