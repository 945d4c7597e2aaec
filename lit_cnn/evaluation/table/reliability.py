"""Reliability diagrams: how often the network is right where it is so sure."""

from typing import TYPE_CHECKING

from lit_cnn.evaluation.calibration import Reliability
from lit_cnn.evaluation.table.numbers import Numbers, Row
from lit_cnn.reports.figures import REFERENCE_COLOR, legend_columns, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#0b5cad", "#15803d", "#7e22ce", "#52606d", "#111827")


def draw_reliability(table: Numbers) -> "Figure":
    """Draws accuracy over confidence of the reference, and of one ensemble a number of crops, 750 px high.

    One panel, and a second one after the temperature where it was fitted (Guo et al. 2017, figure 4). A disc is a
    bin, its area the share of the images; on the diagonal the network is as often right as it says. Of several
    ensembles with equal crops the last in the table that has probabilities is drawn: the one that was asked for.

    Args:
        table: What to draw; at least one of its rows has a calibration.
    """
    # Not pyplot: it keeps every figure alive and may look for a display.
    from matplotlib.figure import Figure

    together = [line.row for line in table.lines if line.row.kind == "ensemble" and line.row.calibration]
    ensembles = {row.num_views: row for row in together}
    rows = [(table.reference, REFERENCE_COLOR), *zip(ensembles.values(), _COLORS, strict=False)]
    scaled = any(row.calibration and row.calibration.scaled for row, _ in rows)
    figure = Figure(figsize=(9.6 if scaled else 5, 5), layout="constrained")
    panels = figure.subplots(1, 2 if scaled else 1, squeeze=False)[0]
    for panel, title in zip(panels, ("as they are", "after the temperature"), strict=False):
        panel.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=1, linestyle=(0, (4, 4)))
        panel.set(xlim=(0, 1.02), ylim=(0, 1.02), title=title, aspect="equal")
        panel.set_xlabel("confidence: largest probability, mean of the bin")
        panel.set_ylabel("accuracy on test in the bin")
        panel.spines[["top", "right"]].set_visible(False)
    for row, color in rows:
        if row.calibration is not None:
            _draw_bins(panels[0], row, row.calibration.reliability, color)
            if row.calibration.scaled is not None:
                _draw_bins(panels[1], row, row.calibration.scaled.reliability, color)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = legend_columns(labels, figure.get_figwidth(), most=2)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def _draw_bins(axes: "Axes", row: Row, bins: Reliability, color: str) -> None:
    label = f"{shortened(row.name)}, {row.num_models} x {row.num_views}"
    axes.plot(bins.confidence, bins.accuracy, color=color, linewidth=0.8, label=label)
    # All images in one bin would be a disc 24 points wide; a single one can still be seen.
    areas = 4 + 576 * bins.count / bins.count.sum()
    axes.scatter(bins.confidence, bins.accuracy, areas, color, alpha=0.5, linewidths=0, clip_on=False, zorder=3)
