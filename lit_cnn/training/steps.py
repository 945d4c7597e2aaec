"""How many optimizer steps a run makes, and which callbacks may change that."""

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.callbacks.finetuning import BaseFinetuning

from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule

# Callbacks that a run cannot have: what they change is settled before the first step, and recorded.
_REFUSED: tuple[tuple[type[pl.Callback], str, str], ...] = (
    (BatchSizeFinder, "changes the batch size when the schedule is made", "ask for it first: `find_batch_size=True`"),
    (LearningRateFinder, "changes the learning rate that the run records", "give `lr`"),
    (StochasticWeightAveraging, "replaces the learning rate's schedule", "give `swa_start`"),
    (BaseFinetuning, "changes the optimizer's groups when the schedule is made", "give `transfer=gradual`"),
)


def check_callbacks(trainer: pl.Trainer) -> None:
    """Refuses callbacks that change what the schedule and the record of a run rest on.

    Raises:
        UsageError: Naming the callback, and what does the same here.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    for kind, reason, remedy in _REFUSED:
        for each in callbacks:
            if isinstance(each, kind):
                raise UsageError("callbacks", type(each).__name__, reason, remedy)
    if _accumulation(trainer) is not None and trainer.accumulate_grad_batches != 1:
        reason = "says itself how many batches are accumulated"
        raise UsageError(
            "callbacks", "GradientAccumulationScheduler", reason, "leave `accumulate_grad_batches` at 1, or it out"
        )


def check_has_end(trainer: pl.Trainer) -> None:
    """Refuses a trainer without a last step: the learning rate's schedule needs one.

    Raises:
        UsageError: If neither max_epochs nor max_steps is given.
    """
    if (trainer.max_epochs or -1) <= 0 and trainer.max_steps <= 0:
        raise UsageError("max_epochs", trainer.max_epochs, "the schedule needs an end", "give 1 or more")


def total_steps(trainer: pl.Trainer) -> int:
    """Returns the optimizer steps of the whole run.

    Not `trainer.estimated_stepping_batches`: that builds the training loader, and starts its workers, before a resumed
    run's place in the epoch is restored.
    """
    check_has_end(trainer)
    data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
    if not isinstance(data, ImageDataModule):
        return max(1, int(trainer.estimated_stepping_batches))
    return steps_of_run(trainer, data.num_train_batches)


def steps_of_run(trainer: Any, num_batches: int) -> int:
    """Returns the optimizer steps of a run with an end, of data with so many training batches an epoch."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    totals = [steps_after(epochs, num_batches, trainer)] if epochs > 0 else []
    return max(1, min([*totals, *([steps] if steps > 0 else [])]))


def steps_after(epochs: float, num_batches: int, trainer: Any) -> int:
    """Returns the optimizer steps that are made when so many epochs are done.

    Args:
        epochs: 2.5 is the middle of the third; a step whose batches are not all done is not counted.
        num_batches: Training batches that the data have for an epoch.
        trainer: A trainer, or its options: limit_train_batches, accumulate_grad_batches, callbacks.
    """
    used = limited(num_batches, trainer.limit_train_batches)
    whole = math.floor(epochs)
    steps = sum(-(-used // _accumulated(trainer, epoch)) for epoch in range(whole))
    return steps + int((epochs - whole) * used + 1e-6) // _accumulated(trainer, whole)


def limited(num_batches: int, limit: int | float | None) -> int:
    """Returns how many of an epoch's batches Lightning's `limit_train_batches` leaves: a number, or a share."""
    if limit is None:
        return num_batches
    return min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)


def _accumulated(trainer: Any, epoch: int) -> int:
    scheduler = _accumulation(trainer)
    if scheduler is not None:
        return scheduler.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches or 1


def _accumulation(trainer: Any) -> GradientAccumulationScheduler | None:
    callbacks = trainer.callbacks or ()
    return next((each for each in callbacks if isinstance(each, GradientAccumulationScheduler)), None)
