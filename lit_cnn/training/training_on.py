"""Training on, in a run of its own, from where another run stood: for longer, or with other batches.

The place in the run is kept by epochs: whoever has done 3 of 6 epochs is at the half of the learning rate's schedule,
however many steps an epoch had. Where an epoch has other steps now, all counts become those of a run that had always
had them. A checkpoint from within an epoch goes on at the same share of that epoch.
"""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import yaml

from lit_cnn.core.errors import UsageError
from lit_cnn.core.run_params import decides
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.optimization import learning_rate_factor
from lit_cnn.training.record import flatten
from lit_cnn.training.steps import accumulated, limited, steps_after, steps_of_run


class TrainOn(pl.Callback):
    """Puts a trainer that restores a checkpoint of another run at its place in this one.

    Args:
        batches_before: Training batches that an epoch of that run had.
    """

    def __init__(self, batches_before: int) -> None:
        self.batches_before = batches_before

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Rewrites the counts and the learning rates before they are restored."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
        put_in_place(checkpoint, trainer, pl_module.hparams, self.batches_before, data.num_train_batches)


def batches_of(checkpoint: Mapping[str, Any]) -> int:
    """Returns how many training batches an epoch of a checkpoint's run has."""
    record = checkpoint.get("lit_cnn", {})
    if "num_batches" in record:
        return record["num_batches"]
    config = yaml.safe_load(record.get("config", "{}"))  # of 0.2 and before
    num_images = sum(checkpoint["hyper_parameters"].get("class_counts") or [1])
    batches = -(-num_images // config.get("data", {}).get("batch_size", num_images))
    return limited(batches, config.get("trainer", {}).get("limit_train_batches"))


def epochs_done(checkpoint: Mapping[str, Any]) -> float:
    """Returns the epochs that a checkpoint's run had done; 2.5 is the middle of the third."""
    epochs, share = _place(checkpoint, batches_of(checkpoint))
    return epochs + share


def how_continued(checkpoint: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Returns in words after how many epochs a run trains on, and what that decides its weights was other till then.

    Args:
        checkpoint: Of the run before.
        params: Option -> value, of this run.
    """
    config = yaml.safe_load(checkpoint.get("lit_cnn", {}).get("config", "{}"))
    before = {**dict.fromkeys(_unset(config)), **flatten(config)}
    other = [name for name, value in before.items() if decides(name) and str(value) != str(params.get(name))]
    values = {name: "null" if before[name] is None else before[name] for name in other}
    options = ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in values.items())
    return f"after {epochs_done(checkpoint):.3g} epochs{f' with {options}' if options else ''}"


def splits_before(checkpoint: Mapping[str, Any], is_same_run: bool) -> list[str]:
    """Returns the digests of the splits that a run was trained on before its own one.

    Args:
        checkpoint: What it goes on from; empty for a run that starts anew.
        is_same_run: Whether that is its own.
    """
    record = checkpoint.get("lit_cnn", {})
    own = [] if is_same_run else [digest for name, digest in record.get("digests", {}).items() if name == "split"]
    return list(dict.fromkeys([*record.get("splits_before", []), *own]))


def warn_of_seen(splits: Sequence[str], data: ImageDataModule, splits_folder: Path, by: str) -> dict[str, str]:
    """Tells on stderr of images of val and test that were trained on before; returns the tags that say so.

    Args:
        splits: See `images_seen`.
        data: Likewise.
        splits_folder: Likewise.
        by: What was trained on them.
    """
    seen = images_seen(splits, data, splits_folder)
    if not seen:
        return {}
    print(f"lit-cnn: warning: {by} was trained on {seen}: figures on them are too good", file=sys.stderr)
    return {"lit_cnn.trained_on": seen}


def seen_sentences(
    splits: Sequence[str], data: ImageDataModule, splits_folder: Path, of_folds: bool = False
) -> list[str]:
    """Returns the sentence that says of a result that its images were trained on before; see `images_seen`."""
    seen = images_seen(splits, data, splits_folder, of_folds)
    return [f"These figures are too good: what it started from was trained on {seen}."] if seen else []


def images_seen(splits: Sequence[str], data: ImageDataModule, splits_folder: Path, of_folds: bool = False) -> str:
    """Returns in words how many images of val and test were trained on before; "" if none or not known.

    Images are known by their paths and classes. Of a split with less than half of its images here nothing is said: it
    is taken for that of another set.

    Args:
        splits: Digests of the splits before; see `splits_before`.
        data: Of this run.
        splits_folder: Where split manifests are kept.
        of_folds: Whether the images of all folds stand for val.
    """
    images, names = data.image_set, data.class_names
    here = set(zip(images.paths, (names[label] for label in images.labels), strict=True))
    trained: set[str] = set()
    for digest in splits:
        kept = splits_folder / f"{digest[:16]}.csv"
        if digest != data.digests["split"] and kept.is_file():
            rows = list(csv.reader(io.StringIO(kept.read_text(encoding="utf-8"))))[1:]
            if 2 * sum((path, class_name) in here for path, class_name, _ in rows) >= len(rows):
                trained |= {path for path, class_name, split in rows if split == "train" and (path, class_name) in here}
    paths = images.paths
    val = {"the folds": np.concatenate(data.splits.folds)} if of_folds else {"val": data.splits.val}
    evaluated: dict[str, np.ndarray] = {**val, "test": data.splits.test}
    seen = {split: sum(paths[index] in trained for index in indices) for split, indices in evaluated.items()}
    return " and ".join(f"{n} of the {len(evaluated[split])} images of {split}" for split, n in seen.items() if n)


def check_same_network(checkpoint: Mapping[str, Any], model: LitClassifier, path: Any) -> None:
    """Refuses a checkpoint whose weights are not those of a network of this kind.

    Args:
        checkpoint: With its `state_dict`.
        model: What is to have its weights.
        path: Where it is.

    Raises:
        UsageError: Naming the architecture that it is of.
    """
    shapes = {name: tuple(values.shape) for name, values in checkpoint["state_dict"].items()}
    if shapes == {name: tuple(values.shape) for name, values in model.state_dict().items()}:
        return
    saved, own = checkpoint["hyper_parameters"], model.hparams
    names = ("arch", "arch_options", "cut_at", "head", "image_size", "in_channels", "num_classes")
    other = [name for name in names if saved.get(name) != own[name]] or ["arch_options"]
    reason = f"is of {', '.join(f'`{name}={saved.get(name)}`' for name in other)}"
    raise UsageError("ckpt_path", path, reason, "give the same, or another checkpoint")


def steps_done(checkpoint: Mapping[str, Any], trainer: Any, before: int, now: int) -> int:
    """Returns the optimizer steps that a run would have made at a checkpoint's place; see `put_in_place`."""
    epochs, _, batch = _place_now(checkpoint, trainer, before, now)
    return steps_after(epochs, now, trainer, batch)


def put_in_place(checkpoint: dict[str, Any], trainer: Any, hparams: Any, before: int, now: int) -> None:
    """Rewrites a checkpoint's counts and learning rates to those at the same share of another run.

    Args:
        checkpoint: Of Lightning's fit loop; changed.
        trainer: A trainer, or its options: max_epochs, max_steps, limit_train_batches, accumulate_grad_batches,
            callbacks.
        hparams: The classifier's: schedule, warmup_fraction, cycles.
        before: Training batches of an epoch of the checkpoint's run.
        now: Training batches that the data have for an epoch of this one.

    Raises:
        UsageError: If the checkpoint is from within an epoch and there is no such place in this run.
    """
    epochs, used, batch = _place_now(checkpoint, trainer, before, now)
    loops = checkpoint["loops"]["fit_loop"]
    batches, steps = loops["epoch_loop.batch_progress"], steps_after(epochs, now, trainer, batch)
    if batch:  # where a number of steps or a time has ended an epoch, it is not at its end
        for count in loops["epoch_progress"].values():
            count["processed"] = count["completed"]
    _shift(batches["current"], "processed", batch or used)
    _shift(batches["total"], "processed", epochs * used + batch)
    optimizer = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] += steps - optimizer["completed"]
    _shift(optimizer, "completed", steps)
    _shift(loops["epoch_loop.scheduler_progress"]["total"], "completed", steps)
    checkpoint["global_step"] = steps
    shape = hparams["schedule"], hparams["warmup_fraction"], hparams["cycles"]
    factor = learning_rate_factor(steps, steps_of_run(trainer, now), *shape)
    for state in checkpoint.get("callbacks", {}).values():
        if "latest_update_step" in state:  # of Lightning's WeightAveraging
            state["latest_update_step"] = steps
    for schedule, state in zip(checkpoint["lr_schedulers"], checkpoint["optimizer_states"], strict=False):
        schedule["last_epoch"], schedule["_step_count"] = steps, steps + 1
        schedule["_last_lr"] = [rate * factor for rate in schedule["base_lrs"]]
        for group, rate in zip(state["param_groups"], schedule["_last_lr"], strict=True):
            group["lr"] = rate


def _place_now(checkpoint: Mapping[str, Any], trainer: Any, before: int, now: int) -> tuple[int, int, int]:
    """Returns the whole epochs that are done, the batches of each, and those that are done of the next one.

    Raises:
        UsageError: If the checkpoint is from within an epoch and there is no such place in this run.
    """
    epochs, share = _place(checkpoint, before)
    used = limited(now, trainer.limit_train_batches)
    if not share:
        return epochs, used, 0
    of_step = accumulated(trainer, epochs)
    batch = max(1, int(share * used) // of_step) * of_step
    if batch >= used:
        reason = f"{epochs + share:.2f} epochs are done, and an epoch of this run has no place within it"
        raise UsageError("ckpt_path", None, reason, "give a smaller `batch_size`, or the checkpoint of a whole epoch")
    return epochs, used, batch


def _place(checkpoint: Mapping[str, Any], num_batches: int) -> tuple[int, float]:
    """Returns the whole epochs that are done, and the share of the next one, in [0, 1)."""
    loops = checkpoint["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
    has_ended = epochs["started"] == epochs["processed"]
    if has_ended and batches.get("is_last_batch", True):
        return epochs["processed"], 0.0
    whole, done = epochs["processed"] - has_ended, batches["current"]["processed"]  # steps or a time can end an epoch
    return (whole + 1, 0.0) if done >= num_batches else (whole, done / num_batches)


def _unset(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns the options of nested sections that are None, as `flatten` names those that are not."""
    found = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            found += _unset(value, f"{prefix}{name}.")
        elif value is None:
            found.append(f"{prefix}{name}")
    return found


def _shift(progress: dict[str, int], by: str, value: int) -> None:
    """Makes one of a progress's counts a value, and moves the others with it."""
    difference = value - progress[by]
    for name in progress:
        progress[name] += difference
