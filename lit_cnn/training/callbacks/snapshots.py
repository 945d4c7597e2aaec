"""The weights at the ends of the learning rate's cycles, kept with a run: members of an ensemble from one training."""

from typing import Any

import lightning.pytorch as pl

from lit_cnn.core.errors import UsageError
from lit_cnn.training.callbacks.run_checkpoints import RunCheckpoints
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.metrics import log_now
from lit_cnn.training.optimization import epochs_of_cycle


class Snapshots(pl.Callback):
    """Writes `snapshot_1.ckpt` and so on beside `best.ckpt`: what was validated at the end of each cycle.

    Huang et al. 2017, "Snapshot ensembles: train 1, get M for free", section 3. Logs `snapshot_1/val/acc` and so on.

    Without cycles it does nothing.

    Args:
        checkpoints: Knows the run's folder.

    Attributes:
        cycle_epochs: Epochs in a cycle; None without cycles.
    """

    def __init__(self, checkpoints: RunCheckpoints) -> None:
        self.checkpoints = checkpoints
        self.cycle_epochs: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finds out how long the cycles are.

        Raises:
            UsageError: If they would not end with an epoch that is validated.
        """
        if stage == "fit" and isinstance(pl_module, LitClassifier):
            self.cycle_epochs = epochs_of_cycle(pl_module.hparams, trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keeps a snapshot if a cycle ends here: before the `last.ckpt` that is written at the epoch's end."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self.cycle_epochs:
            return
        number, rest = divmod(trainer.current_epoch + 1, self.cycle_epochs)
        if rest or self.checkpoints.folder is None:
            return
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        self.checkpoints.keep(trainer, f"snapshot_{number}.ckpt")
        log_now(trainer, {f"snapshot_{number}/val/acc": float(trainer.callback_metrics["val/acc"])})

    def state_dict(self) -> dict[str, Any]:
        """Returns how long a cycle is, if there are any."""
        return {"cycle_epochs": self.cycle_epochs} if self.cycle_epochs else {}


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
        reason = f"would be {cycle_epochs} epochs each, and the checkpoint's are {saved}"
        raise UsageError("cycles", None, reason, "keep `max_epochs` and `cycles`, or start anew")
