"""Lightning's Trainer for a run: our callbacks and loggers beside the user's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_cnn.core.environment import number_said
from lit_cnn.core.errors import UsageError
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.training.callbacks import FitProgress, RunAverage, RunCheckpoints, default_callbacks
from lit_cnn.training.callbacks.averaging import check_average
from lit_cnn.training.checkpoints import CheckpointIO256
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.feature_cache import FeatureCache
from lit_cnn.training.launchers import environments, leave_it_to_first
from lit_cnn.training.optimization import epochs_of_cycle
from lit_cnn.training.ranks import Ranks, join
from lit_cnn.training.run_options import RunOptions


@dataclass(frozen=True)
class RunTrainer:
    """A Trainer, and those of its callbacks that a run asks.

    Attributes:
        trainer: With all of them.
        checkpoints: Who keeps the best and the last checkpoint.
        feature_cache: Who serves cached features.
        average: Who averages the weights; None where nobody does.
        cycle_epochs: Epochs in a cycle of the learning rate; None without cycles.
        logger: Who tracks the run; None where it is not tracked.
    """

    trainer: Trainer
    checkpoints: RunCheckpoints
    feature_cache: FeatureCache
    average: RunAverage | None
    cycle_epochs: int | None
    logger: JournalLogger | None


def build_trainer(
    model: LitClassifier, options: RunOptions, given: Mapping[str, Any], logger: JournalLogger | None
) -> RunTrainer:
    """Builds the Trainer of a run.

    Args:
        model: What is to be trained.
        options: Of the run.
        given: Options of Lightning's Trainer; its `callbacks`, `logger` and `plugins` stay, beside ours.
        logger: Who tracks the run; None for an evaluation, or where it is not tracked.

    Raises:
        UsageError: If Lightning refuses an option, or an average or cycles cannot be had with these.
    """
    ours = default_callbacks(
        monitor=options.monitor,
        monitor_mode=options.monitor_mode,
        checkpoint_seconds=options.checkpoint_seconds,
        on_full_disk=options.on_full_disk,
        ema_decay=options.ema_decay,
        swa_start=options.swa_start,
        progress_bar=given.get("enable_progress_bar") is not False,
        tracked=True,
    )
    (checkpoints,) = (each for each in ours if isinstance(each, RunCheckpoints))
    (feature_cache,) = (each for each in ours if isinstance(each, FeatureCache))
    average = next((each for each in ours if isinstance(each, RunAverage)), None)
    schedule = SimpleNamespace(**{"max_steps": -1, "check_val_every_n_epoch": 1, **given})
    cycle_epochs = epochs_of_cycle(model.hparams, schedule)
    check_average(average, model.hparams, schedule)
    trainer = _trainer(given, ours, logger)
    return RunTrainer(trainer, checkpoints, feature_cache, average, cycle_epochs, logger)


def meet(given: Mapping[str, Any]) -> Ranks:
    """Makes the processes of a run meet before model and data are built, so that they hear of what fails there.

    Args:
        given: Options of Lightning's Trainer as plain values. If it is objects that say how many processes there are,
            they meet later, by the run's Trainer.
    """
    options = {name: given.get(name) for name in ("accelerator", "devices", "num_nodes", "strategy")}
    if given.get("plugins") or not all(isinstance(each, str | int | list | None) for each in options.values()):
        return Ranks()
    said = {name: value for name, value in options.items() if value is not None}
    return join(_trainer({**said, "enable_checkpointing": False, "enable_progress_bar": False}, [], None))


def evaluation_trainer(given: Mapping[str, Any]) -> Trainer:
    """Builds the Trainer of an evaluation, which tracks and keeps nothing."""
    ours = [FitProgress()] if given.get("enable_progress_bar") is not False else []
    return _trainer({**given, "logger": None, "enable_checkpointing": False}, ours, None)


def _trainer(given: Mapping[str, Any], ours: Sequence[Callback], logger: JournalLogger | None) -> Trainer:
    loggers = [*([logger] if logger is not None else []), *_loggers(given.get("logger"))]
    plugins = _several(given.get("plugins"))
    config = {
        **{name: value for name, value in given.items() if name != "plugins"},
        "callbacks": [*_several(given.get("callbacks")), *ours],
        "logger": loggers or False,
        "use_distributed_sampler": False,
    }
    check_accelerator(given.get("accelerator"))
    try:
        trainer = Trainer(**config, plugins=[*plugins, *environments(given, plugins), CheckpointIO256()])
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UsageError("trainer", None, " ".join(str(error).split())) from error
    except RuntimeError as error:  # SLURM's variables, as Lightning wants them
        if number_said("SLURM_PROCID"):
            leave_it_to_first()
        raise UsageError("trainer", None, " ".join(str(error).split())) from error
    # With max_steps, Lightning would end an epoch a second time that was at its end when its checkpoint was written.
    trainer.fit_loop._iteration_based_training = _never  # type: ignore[method-assign]
    for_first: Any = rank_zero_only
    for_first.rank = trainer.global_rank  # until here it was what some variable says
    return trainer


def check_accelerator(given: Any) -> None:
    """Refuses an accelerator that there is not, by its name.

    Raises:
        UsageError: If it is no name of Lightning's, or nothing of the kind is in this machine.
    """
    if not isinstance(given, str) or given in ("auto", "cpu"):
        return
    names = [name for name in AcceleratorRegistry.available_accelerators() if name != "cpu"]
    if given not in ("gpu", *names):
        raise UsageError("accelerator", given, f"choose one of auto, cpu, gpu, {', '.join(names)}")
    wanted = ("cuda", "mps") if given == "gpu" else (given,)
    if not any(AcceleratorRegistry[name]["accelerator"].is_available() for name in wanted):
        what = "GPU" if given in ("gpu", "cuda") else given
        reason = f"PyTorch finds no {what} on this machine"
        raise UsageError("accelerator", given, reason, "give `accelerator=cpu`, or auto for the best that there is")


def _never() -> bool:
    """Takes the place of Lightning's own; a function with a name, as `ddp_spawn` pickles the trainer."""
    return False


def _several(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _loggers(given: Any) -> list[Logger]:
    if given is True:
        raise UsageError(
            "logger", True, "the run is tracked in MLflow", "name the class of another logger besides, or leave it out"
        )
    return [] if given is False else _several(given)
