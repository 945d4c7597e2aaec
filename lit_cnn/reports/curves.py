"""How a run went, epoch by epoch: its losses and its accuracy as one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lit_cnn.reports.figures import REFERENCE_COLOR, save_png

_COLORS = {"train": "#64748b", "val": "#0b5cad"}


def plot_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], best_epoch: int | None, path: Path
) -> None:
    """Draws the losses on the left and the accuracies on the right, with the best epoch marked.

    Args:
        curves: Metric, such as `val/acc` -> epochs, from 1, and values.
        best_epoch: Number of the epoch that was best on val, from 1; None for no mark.
        path: The PNG file; replaced whole if it is there.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("loss", "acc"), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("epoch")
        axes.set_title("loss" if what == "loss" else "accuracy, %", fontsize=10, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for name, (epochs, values) in curves.items():
            split, _, metric = name.partition("/")
            if metric == what and len(epochs):
                shown = np.asarray(values, float) * (100 if what == "acc" else 1)
                mark = "o" if len(epochs) <= 30 else ""
                axes.plot(epochs, shown, color=_COLORS[split], marker=mark, markersize=3, label=name, clip_on=False)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=REFERENCE_COLOR, linewidth=1, linestyle="--", label="best epoch on val")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    save_png(figure, path)


def plot_folds(
    curves: Mapping[str, Sequence[float]], best: Mapping[str, int], nested: float | None, path: Path
) -> None:
    """Draws each fold's accuracy by epoch, their mean, and what is right with the epoch chosen on the other folds.

    Args:
        curves: Label -> shares in [0, 1] after each epoch.
        best: Label -> number of the best epoch, from 0.
        nested: A share; None for no line.
        path: The PNG file; replaced whole if it is there.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("epoch")
    axes.set_title("accuracy on the own fold, %", fontsize=10, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    longest = max(map(len, curves.values()))
    for place, (fold, values) in enumerate(curves.items()):
        label = "a network on its fold" if place == 0 else None
        places = np.arange(1, len(values) + 1)
        axes.plot(places, 100 * np.asarray(values), color=_COLORS["train"], alpha=0.5, linewidth=1, label=label)
        if best.get(fold, longest) < len(values):
            axes.plot(best[fold] + 1, 100 * values[best[fold]], "o", color=_COLORS["train"], markersize=4)
    padded = [[*values, *values[-1:] * (longest - len(values))] for values in map(list, curves.values())]
    mean = 100 * np.mean(padded, axis=0)
    axes.plot(np.arange(1, longest + 1), mean, color=_COLORS["val"], linewidth=2, label="mean over the folds")
    if nested is not None:
        label = "epoch chosen on the other folds"
        axes.axhline(100 * nested, color=REFERENCE_COLOR, linewidth=1, linestyle="--", label=label)
    axes.legend(frameon=False, fontsize=8)
    save_png(figure, path)
