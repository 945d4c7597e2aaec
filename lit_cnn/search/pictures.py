"""Pictures of a search: how the best came, value by option, what matters."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from lit_cnn.reports.figures import MEMBER_COLOR, REFERENCE_COLOR, new_figure, shortened
from lit_cnn.search.space import short_name, text_of
from lit_cnn.search.study import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COMPLETE = "#0b5cad"
_MOST_COLUMNS = 3
_LOG_ABOVE = 30.0  # the largest over the smallest value, from which on an axis is logarithmic


def draw_history(trials: Sequence[Trial], monitor: str, mode: Literal["max", "min"]) -> "Figure":
    """Draws the value of each trial and the best so far, over trials and over minutes."""
    figure, axes = new_figure(10, 4)
    figure.delaxes(axes)
    by_number, by_time = figure.subplots(1, 2, sharey=True)
    ended = sorted((trial for trial in trials if trial.outcome.value is not None), key=lambda trial: trial.elapsed)
    for axes, label in ((by_number, "trials that have ended"), (by_time, "minutes")):
        axes.spines[["top", "right"]].set_visible(False)
        places = range(1, len(ended) + 1) if axes is by_number else [trial.elapsed / 60 for trial in ended]
        _scatter(axes, list(places), ended, monitor)
        best = _best_so_far(ended, mode)
        known = [(place, value) for place, value in zip(places, best, strict=True) if value is not None]
        if known:
            xs, ys = zip(*known, strict=True)
            axes.step(
                xs, [_scaled(value, monitor) for value in ys], where="post", color=REFERENCE_COLOR, label="best so far"
            )
        axes.set_xlabel(label)
        axes.grid(axis="y", alpha=0.3)
    by_number.set_ylabel(_unit(monitor))
    handles, labels = by_number.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def draw_slices(trials: Sequence[Trial], monitor: str) -> "Figure":
    """Draws the value of each trial over each option that was searched."""
    ended = [trial for trial in trials if trial.outcome.value is not None]
    options = list(dict.fromkeys(name for trial in ended for name in trial.values))
    columns = max(1, min(_MOST_COLUMNS, len(options)))
    rows = -(-max(1, len(options)) // columns)
    figure, axes = new_figure(3.4 * columns + 0.6, 2.9 * rows + 0.4)
    figure.delaxes(axes)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for place, name in enumerate(options):
        axes = grid[place // columns][place % columns]
        axes.spines[["top", "right"]].set_visible(False)
        own = [trial for trial in ended if name in trial.values]
        _over_option(axes, name, own, monitor)
        if place % columns == 0:
            axes.set_ylabel(_unit(monitor))
    for place in range(len(options), rows * columns):
        grid[place // columns][place % columns].set_axis_off()
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def draw_importance(importance: Mapping[str, float]) -> "Figure":
    """Draws each option's share in what decides whether a trial is among the best."""
    figure, axes = new_figure(7, 0.45 * len(importance) + 1)
    names = list(importance)[::-1]
    axes.barh([shortened(name) for name in names], [100 * importance[name] for name in names], color=_COMPLETE)
    axes.set_xlabel("share, % (PED-ANOVA)")
    return figure


def _over_option(axes: "Axes", name: str, trials: Sequence[Trial], monitor: str) -> None:
    values = [trial.values[name] for trial in trials]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        places = [float(value) for value in values]
        if min(places) > 0 and max(places) / min(places) >= _LOG_ABOVE:
            axes.set_xscale("log")
        _scatter(axes, places, trials, monitor)
    else:
        texts = sorted({text_of(value) for value in values})
        _scatter(axes, [float(texts.index(text_of(value))) for value in values], trials, monitor)
        axes.set_xticks(
            range(len(texts)), [shortened(text)[:18] for text in texts], rotation=20 if len(texts) > 3 else 0
        )
        axes.set_xlim(-0.5, len(texts) - 0.5)
    axes.set_xlabel(short_name(name))
    axes.grid(axis="y", alpha=0.3)


def _scatter(axes: "Axes", places: Sequence[float], trials: Sequence[Trial], monitor: str) -> None:
    for state, color, marker in (("pruned", MEMBER_COLOR, "x"), ("complete", _COMPLETE, "o")):
        own = [
            (place, _scaled(trial.outcome.value or 0.0, monitor))
            for place, trial in zip(places, trials, strict=True)
            if trial.outcome.state == state
        ]
        if own:
            xs, ys = zip(*own, strict=True)
            axes.scatter(xs, ys, s=22, color=color, marker=marker, label=state)


def _best_so_far(trials: Sequence[Trial], mode: Literal["max", "min"]) -> list[float | None]:
    best, found = None, []
    for trial in trials:
        value = trial.outcome.value
        if trial.outcome.state == "complete" and value is not None:
            best = value if best is None else max(best, value) if mode == "max" else min(best, value)
        found.append(best)
    return found


def _scaled(value: float, monitor: str) -> float:
    return value if monitor.endswith("loss") else 100 * value


def _unit(monitor: str) -> str:
    return monitor if monitor.endswith("loss") else f"{monitor}, %"
