"""`lit_cnn.fit_config`: `lit-cnn fit` from Python, for one configuration or for the arms of an experiment.

This module imports nothing heavy before the names of the options are checked, as the commands do.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_cnn.cli.precheck import precheck
from lit_cnn.core.environment import set_environment
from lit_cnn.core.errors import UsageError
from lit_cnn.core.memory import keep_freed_memory

if TYPE_CHECKING:
    from lit_cnn.evaluation.arms import Arm
    from lit_cnn.tracking.run import Run

set_environment()  # where `lit_cnn.evaluation.arms` is imported after this, say

# What the parser takes too, and does not train.
_OF_COMMAND = {"c", "config", "find_batch_size", "h", "help", "print_config"}


def fit_config(
    *configs: str | Path,
    options: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    teachers: "Sequence[Run | str]" = (),
) -> "Run":
    """Trains what configurations say, as `lit-cnn fit --config …` does: the same weights, the same tracked run.

    Args:
        *configs: Names, such as `own_images` and `transfer/head_only` (`lit-cnn configs` lists them), or YAML files;
            a later one wins.
        options: Those of `lit-cnn fit` by their dotted names, `{"model.lr": 0.05, "recipe": "fast"}`; they win over
            the configurations.
        seeds: Train once with each of these, under one run with their mean and standard deviation.
        teachers: Train a student of these runs, as `lit-cnn distill` does; an ensemble stands for its members.

    Returns:
        The run, with its id, metrics and best checkpoint; with `seeds` the parent, with the runs as its children.

    Raises:
        UsageError: If there is no such configuration or option, or it cannot be trained so; nothing is written then.
        RunFailedError: If a disk or the memory was full; the option `resume="auto"` goes on.
        RunInterrupted: If a signal stopped it, after a checkpoint; the option `resume="auto"` goes on.

    Example:
        >>> import lit_cnn
        >>> options = {"trainer.max_epochs": 1, "data.num_workers": 0}
        >>> run = lit_cnn.fit_config("lenet5_scratch_digits", options=options)
        >>> 0 < run.metrics["test/acc"] < 1
        True
    """
    arguments = arguments_of(configs, options or {})
    precheck(arguments, is_typed=False)
    keep_freed_memory()
    from lit_cnn.cli.distill import with_teachers
    from lit_cnn.cli.lit_cli import LitCLI
    from lit_cnn.cli.train import train_seeds
    from lit_cnn.training.classifier import LitClassifier
    from lit_cnn.training.distillation import Distillation
    from lit_cnn.training.process import hush_lightning
    from lit_cnn.training.run import train

    hush_lightning()
    model_class: type[LitClassifier] = LitClassifier
    if teachers:
        model_class, arguments = Distillation, with_teachers(teachers, arguments)
    if seeds is not None:
        return train_seeds(seeds, arguments, model_class)
    return train(LitCLI("fit", arguments, model_class).setup)


def train_missing(
    arms: "Sequence[Arm]", experiment: str, seeds: Sequence[int], options: Mapping[str, Any] | None = None
) -> None:
    """Trains, arm by arm, with those seeds of which the experiment has no finished run yet, and says so.

    Args:
        arms: What to train.
        experiment: Name of the MLflow experiment, in the store that `resolve_store` finds.
        seeds: Training seeds.
        options: Further options of `fit_config`, for every arm; they win.

    Raises:
        UsageError: As `fit_config`, and so do the others.
    """
    from lit_cnn.evaluation.arms import finished_runs

    for arm in arms:
        done = finished_runs(arm, experiment)
        missing = [seed for seed in seeds if seed not in done]
        print(f"{arm.label}: {len(seeds) - len(missing)} of {len(seeds)} runs are there", flush=True)
        if missing:
            # A line for each run, on standard error, and none for each epoch.
            given = {"trainer.enable_progress_bar": False, **arm.options, **(options or {}), "experiment": experiment}
            fit_config(*arm.configs, options=given, seeds=missing, teachers=arm.teachers)


def arguments_of(configs: Sequence[str | Path], options: Mapping[str, Any]) -> list[str]:
    """Returns configurations and options as arguments of `lit-cnn fit`.

    Raises:
        UsageError: If an option is none of a run.
    """
    for name in _OF_COMMAND & options.keys():
        raise UsageError(name, options[name], "is no option of a run", "leave it out")
    return [*(f"--config={name}" for name in configs), *map(_argument, options, options.values())]


def _argument(name: str, value: Any) -> str:
    """Returns an option as the command line has it: text as it is, all else as YAML."""
    return f"--{name}={value if isinstance(value, str | Path) else json.dumps(value)}"
