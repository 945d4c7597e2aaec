"""How many optimizer steps a run makes, and which callbacks may change that."""

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
from lit_cnn.data.sampling import eval_batches

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


def several_devices(data: ImageDataModule) -> UsageError:
    """Returns the mistake of training one run after the other on several devices each."""
    if data.splits.folds:
        return UsageError(
            "folds", None, "one device a run", "for several devices give `num_folds` and `fold`, fold by fold"
        )
    return UsageError("seeds", None, "one device a run", "for several devices give `seed`, seed by seed")


def check_limits(trainer: Any, data: ImageDataModule, num_batches: int, tests: bool) -> None:
    """Refuses numbers that Lightning ignores or fails of later: limits without a batch, steps of none, a negative clip.

    Args:
        trainer: A trainer, or its options.
        data: Its images of val and test are evaluated.
        num_batches: Training batches that the data have for an epoch.
        tests: Whether the run is tested at its end.

    Raises:
        UsageError: Naming the limit.
    """
    evaluated = {"val": data.splits.val, **({"test": data.splits.test} if tests else {})}
    if (trainer.accumulate_grad_batches or 0) < 1:
        raise UsageError("accumulate_grad_batches", trainer.accumulate_grad_batches, "give a number of at least 1")
    if (trainer.gradient_clip_val or 0) < 0:
        raise UsageError("gradient_clip_val", trainer.gradient_clip_val, "give a number above 0, or leave it out")
    totals = {"train": num_batches}
    totals |= {split: len(eval_batches(indices[:: trainer.world_size])) for split, indices in evaluated.items()}
    for split, total in totals.items():
        name = f"limit_{split}_batches"
        limit = getattr(trainer, name)
        if (limit == 0 and split != "val") or limited(total, limit) == 0 < limit:
            name, limit = ("overfit_batches", trainer.overfit_batches) if trainer.overfit_batches else (name, limit)
            reason = f"leaves none of {total} batches of {split}"
            raise UsageError(name, limit, reason, "give a number of at least 1, or a larger share")
    every, used = trainer.val_check_interval, limited(num_batches, trainer.limit_train_batches)
    validates = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches > 0
    if validates and isinstance(every, int) and every > used:
        reason = f"an epoch has {used} batches"
        raise UsageError("val_check_interval", every, reason, "give less, or `check_val_every_n_epoch=null`")


def check_whole_folds(trainer: Any) -> None:
    """Refuses to validate a part of a fold: together the folds speak of every image.

    Raises:
        UsageError: Naming what leaves images out.
    """
    if isinstance(trainer.limit_val_batches, int) or trainer.limit_val_batches < 1:  # 1 is one batch, 1.0 are all
        option = "fast_dev_run" if trainer.fast_dev_run else "limit_val_batches"
        given = getattr(trainer, option)
        raise UsageError(option, given, "the folds are to predict every image once", "leave it out")


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


def steps_after(epochs: int, num_batches: int, trainer: Any, more_batches: int = 0) -> int:
    """Returns the optimizer steps that are made when so many epochs, and so many batches of the next one, are done.

    Args:
        epochs: Whole epochs.
        num_batches: Training batches that the data have for an epoch.
        trainer: A trainer, or its options: limit_train_batches, accumulate_grad_batches, callbacks.
        more_batches: A multiple of the batches that are accumulated.
    """
    used = limited(num_batches, trainer.limit_train_batches)
    steps = sum(-(-used // accumulated(trainer, epoch)) for epoch in range(epochs))
    return steps + more_batches // accumulated(trainer, epochs)


def limited(num_batches: int, limit: int | float | None) -> int:
    """Returns how many of an epoch's batches Lightning's `limit_train_batches` leaves: a number, or a share."""
    if limit is None:
        return num_batches
    return min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)


def accumulated(trainer: Any, epoch: int) -> int:
    """Returns how many batches make a step in an epoch, from 0."""
    scheduler = _accumulation(trainer)
    if scheduler is not None:
        return scheduler.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches or 1


def _accumulation(trainer: Any) -> GradientAccumulationScheduler | None:
    callbacks = trainer.callbacks or ()
    return next((each for each in callbacks if isinstance(each, GradientAccumulationScheduler)), None)
