"""Lightning's Trainer for a run: our callbacks and loggers beside the user's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_cnn.core.errors import UsageError
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.training.averaging import EqualAverage, RunAverage, average_of_run
from lit_cnn.training.callbacks import RunCheckpoints, StepMetrics
from lit_cnn.training.checkpoints import CheckpointIO256
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.feature_cache import FeatureCache
from lit_cnn.training.fit_progress import FitProgress
from lit_cnn.training.optimization import epochs_of_cycle
from lit_cnn.training.run_options import RunOptions
from lit_cnn.training.snapshots import Snapshots
from lit_cnn.training.whitening import Whitening


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
    checkpoints = RunCheckpoints(
        options.monitor, options.monitor_mode, options.checkpoint_seconds, options.on_full_disk
    )
    feature_cache = FeatureCache()
    schedule = SimpleNamespace(**{"max_steps": -1, "check_val_every_n_epoch": 1, **given})
    cycle_epochs = epochs_of_cycle(model.hparams, schedule)
    average = average_of_run(
        options.ema_decay, options.swa_start, model.hparams["schedule"], cycle_epochs or 1, given.get("max_epochs") or 0
    )
    # The first layer is whitened before features are computed with it.
    ours: list[Callback] = [StepMetrics(), checkpoints, Whitening(), feature_cache]
    if average is not None:
        ours.append(average)
    if isinstance(average, EqualAverage):
        # best.ckpt is to be the best of the averages, not of what was before them.
        average.begins = checkpoints.best.clear
    if cycle_epochs is not None:
        ours.append(Snapshots(checkpoints, cycle_epochs))
    if given.get("enable_progress_bar") is not False:
        ours.append(FitProgress())
    trainer = _trainer(given, ours, logger)
    return RunTrainer(trainer, checkpoints, feature_cache, average, cycle_epochs, logger)


def evaluation_trainer(given: Mapping[str, Any]) -> Trainer:
    """Builds the Trainer of an evaluation, which tracks and keeps nothing."""
    ours = [FitProgress()] if given.get("enable_progress_bar") is not False else []
    return _trainer({**given, "logger": None, "enable_checkpointing": False}, ours, None)


def _trainer(given: Mapping[str, Any], ours: Sequence[Callback], logger: JournalLogger | None) -> Trainer:
    loggers = [*([logger] if logger is not None else []), *_loggers(given.get("logger"))]
    config = {
        **given,
        "callbacks": [*_several(given.get("callbacks")), *ours],
        "plugins": [*_several(given.get("plugins")), CheckpointIO256()],
        "logger": loggers or False,
        "use_distributed_sampler": False,
    }
    try:
        return Trainer(**config)
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UsageError("trainer", None, " ".join(str(error).split())) from error


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
