"""Which transfer regime for this data: trials at a few training-set sizes, compared on val, drawn, put into a word."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_cnn.core.intervals import Interval, wilson_interval
from lit_cnn.evaluation.statistics import unpaired_difference
from lit_cnn.reports.figures import new_figure, save_png, shortened
from lit_cnn.training.transfer import Regime

_LEAST_PER_CLASS = 5
_COLORS = ("#0b5cad", "#c2410c", "#15803d", "#7e22ce", "#9aa5b1", "#b45309")


@dataclass(frozen=True)
class Trial:
    """A training run at one size.

    Attributes:
        arch: The architecture.
        regime: The transfer regime.
        size: Training images.
        num_correct: Val images that its best epoch classifies correctly.
        num_val: All of them.
        seconds: Of the whole run, from reading the images on; the start of the process is left out.
        run: The run's id.
    """

    arch: str
    regime: Regime
    size: int
    num_correct: int
    num_val: int
    seconds: float
    run: str

    @property
    def accuracy(self) -> Interval:
        """On val, with its 95 % Wilson interval; fractions."""
        return Interval(self.num_correct / self.num_val, *wilson_interval(self.num_correct, self.num_val))

    @property
    def name(self) -> str:
        """Architecture and regime."""
        return f"{self.arch}, {self.regime}"


def default_sizes(num_images: int, num_classes: int) -> list[int]:
    """Returns up to three training-set sizes: all images, a quarter and a sixteenth, of five a class at least."""
    sizes = [num_images // 16, num_images // 4]
    return [size for size in sizes if size >= _LEAST_PER_CLASS * num_classes] + [num_images]


def recommend(trials: Sequence[Trial], num_images: int) -> str:
    """Returns what the trials at the largest size say, and why.

    The cheapest trial is named whose difference to the best the val images do not tell from none. That test leaves out
    that both saw the same images, so it claims a difference too seldom rather than too often.

    Args:
        trials: At least one.
        num_images: Training images that there are.
    """
    largest = max(trial.size for trial in trials)
    there = [trial for trial in trials if trial.size == largest]
    best = max(there, key=lambda trial: (trial.num_correct, -trial.seconds))
    equal = [trial for trial in there if _difference(best, trial).low <= 0]
    chosen = min(equal, key=lambda trial: trial.seconds)
    text = f"With {largest:,} training images take {chosen.name}: {_in_words(chosen)}"
    if chosen is best:
        text += ", the best on val"
    else:
        text += (
            f". The best on val is {best.name}, {_in_words(best)}: {best.num_val:,} val images do not tell them apart "
            f"({_points(_difference(best, chosen))}), and it takes {best.seconds / chosen.seconds:.1f} times as long"
        )
    others = [trial for trial in there if trial not in equal]
    if others:
        nearest = max(others, key=lambda trial: trial.num_correct)
        text += f". Next, and worse than the best: {nearest.name}, {_points(_difference(nearest, best))}"
    if largest < num_images:
        text += f". That is not all of the {num_images:,} images that there are"
    return text + ". One seed each: a small difference may be the seed's."


def plot_trials(trials: Sequence[Trial], path: Path) -> None:
    """Draws val accuracy with its 95 % interval over training images, a line for each architecture and regime (PNG)."""
    figure, axes = new_figure(9, 5.4)
    names = list(dict.fromkeys(trial.name for trial in trials))
    for place, name in enumerate(names):
        own = sorted((trial for trial in trials if trial.name == name), key=lambda trial: trial.size)
        # Side by side, or one interval would hide the other.
        sizes = np.array([trial.size for trial in own]) * 1.04 ** (place - (len(names) - 1) / 2)
        values = np.array([trial.accuracy for trial in own]) * 100
        errors = np.abs(values[:, 1:] - values[:, :1]).T
        color = _COLORS[place % len(_COLORS)]
        axes.errorbar(sizes, values[:, 0], errors, label=shortened(name), color=color, marker="o", capsize=3)
    axes.set_xscale("log")
    ticks = sorted({trial.size for trial in trials})
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axes.minorticks_off()
    axes.set_xlabel("training images")
    axes.set_ylabel("accuracy on val, %, with its 95 % Wilson interval")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    save_png(figure, path)


def rows_of(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Returns the trials as plain values, for a table: accuracy and its limits in percent, seconds of the run."""
    return [
        {
            "arch": trial.arch,
            "regime": trial.regime,
            "images": trial.size,
            "val_acc": round(100 * trial.accuracy.mean, 2),
            "val_acc_low": round(100 * trial.accuracy.low, 2),
            "val_acc_high": round(100 * trial.accuracy.high, 2),
            "seconds": round(trial.seconds, 1),
            "run": trial.run,
        }
        for trial in trials
    ]


def _difference(one: Trial, other: Trial) -> Interval:
    return unpaired_difference(one.num_correct, one.num_val, other.num_correct, other.num_val)


def _in_words(trial: Trial) -> str:
    accuracy = trial.accuracy
    percent = f"{100 * accuracy.mean:.1f} % [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"
    return f"{percent} in {trial.seconds:.0f} s" if trial.seconds >= 10 else f"{percent} in {trial.seconds:.1f} s"


def _points(difference: Interval) -> str:
    mean, low, high = (100 * value for value in difference)
    return f"{mean:+.1f} points [{low:+.1f}, {high:+.1f}]"
