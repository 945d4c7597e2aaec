"""timm's optimizers by name, a learning-rate schedule that is a pure function of the step, L-BFGS for a linear head."""

import math
from collections.abc import Iterable, Mapping
from functools import wraps
from inspect import signature, unwrap
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lit_cnn.core.errors import UsageError
from lit_cnn.core.precision import has_native_bf16

Schedule = Literal["constant", "one_cycle", "cyclic"]
HeadSolver = Literal["sgd", "lbfgs"]

_DECIDES_OPTIMIZER = (
    "optimizer",
    "optimizer_options",
    "transfer",
    "train_stages",
    "cut_at",
    "head",
    "head_solver",
    "layer_decay",
    "head_lr_factor",
)


def learning_rate_factor(
    step: int, total_steps: int, schedule: Schedule, warmup_fraction: float, cycles: int | None = None
) -> float:
    """Returns the factor on the learning rate at a step, in [0, 1].

    A pure function of the step, so that a resumed run that trains longer simply follows the longer curve.

    Args:
        step: Optimizer steps made so far, from 0.
        total_steps: Optimizer steps of the whole run.
        schedule: `constant` after the warm-up, or `one_cycle`: up in a line, then down along a cosine to 0
            (Smith and Topin 2018, "Super-convergence", with cosine annealing); `cyclic`: that again and again, without
            warm-up equation 2 of Huang et al. 2017, "Snapshot ensembles".
        warmup_fraction: Share of the run, or of each cycle, in [0, 1), in which the factor rises.
        cycles: How many, of `cyclic`; total_steps is a multiple of it.
    """
    if schedule == "cyclic":
        assert cycles is not None
        steps = total_steps // cycles
        return learning_rate_factor(step % steps, steps, "one_cycle", warmup_fraction)
    warmup_steps = warmup_fraction * total_steps
    if step + 1 < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * max(0.0, done)))


def parameter_groups(
    net: nn.Module, lr: float, weight_decay: float, layer_decay: float, head: Iterable[str], head_lr_factor: float
) -> list[dict[str, Any]]:
    """Returns groups of the trainable parameters that share learning rate and weight decay.

    Biases, normalisation weights and what the network itself names are not decayed.

    Args:
        net: Whose parameters.
        lr: Learning rate of the last layer.
        weight_decay: Weight decay.
        layer_decay: Factor on the learning rate from each layer to the one before it, as timm groups them (Clark et
            al. 2020, "ELECTRA", appendix A; Bao et al. 2021, "BEiT"); 1 is none.
        head: Names of the head's parameters.
        head_lr_factor: Factor on the learning rate of the head.
    """
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    contract: Any = net
    undecayed = contract.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    options: dict[str, Any] = {"weight_decay": weight_decay, "no_weight_decay_list": undecayed}
    if layer_decay == 1:
        groups = param_groups_weight_decay(net, **options)
    else:
        groups = param_groups_layer_decay(net, layer_decay=layer_decay, **options)
    parameters = dict(net.named_parameters())
    of_head = {parameters[name] for name in head}
    merged: dict[tuple[float, float], list[nn.Parameter]] = {}
    for group in groups:
        for parameter in group["params"]:
            rate = lr * group.get("lr_scale", 1.0) * (head_lr_factor if parameter in of_head else 1.0)
            merged.setdefault((rate, group["weight_decay"]), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in merged.items()]


def build_optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    options: dict[str, Any],
    layer_decay: float = 1.0,
    head: Iterable[str] = (),
    head_lr_factor: float = 1.0,
    allows_fused: bool = True,
) -> torch.optim.Optimizer:
    """Builds one of timm's optimizers over the trainable parameters, in the groups of `parameter_groups`.

    PyTorch's fused step, one pass over each parameter instead of several, is taken where the optimizer has one;
    `{fused: false}` in `options` does without, and so does `allows_fused`.

    Args:
        model: Whose trainable parameters are optimised.
        name: timm's name, for example `adamw` or `sgd` (with Nesterov momentum; `momentum` is SGD without it).
        lr: Learning rate; a schedule multiplies it.
        weight_decay: Decoupled or coupled, as the optimizer has it.
        options: More of the optimizer's own arguments.
        layer_decay: See `parameter_groups`.
        head: See `parameter_groups`.
        head_lr_factor: See `parameter_groups`.
        allows_fused: Whether to take the fused step where options do not say.

    Raises:
        UsageError: If timm has no such optimizer, or it refuses the options.
    """
    from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers

    if name not in list_optimizers():
        raise UsageError("optimizer", name, "timm has no such optimizer", "for example adamw, sgd, momentum, lamb")
    groups = parameter_groups(model, lr, weight_decay, layer_decay, head, head_lr_factor)
    if "muon" in name:
        _let_muon_use_native_precision()
    try:
        has_fused = "fused" in signature(get_optimizer_class(name, bind_defaults=False)).parameters
        # PyTorch's other way to be fast excludes this one.
        fused = {"fused": True} if has_fused and allows_fused and not options.get("foreach") else {}
        return create_optimizer_v2(groups, opt=name, lr=lr, **{**fused, **options})
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError("optimizer_options", options, f"{name} refuses them: {error}") from error


