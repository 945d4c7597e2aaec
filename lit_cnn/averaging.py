"""A moving average of the weights, for a run to validate, to keep as its best and to test; training goes on without."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging

from lit_cnn.errors import UsageError


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


class MovingAverage(WeightAveraging):
    """Lightning's `WeightAveraging` with `average_step` after each optimizer step.

    Averaged are all parameters, and the buffers too: BatchNorm's running statistics become those of the averaged
    network without another pass over the images. What is frozen is the average of equal numbers and stays. Validation,
    `best.ckpt` and the test use the average; `last.ckpt` holds it as `state_dict` and the weights that train as
    `current_model_state`, by which a resume goes on.

    Args:
        decay: Of the average, in (0, 1); see `average_step`.

    Raises:
        UsageError: If the decay is out of its range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise UsageError(f"--ema_decay {decay}: give a number above 0 and below 1, for example 0.999")

        def step(average: Any, weights: Any, num_averaged: torch.Tensor | int) -> None:
            average_step(average, weights, int(num_averaged), decay)

        super().__init__(multi_avg_fn=step)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copies the network, to where it is going to train: Lightning moves it there only later."""
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


@contextlib.contextmanager
def averaged(trainer: pl.Trainer) -> Iterator[None]:
    """Gives a run's network its averaged weights for a while, if the run averages.

    Lightning's callback does so during validation only, and has no part in a checkpoint of the weights alone.
    """
    with contextlib.ExitStack() as stack:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by a connector
            if isinstance(callback, MovingAverage):
                stack.enter_context(callback.in_place_of_weights(trainer.lightning_module))
        yield


def check_average_of(checkpoint: dict[str, Any], decay: float | None) -> None:
    """Refuses to go on from a checkpoint that has an average where the run has none, or the other way round.

    Args:
        checkpoint: With all that training needs.
        decay: `--ema_decay` of the run; None is off.

    Raises:
        UsageError: If so: either way the run would go on with the wrong weights.
    """
    has_average = "averaging_state" in checkpoint
    if has_average and decay is None:
        raise UsageError(
            "--ema_decay: the checkpoint holds an average of the weights; give it as its run did, or start anew"
        )
    if not has_average and decay is not None:
        raise UsageError(
            f"--ema_decay {decay}: the checkpoint holds no average of the weights; leave it out, or start anew"
        )
