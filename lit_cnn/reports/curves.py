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
