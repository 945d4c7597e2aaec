"""The table as a picture: accuracy against what it costs in time, or in multiply-adds where no time was measured."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lit_cnn.evaluation.table.accuracy import ensemble_colors
from lit_cnn.evaluation.table.frontier import cost_on_axis, decision_of, pareto_front
from lit_cnn.evaluation.table.numbers import Line, Numbers
from lit_cnn.evaluation.table.wording import machine_of
from lit_cnn.reports.figures import MEMBER_COLOR, REFERENCE_COLOR, legend_columns, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS: Mapping[int, str] = MappingProxyType({1: "o", 2: "s", 5: "^", 10: "D", 144: "*"})


def draw_pareto(table: Numbers) -> "Figure":
    """Draws each row's test accuracy with its 95 % Wilson interval over its cost, 1350 x 810 px.

    The cost is the median latency of one image where it was measured, else multiply-adds per image. A line
    joins the rows that no other beats in both; a ring marks the row to take, a dotted one a cheaper row that is not
    measurably worse. The marker says how many crops.

    Args:
        table: What to draw; the costs of all rows are known.
    """
    figure, axes = new_figure(9, 5.4)
    axes.set_xscale("log")
    _draw_front(axes, pareto_front(table.lines))
    colors = ensemble_colors(table.lines)
    for line in table.lines:
        is_reference = line.row is table.reference
        _draw_line(axes, line, REFERENCE_COLOR if is_reference else colors.get(line.row.name, MEMBER_COLOR))
    found = decision_of(table)
    _ring(axes, found.chosen, "the one to take", "-")
    if found.cheaper is not None:
        _ring(axes, found.cheaper.row, "cheaper, not measurably worse", ":")
    _label_axes(axes, table)
    _draw_legend(figure, axes, table)
    return figure


def _ring(axes: "Axes", line: Line, label: str, linestyle: str) -> None:
    axes.scatter(
        [cost_on_axis(line.row)],
        [100 * line.accuracy.mean],
        s=260,
        facecolors="none",
        edgecolors="#111827",
        linewidths=1.6,
        linestyle=linestyle,
        zorder=6,
        label=label,
    )


def _draw_front(axes: "Axes", front: Sequence[Line]) -> None:
    # Straight, and no further than its last row: a step would run through rows that are as accurate and cost more.
    costs = [cost_on_axis(line.row) for line in front]
    accuracies = [100 * line.accuracy.mean for line in front]
    axes.plot(costs, accuracies, color="#111827", linewidth=1, alpha=0.6, zorder=1, label="Pareto front")


def _draw_line(axes: "Axes", line: Line, color: str) -> None:
    accuracy, is_member = line.accuracy, color == MEMBER_COLOR
    axes.errorbar(
        [cost_on_axis(line.row)],
        [100 * accuracy.mean],
        # Rounding may put a limit on the wrong side of a mean of 0 or 1.
        yerr=[[100 * max(0.0, accuracy.mean - accuracy.low)], [100 * max(0.0, accuracy.high - accuracy.mean)]],
        color=color,
        marker=_MARKERS[line.row.num_views],
        markersize=5 if is_member else 8,
        linewidth=0.9 if is_member else 1.8,
        zorder=2 if is_member else 4,
    )


def _label_axes(axes: "Axes", table: Numbers) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

    is_timed = bool(machine_of(table))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}") if is_timed else EngFormatter())
    axes.set_xlabel(
        f"median latency of one image, ms, log scale; {shortened(machine_of(table))}"
        if is_timed
        else "multiply-adds per image, log scale"
    )
    axes.set_ylabel("accuracy on test, %, with 95 % Wilson interval")
    axes.set_title(f"n = {table.num_images:,} test images, {table.num_classes:,} classes", fontsize=10)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.08, y=0.1)


def _draw_legend(figure: "Figure", axes: "Axes", table: Numbers) -> None:
    from matplotlib.lines import Line2D

    def point(label: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="none", label=label, **style)

    handles: list[Any] = [point(f"reference: {shortened(table.reference.name)}", color=REFERENCE_COLOR, marker="o")]
    handles += [point(shortened(name), color=color, marker="o") for name, color in ensemble_colors(table.lines).items()]
    handles.append(point("other members", color=MEMBER_COLOR, marker="o"))
    handles += [
        point(f"{count} crop{'s' if count > 1 else ''}", color="#52606d", marker=_MARKERS[count], fillstyle="none")
        for count in sorted({line.row.num_views for line in table.lines})
    ]
    handles += axes.get_legend_handles_labels()[0]
    columns = legend_columns([handle.get_label() for handle in handles], 9)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
