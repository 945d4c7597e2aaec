"""timm's optimizers by name, and a learning-rate schedule that is a pure function of the step."""

import math
from typing import Any, Literal

import torch
from torch import nn

from lit_cnn.errors import UsageError

Schedule = Literal["constant", "one_cycle"]


def learning_rate_factor(step: int, total_steps: int, schedule: Schedule, warmup_fraction: float) -> float:
    """Returns the factor on the learning rate at a step, in [0, 1].

    A pure function of the step, so that a resumed run that trains longer simply follows the longer curve.

    Args:
        step: Optimizer steps made so far, from 0.
        total_steps: Optimizer steps of the whole run.
        schedule: `constant` after the warm-up, or `one_cycle`: up in a line, then down along a cosine to 0
            (Smith and Topin 2018, "Super-convergence", with cosine annealing).
        warmup_fraction: Share of the run, in [0, 1), in which the factor rises.
    """
    warmup_steps = warmup_fraction * total_steps
    if step + 1 < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * max(0.0, done)))


def build_optimizer(
    model: nn.Module, name: str, lr: float, weight_decay: float, options: dict[str, Any]
) -> torch.optim.Optimizer:
    """Builds one of timm's optimizers; biases and normalisation weights are not decayed.

    Args:
        model: Whose trainable parameters are optimised.
        name: timm's name, for example `adamw` or `sgd` (with Nesterov momentum; `momentum` is SGD without it).
        lr: Peak learning rate.
        weight_decay: Decoupled or coupled, as the optimizer has it.
        options: More of the optimizer's own arguments.

    Raises:
        UsageError: If timm has no such optimizer, or it refuses the options.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    if name not in list_optimizers():
        raise UsageError(
            f"--model.optimizer {name}: timm has no such optimizer; for example adamw, sgd, momentum, lamb"
        )
    try:
        return create_optimizer_v2(model, opt=name, lr=lr, weight_decay=weight_decay, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"--model.optimizer_options {options}: {name} refuses them: {error}") from error
