"""The first picture of the table: what accuracy costs in forward passes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_cnn.evaluation.table.numbers import Line, Numbers
from lit_cnn.reports.figures import MEMBER_COLOR, REFERENCE_COLOR, legend_columns, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COMBINED_COLORS = ("#0b5cad", "#15803d", "#7e22ce", "#0f766e", "#b45309", "#be185d")


def ensemble_colors(lines: Sequence[Line]) -> dict[str, str]:
    """Returns a colour for the name of each ensemble and baseline in the table, in its order."""
    names = dict.fromkeys(line.row.name for line in lines if line.row.is_combined)
    return {name: _COMBINED_COLORS[place % len(_COMBINED_COLORS)] for place, name in enumerate(names)}


def draw_accuracy(table: Numbers) -> "Figure":
    """Draws each row's test accuracy with its 95 % Wilson interval over its forward passes, 1350 x 810 px.

    Members are light, ensembles and baselines bold; the reference is marked and its accuracy drawn through. Rows of
    equally many passes are side by side.
    """
    figure, axes = new_figure(9, 5.4)
    positions = _positions(table.lines)
    reference = next(line for line in table.lines if line.row is table.reference)
    axes.axhline(100 * reference.accuracy.mean, color=REFERENCE_COLOR, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
    _join_same_names(axes, table.lines, positions)
    colors = ensemble_colors(table.lines)
    for line, position in zip(table.lines, positions, strict=True):
        _draw_line(axes, line, position, colors.get(line.row.name, MEMBER_COLOR), is_reference=line is reference)
    _write_models_x_crops(axes, table.lines, positions)
    _label_axes(axes, table)
    handles, labels = axes.get_legend_handles_labels()
    first_of_each = dict(zip(labels, handles, strict=True))
    columns = legend_columns(list(first_of_each), 9)
    figure.legend(
        first_of_each.values(),
        first_of_each.keys(),
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )
    return figure


def _positions(lines: Sequence[Line]) -> np.ndarray:
    """Returns log10 of each line's passes, moved so that lines of equal or close passes are side by side."""
    # Bold markers are as wide as three of the others.
    is_bold = [line.difference is None or line.row.is_combined for line in lines]
    widths = np.where(is_bold, 3.0, 1.0)
    passes = np.array([line.row.forward_passes for line in lines])
    groups = np.unique(passes)
    group_widths = np.array([widths[passes == group].sum() for group in groups])
    # Decades per unit of width: neighbours that share their gap by width do not overlap.
    room = 2 * np.diff(np.log10(groups)) / (group_widths[:-1] + group_widths[1:])
    # A group spans 0.15 decades at most, or its outer lines would seem to cost another number of passes.
    steps = np.minimum.reduce([0.15 / group_widths, np.append(room, 0.03), np.insert(room, 0, 0.03)])
    positions = np.log10(passes)
    for group, group_width, step in zip(groups, group_widths, steps, strict=True):
        inside = np.flatnonzero(passes == group)
        centers = np.cumsum(widths[inside]) - widths[inside] / 2 - group_width / 2
        positions[inside] += step * centers
    return positions


def _join_same_names(axes: "Axes", lines: Sequence[Line], positions: np.ndarray) -> None:
    """Draws what more crops do to the same network."""
    colors = ensemble_colors(lines)
    for key in {(line.row.name, line.row.kind): None for line in lines}:
        own = [
            (position, 100 * line.accuracy.mean)
            for line, position in zip(lines, positions, strict=True)
            if (line.row.name, line.row.kind) == key
        ]
        is_combined = key[1] != "member"
        axes.plot(
            *zip(*sorted(own), strict=True),
            color=colors[key[0]] if is_combined else MEMBER_COLOR,
            linewidth=1.6 if is_combined else 0.7,
            alpha=0.7 if is_combined else 0.45,
            zorder=3 if is_combined else 1,
        )


def _draw_line(axes: "Axes", line: Line, position: float, color: str, is_reference: bool) -> None:
    style: dict[str, Any]
    if is_reference:
        label = f"reference: {shortened(line.row.name)}, best on val, {line.row.num_models} x {line.row.num_views}"
        style = {"color": REFERENCE_COLOR, "marker": "D", "markersize": 7, "linewidth": 1.8, "zorder": 5}
    elif line.row.is_combined:
        label = shortened(line.row.name)
        style = {"color": color, "marker": "o", "markersize": 8, "linewidth": 2.4, "zorder": 4}
    else:
        label = "members"
        style = {"color": MEMBER_COLOR, "marker": "o", "markersize": 3.5, "linewidth": 1.0, "zorder": 2}
    accuracy = line.accuracy
    below, above = accuracy.mean - accuracy.low, accuracy.high - accuracy.mean
    error = [[100 * max(0.0, below)], [100 * max(0.0, above)]]
    axes.errorbar([position], [100 * accuracy.mean], yerr=error, label=label, elinewidth=style["linewidth"], **style)


def _write_models_x_crops(axes: "Axes", lines: Sequence[Line], positions: np.ndarray) -> None:
    """Writes M x V over what is combined; over the highest of those that share it, or one would cover the other."""
    colors = ensemble_colors(lines)
    highest: dict[str, tuple[float, float, str]] = {}
    for line, position in zip(lines, positions, strict=True):
        if line.row.is_combined:
            text = f"{line.row.num_models} x {line.row.num_views}"
            found = (100 * line.accuracy.high, float(position), colors[line.row.name])
            highest[text] = max(found, highest.get(text, found))
    for text, (top, position, color) in highest.items():
        axes.annotate(
            text,
            (position, top),
            textcoords="offset points",
            xytext=(0, 4),
            ha="center",
            fontsize=9,
            color=color,
            fontweight="bold",
        )


def _label_axes(axes: "Axes", table: Numbers) -> None:
    passes = sorted({line.row.forward_passes for line in table.lines})
    low, high = np.log10(passes[0]), np.log10(passes[-1])
    margin = max(0.2, 0.08 * (high - low))
    axes.set_xlim(low - margin, high + margin)
    labels: list[str] = []
    for previous, current in zip([0, *passes], passes, strict=False):
        # Two numbers closer than their width: the second one goes a line lower.
        is_close = previous > 0 and np.log10(current / previous) < 0.05 * (high - low + 2 * margin)
        labels.append(("\n" if is_close and not labels[-1].startswith("\n") else "") + f"{current:,}")
    axes.set_xticks(np.log10(passes), labels)
    axes.set_xlabel("forward passes per image (models x crops), log scale")
    axes.set_ylabel("accuracy on test, %, with 95 % Wilson interval")
    axes.set_title(f"n = {table.num_images:,} test images, {table.num_classes:,} classes", fontsize=10)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(y=0.1)
