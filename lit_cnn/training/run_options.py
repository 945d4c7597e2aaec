"""What can be chosen for a run besides its model, its data and Lightning's Trainer."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from lit_cnn.core.errors import UsageError
from lit_cnn.core.precision import default_precision, is_cpu
from lit_cnn.tracking import Store, check_writable, resolve_store

MONITORS = ("val/acc", "val/acc5", "val/balanced_acc", "val/f1", "val/loss")
TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 10,
    "log_every_n_steps": 10,  # 50, Lightning's default, is more steps than a small epoch has
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "default_root_dir": "mlruns",
}
"""Where a run differs from Lightning's own defaults."""


@dataclass(frozen=True)
class RunOptions:
    """The options of a run; the command line takes them from here.

    Attributes:
        resume: auto: go on with the unfinished run of this configuration, if there is one.
        ckpt_path: A checkpoint to go on from, or to evaluate: a file, runs:/RUN_ID, or last, for the unfinished run of
            this configuration.
        monitor: The metric on val that says which epoch is best.
        monitor_mode: Whether the largest (max) or the smallest (min) is best.
        checkpoint_seconds: Seconds between two last checkpoints within an epoch.
        on_full_disk: stop: end the run; continue: train on and store what is missing when there is room.
        ema_decay: Validate, keep and test a moving average of the weights with this decay, such as 0.999.
        swa_start: The same with the equal average of the weights at the ends of all epochs from this one (1, 2, …) on.
        test_after_fit: Test the best checkpoint at the end.
        log_preview: Keep a picture of the augmentation with the run.
        report: Make a page at the end, kept with the run: curves, mistakes, what it was trained on, what it cost.
        recipe: A word that ends the run's name.
        experiment: The MLflow experiment; default: the name of the data.
        track: false: no MLflow run and no checkpoints.
        tracking_uri: The MLflow store; default: $MLFLOW_TRACKING_URI, else mlruns/.
    """

    resume: Literal["auto"] | None = None
    ckpt_path: str | None = None
    monitor: str = "val/acc"
    monitor_mode: Literal["max", "min"] = "max"
    checkpoint_seconds: float = 60.0
    on_full_disk: Literal["stop", "continue"] = "stop"
    ema_decay: float | None = None
    swa_start: int | None = None
    test_after_fit: bool = True
    log_preview: bool = False
    report: bool = True
    recipe: str | None = None
    experiment: str | None = None
    track: bool = True
    tracking_uri: str | None = None

    @property
    def store(self) -> Store:
        """The MLflow store and its local folders."""
        return resolve_store(self.tracking_uri)

    def check(self, writes: bool) -> None:
        """Refuses what can be told to be wrong before anything is read or built.

        Args:
            writes: Whether the run is to be tracked, if it asks for it: an evaluation is not.

        Raises:
            UsageError: If no such metric is logged, or the store cannot be written.
        """
        choices = {name: get_args(kind) for name, kind in get_type_hints(RunOptions).items()}
        for name, kinds in {**choices, "monitor": MONITORS}.items():
            words = [word for kind in kinds for word in (get_args(kind) or (kind,)) if isinstance(word, str)]
            value = getattr(self, name)
            if words and value is not None and value not in words:
                raise UsageError(name, value, f"choose one of {', '.join(words)}")
        if writes and self.track:
            check_writable(self.store)


def trainer_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of Lightning's Trainer for a run: those given, and what they leave open.

    The precision is settled here, so that the run records what it computes in.
    """
    options = {**TRAINER_DEFAULTS, **given}
    accelerator, precision = options.get("accelerator", "auto"), options.get("precision")
    if precision is None:
        options["precision"] = default_precision(accelerator)
    elif str(precision) in ("16", "16-mixed") and is_cpu(accelerator):
        # Lightning would compute in it too, and the run would record what was asked.
        options["precision"] = "bf16-mixed"
        print("lit-cnn: a CPU has no 16-mixed; precision is bf16-mixed", file=sys.stderr)
    return options
