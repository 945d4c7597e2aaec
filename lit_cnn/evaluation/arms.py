"""Arms of an experiment: configurations that are trained with the same seeds and differ in one thing.

Their runs are found in MLflow by name, so that an experiment that stopped goes on with what is missing (`train_missing`
in the room of the command line); their learning curves are drawn over each other, and differences are taken seed by
seed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.evaluation.statistics import mean_std, paired_difference
from lit_cnn.reports.figures import new_figure, save_png, shortened
from lit_cnn.tracking import resolve_store
from lit_cnn.tracking.queries import RunInfo, metric_history, search_runs
from lit_cnn.tracking.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#0b5cad", "#c2410c", "#15803d", "#7e22ce", "#52606d", "#b45309")
_SAME_LENGTH = ("trainer.max_epochs", "data.limit_train")


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        label: What tables and pictures call it.
        run_name: The name that its runs have in MLflow: `{arch}_{transfer}_{dataset}[_{recipe}]`.
        configs: Names or files of the configurations that it is trained with, by `lit_cnn.fit_config`.
        options: Its options, apart from seeds and experiment.
        teachers: Those of a student.
    """

    label: str
    run_name: str
    configs: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    teachers: Sequence[Run | str] = ()


@dataclass(frozen=True)
class Curve:
    """A metric of one run over its training.

    Attributes:
        seed: The run's training seed.
        steps: `(n,)` int64, optimizer steps, rising.
        values: `(n,)` float64, the metric at these steps.
    """

    seed: int
    steps: np.ndarray
    values: np.ndarray


def finished_runs(arm: Arm, experiment: str) -> dict[int, RunInfo]:
    """Returns an arm's finished runs by their seeds; the newest where a seed has several."""
    words = f"attributes.run_name = '{arm.run_name}' AND attributes.status = 'FINISHED' AND tags.kind = 'fit'"
    try:
        runs = search_runs(resolve_store(), experiment, words)
    except UsageError:  # no store, no experiment or no run yet
        return {}
    return {int(run.tags["seed"]): run for run in reversed(runs)}


