"""`lit_cnn.tune`: `lit-cnn tune` from Python.

This module imports nothing heavy before the names of the options are checked, as the commands do.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_cnn.cli.fit_config import arguments_of
from lit_cnn.cli.tune import PRUNERS, SAMPLERS, with_crew
from lit_cnn.cli.verbs import seconds_of
from lit_cnn.core.environment import set_environment
from lit_cnn.core.errors import UsageError, at_least
from lit_cnn.core.memory import keep_freed_memory

if TYPE_CHECKING:
    from lit_cnn.search.result import SearchResult

set_environment()


def tune(
    *configs: str | Path,
    search: str | Path | Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    trials: int = 30,
    budget: float | str | None = None,
    parallel: int | None = None,
    sampler: Literal["tpe", "random", "grid"] = "tpe",
    pruner: Literal["asha", "hyperband", "none"] = "asha",
    folds: int | None = None,
    seed: int = 0,
    final_seeds: int = 3,
    study: str | None = None,
    engine: Literal["ray"] | None = None,
    address: str | None = None,
    output: str | Path = "search",
) -> "SearchResult":
    """Searches options of `lit-cnn fit`, as `lit-cnn tune` does: the same trials, the same tracked runs.

    The trials run in processes of their own, so a script needs no guard of `__main__`, and a notebook does too.

    Args:
        *configs: Names or files of configurations, as of `fit_config`.
        search: What is searched: `lr`, `transfer`, `augment`, `architecture`, a file, or option -> values, such as
            `{"model.lr": {"low": 1e-4, "high": 0.1, "log": True}, "model.optimizer": ["adamw", "sgd"]}`.
        options: Those of `lit-cnn fit` by their dotted names, for all trials; they win over the configurations.
            `{"resume": "auto"}` goes on with a search that was stopped.
        trials: How many, at most.
        budget: Seconds, or a text such as `60m`: begin no trial that would end later. Default: none.
        parallel: Trials at once. Default: one a GPU, else 1.
        sampler: Who draws.
        pruner: Who ends trials early.
        folds: Train a network on each of so many folds a trial.
        seed: Of the draws; the option `seed_everything` is the trainings'.
        final_seeds: With how many new training seeds the best is trained anew, and tested.
        study: A database that keeps the trials, `postgresql://…`. Default: a file beside the run.
        engine: `ray`: the machines of a Ray cluster. Default: this one.
        address: Of the cluster's head, `HOST:PORT` or `auto`. Default: that of RAY_ADDRESS.
        output: Folder for the report, with `best.yaml`, the best as a configuration.

    Returns:
        What they came to: `best.values`, `optimism`, `answer()`; it shows itself in a notebook.

    Raises:
        UsageError: If it cannot be searched so; nothing is trained then.
        RunFailedError: If no trial can be trained.
        RunInterrupted: If a signal stopped it, after checkpoints; the option `resume="auto"` goes on.

    Example:
        >>> import lit_cnn
        >>> small = {"trainer.max_epochs": 1, "data.limit_train": 128, "data.num_workers": 0}
        >>> rates = {"model.lr": [0.001, 0.01]}
        >>> found = lit_cnn.tune("lenet5_scratch_digits", search=rates, options=small, final_seeds=0)
        >>> found.best.values
        {'model.lr': 0.01}
    """
    at_least(1, trials=trials, parallel=parallel)
    at_least(0, final_seeds=final_seeds)
    at_least(2, folds=folds)
    choices = ("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS), ("engine", engine, (None, "ray"))
    for name, value, known in choices:
        if value not in known:
            raise UsageError(name, value, f"choose one of {', '.join(filter(None, known))}")
    command = argparse.Namespace(
        search=search if isinstance(search, Mapping) else str(search),
        trials=trials,
        budget=_seconds(budget),
        parallel=parallel,
        sampler=sampler,
        pruner=pruner,
        folds=folds or 0,
        seed=seed,
        final_seeds=final_seeds,
        study=study,
        engine=engine,
        address=address,
        output=Path(output),
    )
    arguments = arguments_of(configs, options or {})
    keep_freed_memory()
    return with_crew(command, arguments, lambda run: run())


def _seconds(budget: float | str | None) -> float | None:
    if isinstance(budget, str):
        try:
            return seconds_of(budget)
        except argparse.ArgumentTypeError as error:
            raise UsageError("budget", budget, "give a time such as 90s, 60m or 2h") from error
    if budget is not None and not budget > 0:
        raise UsageError("budget", budget, "give seconds, or a time such as 60m")
    return budget
