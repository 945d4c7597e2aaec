"""An average of the weights, moving or equal, for a run to validate, keep and test; training goes on without it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging

from lit_cnn.core.errors import UsageError
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.optimization import epochs_of_cycle


def average_step(
    average: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], num_averaged: int, decay: float
) -> None:
    """Moves an average towards new weights, in place: `d * average + (1 - d) * weights`.

    With n weights averaged so far, d is `min(decay, (1 + n) / (10 + n))`, so that the first weights, which are near
    what was drawn, are soon forgotten (the rule of TensorFlow's `ExponentialMovingAverage`). Two equal numbers stay as
    they are, bit for bit. Whole numbers, which count batches, are not averaged but taken over.

    Args:
        average: Tensors, changed.
        weights: As many, of the same shapes and dtypes.
        num_averaged: n, at least 1: the first weights are the first average.
        decay: In (0, 1).
    """
    if not average[0].is_floating_point():
        torch._foreach_copy_(list(average), list(weights))
        return
    torch._foreach_lerp_(list(average), list(weights), 1 - min(decay, (1 + num_averaged) / (10 + num_averaged)))


def equal_step(average: Any, weights: Any, num_averaged: torch.Tensor | int) -> None:
    """Takes one more into the equal average of n weights, in place; else as `average_step`, bit for bit."""
    if not average[0].is_floating_point():
        torch._foreach_copy_(list(average), list(weights))
        return
    torch._foreach_lerp_(list(average), list(weights), 1 / (int(num_averaged) + 1))


def average_of_run(ema_decay: float | None, swa_start: int | None) -> "RunAverage | None":
    """Returns the average that a run is to have, or None.

    Args:
        ema_decay: Of the moving average; None is off.
        swa_start: The first epoch of the equal average, from 1; None is off.

    Raises:
        UsageError: If both are given, or the decay is out of its range.
    """
    if ema_decay is not None and swa_start is not None:
        raise UsageError("swa_start", swa_start, f"`ema_decay={ema_decay}` is another average", "give one of the two")
    if swa_start is not None:
        return EqualAverage(swa_start)
    return None if ema_decay is None else MovingAverage(ema_decay)


def check_average(average: "RunAverage | None", model: Any, trainer: Any) -> None:
    """Refuses an average that a run cannot have.

    Args:
        average: The run's, if it has one.
        model: A classifier's options: head_solver, schedule, cycles.
        trainer: A trainer, or its options: max_epochs, max_steps, check_val_every_n_epoch.

    Raises:
        UsageError: If there is no path to average over, the first epoch is out of its range, or the learning rate falls
            to 0 only once.
    """
    if average is None:
        return
    option, value = ("swa_start", average.first_epoch) if isinstance(average, EqualAverage) else ("ema_decay", None)
    if model.head_solver == "lbfgs":
        raise UsageError(option, None, "a head that lbfgs solves for has no path to average over", "leave it out")
    if value is None:
        return
    if model.schedule == "one_cycle":
        reason = "averages weights at a constant or cyclic rate"
        raise UsageError(option, value, reason, "give `schedule=constant` or cyclic")
    epochs, cycle = trainer.max_epochs or 0, epochs_of_cycle(model, trainer) or 1
    if not 1 <= value <= epochs // cycle * cycle:
        raise UsageError(option, value, f"give an epoch from 1 to {epochs}, `max_epochs`")


class RunAverage(WeightAveraging):
    """Lightning's `WeightAveraging` as both averages here use it: a run trains as it would without.

    Averaged are all parameters, and the buffers too: BatchNorm's running statistics become those of the averaged
    network without another pass over the images. What is frozen is the average of equal numbers and stays. Validation,
    `best.ckpt` and the test use the average; `last.ckpt` holds it as `state_dict` and the weights that train as
    `current_model_state`, by which a resume goes on.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copies the network, to where it is going to train: Lightning moves it there only later.

        Raises:
            UsageError: If the run cannot have this average.
        """
        if stage == "fit" and isinstance(pl_module, LitClassifier):
            check_average(self, pl_module.hparams, trainer)
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    @contextlib.contextmanager
    def in_place_of_weights(self, pl_module: pl.LightningModule) -> Iterator[None]:
        """Puts the average into the network, and the weights that train back at the end."""
        self._swap_models(pl_module)
        try:
            yield
        finally:
            self._swap_models(pl_module)


class MovingAverage(RunAverage):
    """An average that moves after each optimizer step; see `average_step`.

    Args:
        decay: Of the average, in (0, 1).

    Raises:
        UsageError: If the decay is out of its range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise UsageError("ema_decay", decay, "give a number above 0 and below 1, for example 0.999")

        def step(average: Any, weights: Any, num_averaged: torch.Tensor | int) -> None:
            average_step(average, weights, int(num_averaged), decay)

        super().__init__(multi_avg_fn=step)


class EqualAverage(RunAverage):
    """The equal average of the weights at the ends of a run's last epochs.

    Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization" (SWA), Algorithm 1, with
    the learning rate that the run has. BatchNorm's statistics are averaged too, where the paper computes them anew.
    Up to the first of these epochs' ends the average is the weights themselves.

    Args:
        first_epoch: The first epoch that counts, from 1.

    Attributes:
        every_epochs: Epochs from one end that counts to the next: c of the paper, in epochs. They are multiples of
            this number: with a cyclic learning rate the ends of its cycles, else 1.
        begins: Called when the first weights are in it, before they are validated.
    """

    def __init__(self, first_epoch: int) -> None:
        self.first_epoch = first_epoch
        self.every_epochs = 1
        self.begins: Callable[[], None] = lambda: None
        self._counts = False
        super().__init__(multi_avg_fn=equal_step)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finds out how long the cycles of the learning rate are, if there are any; see `RunAverage.setup`."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and isinstance(pl_module, LitClassifier):
            self.every_epochs = epochs_of_cycle(pl_module.hparams, trainer) or 1

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the average changes after a step: at the end of an epoch that counts, or while there is none yet."""
        assert self._average_model is not None
        return step_idx is not None and (self._counts or int(self._average_model.n_averaged) == 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes the weights into the average, or takes them over while none count yet."""
        # Not at the epoch's own end: validation, which is to see the average, comes before that.
        epoch = trainer.current_epoch + 1
        is_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        self._counts = is_end and epoch >= self.first_epoch and epoch % self.every_epochs == 0
        assert self._average_model is not None
        is_first = int(self._average_model.n_averaged) == 0
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if is_first and self._counts:
            self.begins()
        elif is_first:
            self._average_model.n_averaged.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Returns Lightning's state, and from which epoch on the average is."""
        return {**super().state_dict(), "first_epoch": self.first_epoch}


@contextlib.contextmanager
def averaged(trainer: pl.Trainer) -> Iterator[None]:
    """Gives a run's network its averaged weights for a while, if the run averages.

    Lightning's callback does so during validation only, and is left out of a checkpoint of the weights alone.
    """
    with contextlib.ExitStack() as stack:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
            if isinstance(callback, RunAverage):
                stack.enter_context(callback.in_place_of_weights(trainer.lightning_module))
        yield


def check_average_of(checkpoint: dict[str, Any], decay: float | None, first_epoch: int | None) -> None:
    """Refuses to go on from a checkpoint that has an average where the run has none or another, or the other way round.

    Args:
        checkpoint: With all that training needs.
        decay: `ema_decay` of the run; None is off.
        first_epoch: `swa_start` of the run; None is off.

    Raises:
        UsageError: If so: either way the run would go on with the wrong weights.
    """
    saved = checkpoint.get("callbacks", {}).get(EqualAverage.__name__, {}).get("first_epoch")
    held = None
    if "averaging_state" in checkpoint:
        held = "ema_decay" if saved is None else "swa_start"
    for option, value in (("ema_decay", decay), ("swa_start", first_epoch)):
        if held == option and value is None:
            reason = "the checkpoint holds an average of the weights"
            raise UsageError(option, None, reason, "give it as its run did, or start anew")
        if value is not None and held != option:
            reason = "the checkpoint holds no average of the weights made so"
            raise UsageError(option, value, reason, "leave it out, or start anew")
    if saved != first_epoch:
        raise UsageError("swa_start", first_epoch, f"the checkpoint's run has {saved}", "keep that, or start anew")
