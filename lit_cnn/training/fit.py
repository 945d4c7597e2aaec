"""`lit_cnn.fit`: one tracked run, or one for each of several seeds or folds, from Python."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning.pytorch import Trainer

from lit_cnn.core.errors import UsageError
from lit_cnn.core.memory import keep_freed_memory
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.tracking.run import Run
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.distillation import Distillation
from lit_cnn.training.folds import Folds, train_folds
from lit_cnn.training.linked import plain_config
from lit_cnn.training.parents import of_seeds
from lit_cnn.training.process import hush_lightning
from lit_cnn.training.record import recorded_config
from lit_cnn.training.run import train, train_children
from lit_cnn.training.run_options import RunOptions, trainer_options
from lit_cnn.training.setup import Setup

_OF_RUN = tuple(field.name for field in fields(RunOptions))
_OF_TRAINER = {
    name: each.default for name, each in inspect.signature(Trainer.__init__).parameters.items() if name != "self"
}


def fit(
    model: LitClassifier,
    data: ImageDataModule,
    *,
    seeds: Sequence[int] | None = None,
    folds: int | None = None,
    split_seeds: Sequence[int] | None = None,
    **options: Any,
) -> Run:
    """Trains a classifier, tracks the run, keeps its best checkpoint and tests that: what `lit-cnn fit` does.

    Args:
        model: What to train; `LitClassifier.for_data(data, …)` makes one that fits the data.
        data: On what.
        seeds: Train once with each of these, under one run with their mean and standard deviation. Model and data are
            built anew from their arguments for each.
        folds: Train on each of so many folds, under one run that keeps what each network says of the images that it
            was not trained on; see `lit_cnn.training.folds`. With `seeds`: with each of them.
        split_seeds: Cut the folds anew with each of these; test stays as it is.
        **options: Those of a run (`resume`, `ckpt_path`, `monitor`, `monitor_mode`, `checkpoint_seconds`,
            `on_full_disk`, `ema_decay`, `swa_start`, `test_after_fit`, `log_preview`, `report`, `recipe`, `experiment`,
            `track`, `tracking_uri`: see `RunOptions`), and those of Lightning's Trainer (`max_epochs`, `precision`,
            `accelerator`, `devices`, `callbacks`, `logger`, …). Callbacks and loggers work beside ours.

    Returns:
        The run, with its id, metrics and best checkpoint; with `seeds` or `folds` the parent, with the runs as its
        children.

    Raises:
        UsageError: If it cannot be trained so; nothing is written then.
        RunFailedError: If a disk or the memory was full; `resume="auto"` goes on.
        RunInterrupted: If a signal stopped it, after a checkpoint; `resume="auto"` goes on.

    Example:
        >>> import lit_cnn
        >>> data = lit_cnn.ImageDataModule("digits", num_workers=0)
        >>> model = lit_cnn.LitClassifier.for_data(data, arch="lenet5")
        >>> run = lit_cnn.fit(model, data, max_epochs=1)
        >>> 0 < run.metrics["test/acc"] < 1
        True
    """
    run_options, given = _split(options)
    run_options.check(writes=True)
    hush_lightning()
    keep_freed_memory()
    if split_seeds is not None and folds is None:
        raise UsageError("split_seeds", split_seeds, "cuts folds anew", "give `folds=5` too")
    if seeds is None and folds is None:
        return train(setup_of(model, data, run_options, given))
    option, value = ("seeds", seeds) if folds is None else ("folds", folds)
    if isinstance(model, Distillation):
        raise UsageError(option, value, "a student is built with its teachers", f"call fit for each of the {option}")
    if run_options.ckpt_path is not None:
        raise UsageError(option, value, "does not go with `ckpt_path`", "`resume=auto` is possible")
    if folds is not None:
        if data.options["num_folds"] is not None:
            raise UsageError("folds", folds, "the data have a fold already", "leave `num_folds` out there")
        cut = Folds(folds, *(None if each is None else tuple(each) for each in (seeds, split_seeds)))
        return train_folds(cut, partial(_fold_of, model, data, run_options, given), run_options.resume == "auto")
    assert seeds is not None
    parent = of_seeds(seeds, resume=run_options.resume == "auto")
    setups = ((str(seed), partial(_with_seed, seed, model, data, run_options, given)) for seed in seeds)
    return train_children(parent, setups)


def setup_of(model: LitClassifier, data: ImageDataModule, options: RunOptions, given: Mapping[str, Any]) -> Setup:
    """Returns the setup of a run.

    Args:
        model: What is trained.
        data: On what.
        options: Of the run.
        given: Options of Lightning's Trainer.

    Raises:
        UsageError: If model and data have different seeds.
    """
    if model.hparams["seed"] != data.seed:
        raise UsageError("seed", model.hparams["seed"], f"the model's; the data has {data.seed}", "give both the same")
    trainer = trainer_options(given)
    of_trainer = {"trainer": _plain({**_OF_TRAINER, **trainer})}
    config = {**plain_config(model.hparams, data), **of_trainer, **asdict(options)}
    return Setup(model, data, options, trainer, recorded_config(config))


def _fold_of(
    model: LitClassifier,
    data: ImageDataModule,
    options: RunOptions,
    given: Mapping[str, Any],
    of_fold: Mapping[str, Any],
    seed: int | None,
) -> Setup:
    return _with_seed(data.seed if seed is None else seed, model, data, options, given, of_fold)


def _with_seed(
    seed: int,
    model: LitClassifier,
    data: ImageDataModule,
    options: RunOptions,
    given: Mapping[str, Any],
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Setup:
    own_data = ImageDataModule(**{**data.options, "weights_expect": data.weights_expect, "seed": seed, **more})
    return setup_of(model.for_other_data(own_data), own_data, options, given)


def _split(options: Mapping[str, Any]) -> tuple[RunOptions, dict[str, Any]]:
    """Returns the options of the run, and those of the Trainer."""
    for name, value in options.items():
        if name not in _OF_RUN and name not in _OF_TRAINER:
            near = difflib.get_close_matches(name, (*_OF_RUN, *_OF_TRAINER), 3, 0.6)
            hint = f"did you mean {', '.join(near)}?" if near else "see the docstring of lit_cnn.fit"
            raise UsageError(name, value, "is an option neither of a run nor of Lightning's Trainer", hint)
    of_run: dict[str, Any] = {
        name: str(each) if isinstance(each, Path) else each for name, each in options.items() if name in _OF_RUN
    }
    return RunOptions(**of_run), {name: value for name, value in options.items() if name not in _OF_RUN}


def _plain(value: Any) -> Any:
    """Returns what YAML can hold: objects, such as callbacks, by the path of their class."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = type(value)
    return str(value) if kind.__module__ == "pathlib" else f"{kind.__module__}.{kind.__qualname__}"