def final_values(arms: Sequence[Arm], experiment: str, metric: str, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Returns a metric's last value for each arm's label, in the order of the seeds.

    Raises:
        ValueError: If a run is missing, has no such metric, or was trained longer or on more images than another.
    """
    found = _comparable_runs(arms, experiment, seeds)
    for label, runs in found.items():
        for run in runs:
            if metric not in run.metrics:
                raise ValueError(f"{label}: run {run.run_id} has no metric {metric}; it has {sorted(run.metrics)}")
    return {label: [run.metrics[metric] for run in runs] for label, runs in found.items()}


def learning_curves(arms: Sequence[Arm], experiment: str, metric: str, seeds: Sequence[int]) -> dict[str, list[Curve]]:
    """Returns a metric's curves for each arm's label, in the order of the seeds.

    Raises:
        ValueError: As `final_values`.
    """
    store = resolve_store()
    curves: dict[str, list[Curve]] = {}
    for label, runs in _comparable_runs(arms, experiment, seeds).items():
        histories = [metric_history(store, run, metric) for run in runs]
        if not all(histories):
            raise ValueError(f"{label}: has no metric {metric}")
        curves[label] = [
            Curve(seed, *(np.array(column, dtype) for column, dtype in zip(zip(*rows, strict=True), "qd", strict=True)))
            for seed, rows in zip(seeds, histories, strict=True)
        ]
    return curves


def smoothed(curve: Curve, window: int) -> Curve:
    """Returns the mean of each value and the `window - 1` before it, from the first for which there are so many."""
    if not 1 <= window <= len(curve.values):
        raise ValueError(f"window {window}: give 1 to {len(curve.values)}")
    means = np.convolve(curve.values, np.full(window, 1 / window), mode="valid")
    return Curve(curve.seed, curve.steps[window - 1 :], means)


def steps_to(curve: Curve, level: float) -> float:
    """Returns the first step at which the curve is at `level` or below it; infinity if it never is."""
    below = np.flatnonzero(curve.values <= level)
    return float(curve.steps[below[0]]) if len(below) else float("inf")


def comparison(values: Mapping[str, Sequence[float]], digits: int = 4) -> str:
    """Returns a table of the arms: n, mean and standard deviation, and the difference to the first arm seed by seed.

    Args:
        values: A value for each seed, in the same order for every label.
        digits: Decimals.

    Returns:
        One line for each arm. Limits are those of Student's t for the paired differences, with 95 % confidence.
    """
    reference = next(iter(values.values()))
    width = max(map(len, values))
    cells = {
        label: f"{mean_std(own).mean:.{digits}f} ± {mean_std(own).std:.{digits}f}" for label, own in values.items()
    }
    column = max(map(len, ["mean ± std", *cells.values()]))
    lines = [f"{'':{width}}   n  {'mean ± std':{column}}    minus the first [95 %]"]
    for label, own in values.items():
        line = f"{label:{width}}  {len(own):2}  {cells[label]:{column}}"
        if own is not reference:
            difference, low, high = paired_difference(own, reference)
            line += f"    {difference:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
        lines.append(line)
    return "\n".join(line.rstrip() for line in lines)


def plot_curves(curves: Mapping[str, Sequence[Curve]], path: Path, ylabel: str, log_scale: bool = False) -> None:
    """Draws every run as a thin line and each arm's mean over its runs as a bold one, as a PNG of 1200 x 675 px.

    Args:
        curves: The runs of each label, all at the same steps.
        path: The PNG file; replaced whole if it is there.
        ylabel: What the values are.
        log_scale: Whether the values' axis is logarithmic.
    """
    figure, axes = new_figure(8, 4.5)
    for (label, runs), color in zip(curves.items(), _COLORS, strict=False):
        for run in runs:
            axes.plot(run.steps, run.values, color=color, linewidth=0.7, alpha=0.45)
        mean = np.mean([run.values for run in runs], axis=0)
        axes.plot(runs[0].steps, mean, color=color, linewidth=2.2, label=f"{shortened(label)} (n = {len(runs)})")
    if log_scale:
        _scale_logarithmically(axes)
    _label(axes, "optimizer steps", ylabel)
    save_png(figure, path)


def plot_by_images(values: Mapping[str, Mapping[int, Sequence[float]]], path: Path, ylabel: str) -> None:
    """Draws mean and standard deviation over the seeds against the number of training images, as `plot_curves` does.

    Args:
        values: For each label the values of its seeds, by number of training images, rising.
        path: The PNG file; replaced whole if it is there.
        ylabel: What the values are.
    """
    figure, axes = new_figure(8, 4.5)
    for place, ((label, by_images), color) in enumerate(zip(values.items(), _COLORS, strict=False)):
        # Side by side, or one bar would hide the other.
        sizes = np.array(list(by_images)) * 1.05 ** (place - (len(values) - 1) / 2)
        _, means, stds = zip(*(mean_std(own) for own in by_images.values()), strict=True)
        axes.errorbar(sizes, means, stds, color=color, linewidth=2, marker="o", capsize=3, label=shortened(label))
    _label(axes, "training images, log scale", ylabel)
    axes.set_xscale("log")
    ticks = sorted({size for by_images in values.values() for size in by_images})
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axes.minorticks_off()
    save_png(figure, path)


def _scale_logarithmically(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label(axes: "Axes", xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False, fontsize=9)
    axes.grid(color="#e5e7eb", linewidth=0.8)


def _comparable_runs(arms: Sequence[Arm], experiment: str, seeds: Sequence[int]) -> dict[str, list[RunInfo]]:
    found = dict(_runs_by_label(arms, experiment, seeds))
    for name in _SAME_LENGTH:
        lengths = {run.params.get(name) for runs in found.values() for run in runs}
        if len(lengths) > 1:
            raise ValueError(f"experiment {experiment}: its runs differ in {name} ({lengths}); compare like with like")
    return found


def _runs_by_label(arms: Sequence[Arm], experiment: str, seeds: Sequence[int]) -> Iterator[tuple[str, list[RunInfo]]]:
    for arm in arms:
        runs = finished_runs(arm, experiment)
        if missing := [seed for seed in seeds if seed not in runs]:
            raise ValueError(f"{arm.label}: no finished run {arm.run_name} with seeds {missing}; train it first")
        yield arm.label, [runs[seed] for seed in seeds]
