"""What a run is about to do, on a few lines: before its first step, when nothing refuses it any more."""

import textwrap

import numpy as np
import torch

from lit_cnn.core.errors import as_printed
from lit_cnn.core.precision import is_cpu
from lit_cnn.core.words import counted
from lit_cnn.data.class_table import class_table, count_classes
from lit_cnn.data.splits import SPLIT_NAMES
from lit_cnn.training.setup import Setup

_WIDTH, _INDENT = 80, 9  # columns
_MOST_FOLDS = 10  # that have a column each


def start_summary(setup: Setup) -> str:
    """Returns classes by splits, network, regime and why, weights and why, images, device and precision.

    Args:
        setup: Of the run, its data read.
    """
    data, folds = setup.data, setup.data.splits.folds
    columns: dict[str, np.ndarray] = {split: data.splits[split] for split in SPLIT_NAMES}
    if folds:  # the same for all of them
        columns = {f"fold {number}": fold for number, fold in enumerate(folds)}
        if len(folds) > _MOST_FOLDS:
            columns = {f"in {len(folds)} folds": np.concatenate(folds)}
        columns["test"] = data.splits.test
    table = class_table(count_classes(data.image_set, columns))
    lines = {"folds": _folds(setup), "network": _network(setup), "regime": _regime(setup), "weights": _weights(setup)}
    lines |= {"images": _images(setup), "device": _device(setup)}
    return "\n".join([table, *(_line(name, text) for name, text in lines.items() if text)])


def _line(name: str, text: str) -> str:
    width = _WIDTH - _INDENT
    lines = textwrap.wrap(as_printed(text), width, break_long_words=False, break_on_hyphens=False)
    return f"{name:{_INDENT}}" + f"\n{' ' * _INDENT}".join(lines)


def _folds(setup: Setup) -> str:
    folds, image_set = setup.data.splits.folds, setup.data.image_set
    if not folds:
        return ""
    sizes = [len(fold) for fold in folds]
    among = ", those of the source's own val among them" if len(image_set.splits.get("val", ())) else ""
    of = f"{min(sizes):,} to {max(sizes):,}" if min(sizes) < max(sizes) else f"{sizes[0]:,}"
    return f"{len(folds)} of {of} images{among}: one is val, the others are train; test is in none"


def _network(setup: Setup) -> str:
    parameters = list(setup.model.net.parameters())
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    total = sum(each.numel() for each in parameters)
    of_all = f"all {total:,}" if trained == total else f"{trained:,} of its {total:,}"
    return f"{setup.model.hparams['arch'].partition('/')[2]}: {of_all} parameters train"


def _regime(setup: Setup) -> str:
    regime = str(setup.model.hparams["transfer"])
    if setup.config["model"].get("transfer") != "auto":
        return regime
    data = setup.data
    num_train: float = len(data.splits.train)
    if (folds := data.splits.folds) and data.options["limit_train"] is None:  # on average: the same for all of them
        num_train = sum(map(len, folds)) * (1 - 1 / len(folds))
    per_class = num_train / data.num_classes
    return f"{regime}, as there are {per_class:,.3g} training images a class (auto)"


def _weights(setup: Setup) -> str:
    weights = setup.config["model"]["weights"]
    if weights is None and not setup.why_weights:
        return ""
    return f"{weights or 'none'}{f': {setup.why_weights}' if setup.why_weights else ''}"


def _images(setup: Setup) -> str:
    data = setup.data
    views = f", {counted(data.views, 'fixed view')} of each" if data.views else ""
    return f"{data.image_size} px, {'gray' if data.in_channels == 1 else 'RGB'}{views}"


def _device(setup: Setup) -> str:
    accelerator, devices = setup.trainer.get("accelerator", "auto"), setup.trainer.get("devices", "auto")
    several = "" if devices in ("auto", 1, "1") else f"{devices} x "
    if is_cpu(accelerator):
        name = f"{several}CPU, {counted(torch.get_num_threads(), 'thread')}"
    elif torch.cuda.is_available():
        name = f"{several}{torch.cuda.get_device_name()}"
    else:
        name = f"{several}{accelerator}"
    return f"{name}, {setup.trainer['precision']}"