def optimizer_of(
    net: nn.Module, hparams: Mapping[str, Any], head: Iterable[str], allows_fused: bool = True
) -> torch.optim.Optimizer:
    """Returns the optimizer that a classifier's hyperparameters describe; see `build_optimizer`."""
    return build_optimizer(
        net,
        hparams["optimizer"],
        hparams["lr"],
        hparams["weight_decay"],
        hparams["optimizer_options"] or {},
        hparams["layer_decay"],
        head,
        hparams["head_lr_factor"],
        allows_fused,
    )


def fused_can_clip(trainer: Any) -> bool:
    """Whether gradients can be clipped before a fused step, if they are to be: Lightning cannot in mixed precision."""
    return not (trainer.gradient_clip_val and "mixed" in str(trainer.precision))


def with_schedule(optimizer: torch.optim.Optimizer, hparams: Mapping[str, Any], num_steps: int) -> dict[str, Any]:
    """Returns what Lightning takes from `configure_optimizers`: the optimizer, and its schedule for every step.

    Args:
        optimizer: Whose learning rates the schedule sets.
        hparams: The classifier's.
        num_steps: Optimizer steps of the whole run.
    """
    shape = hparams["schedule"], hparams["warmup_fraction"], hparams["cycles"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, num_steps, *shape))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _let_muon_use_native_precision() -> None:
    """Makes timm's Muon orthogonalize in float32 where bfloat16, its choice everywhere, is emulated."""
    from timm.optim import muon

    original = unwrap(muon.zeropower_via_newtonschulz)

    @wraps(original)
    def orthogonalized(gradient: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        dtype = torch.bfloat16 if has_native_bf16(gradient.device.type) else torch.float32
        return original(gradient, *args, dtype=dtype, **kwargs)

    muon.zeropower_via_newtonschulz = orthogonalized  # type: ignore[assignment]


def rewrite_rates(checkpoint: dict[str, Any], lr: float, weight_decay: float) -> None:
    """Puts a new learning rate and weight decay into a checkpoint's optimizer and schedule, in place of the saved."""
    saved = checkpoint["hyper_parameters"]
    ratio = lr / saved["lr"]
    for state in checkpoint.get("optimizer_states", []):
        for group in state["param_groups"]:
            # Multiplying by a ratio of exactly 1 changes no bit.
            group["lr"] *= ratio
            group["initial_lr"] *= ratio
            if group["weight_decay"] == saved["weight_decay"]:
                group["weight_decay"] = weight_decay
    for state in checkpoint.get("lr_schedulers", []):
        state["base_lrs"] = [rate * ratio for rate in state["base_lrs"]]


def check_same_optimizer(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint with other groups of parameters: its optimizer would mean something else.

    Args:
        saved: The checkpoint's hyperparameters.
        now: The run's.

    Raises:
        UsageError: If the optimizer, its options or its groups differ.
    """
    for name in _DECIDES_OPTIMIZER:
        value = saved.get(name, now[name])  # older checkpoints lack what was not there yet
        if value != now[name]:
            raise UsageError(name, now[name], f"the checkpoint was trained with {value}", "keep it, or start anew")


def check_numbers(
    lr: float,
    weight_decay: float,
    warmup_fraction: float,
    label_smoothing: float,
    layer_decay: float,
    head_lr_factor: float,
) -> None:
    """Refuses numbers out of their range.

    Raises:
        UsageError: If there is one.
    """
    if not (lr > 0 and math.isfinite(lr)):
        raise UsageError("lr", lr, "give a number above 0, for example 0.001")
    if not weight_decay >= 0:
        raise UsageError("weight_decay", weight_decay, "give 0 or more")
    if not 0 <= warmup_fraction < 1:
        raise UsageError("warmup_fraction", warmup_fraction, "give a share from 0 to below 1")
    if not 0 <= label_smoothing < 1:
        raise UsageError("label_smoothing", label_smoothing, "give a share from 0 to below 1")
    if not 0 < layer_decay <= 1:
        raise UsageError("layer_decay", layer_decay, "give a factor above 0, at most 1 (no decay)")
    if not (head_lr_factor > 0 and math.isfinite(head_lr_factor)):
        raise UsageError("head_lr_factor", head_lr_factor, "give a number above 0, for example 10")


def epochs_of_cycle(model: Any, trainer: Any) -> int | None:
    """Returns the epochs of each of a run's cycles; None if its rate has none.

    Args:
        model: A classifier's options: schedule, cycles.
        trainer: A trainer, or its options: max_epochs, max_steps, check_val_every_n_epoch.

    Raises:
        UsageError: If the cycles would not end with an epoch that is validated, or there are cycles without `cyclic`.
    """
    if (model.schedule == "cyclic") != (model.cycles is not None):
        reason = "goes with `schedule=cyclic`, and that with a number of cycles"
        raise UsageError("cycles", model.cycles, reason, "give both or neither")
    if model.cycles is None:
        return None
    if model.cycles < 1:
        raise UsageError("cycles", model.cycles, "give a whole number of at least 1")
    epochs = trainer.max_epochs or 0
    if epochs < model.cycles or epochs % model.cycles or trainer.max_steps not in (None, -1):
        remedy = "give a multiple of it as `max_epochs`, and no `max_steps`"
        raise UsageError("cycles", model.cycles, "cycles are equal and end with an epoch", remedy)
    found: int = epochs // model.cycles
    if found % (trainer.check_val_every_n_epoch or 1):
        reason = f"each cycle of {found} epochs ends with a validation"
        raise UsageError("check_val_every_n_epoch", trainer.check_val_every_n_epoch, reason, "leave it out")
    return found


class PathSolver(torch.optim.LBFGS):
    """L-BFGS along a path of L2 penalties, one minimum at each step.

    Made for a linear head on features that stay: the loss of all images in one batch plus half the penalty times the
    squared weights is convex, so a step has one right result. The penalties fall from 1 to 1e-4 in equal ratios, and
    each minimum starts from the one before, as in Friedman et al. 2010, "Regularization paths for generalized linear
    models via coordinate descent", section 2.5.

    Args:
        parameters: The head's; those with two or more axes are penalised.
        num_steps: How many penalties.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], num_steps: int) -> None:
        # Float32 losses near 1 agree to about seven digits: a smaller improvement is rounding.
        super().__init__(
            parameters,
            max_iter=200,
            tolerance_grad=1e-4,
            tolerance_change=1e-7,
            history_size=10,
            line_search_fn="strong_wolfe",
        )
        self.num_steps = num_steps
        self.param_groups[0]["steps"] = 0

    @property
    def penalty(self) -> float:
        """That of the last step; before the first, that of the first."""
        return path_of_penalties(self.num_steps)[max(0, self.param_groups[0]["steps"] - 1)]

    def step(self, closure: Any) -> Any:  # type: ignore[override]  # torch's has a narrower type
        """Moves the parameters to the minimum at the next penalty.

        Args:
            closure: Computes the loss and its gradient.

        Returns:
            What the closure returned at the minimum, without the penalty.
        """
        (group,) = self.param_groups
        group["steps"] = min(group["steps"] + 1, self.num_steps)
        penalised, penalty = [weight for weight in group["params"] if weight.ndim > 1], self.penalty

        def with_penalty() -> torch.Tensor:
            """Adds the penalty to the loss, and its gradient to that of the loss."""
            loss = closure()
            with torch.no_grad():
                for weight in penalised:
                    weight.grad.add_(weight, alpha=penalty)
                    loss = loss + 0.5 * penalty * weight.square().sum()
            return loss

        super().step(with_penalty)
        self.state.clear()  # what it knows of the curvature belongs to this penalty
        with torch.enable_grad():
            return closure()


def path_of_penalties(num_steps: int) -> list[float]:
    """Returns the penalties of `PathSolver`, from 1 down to 1e-4; of a single step 1e-2."""
    return [1e-2] if num_steps == 1 else np.geomspace(1, 1e-4, num_steps).tolist()
