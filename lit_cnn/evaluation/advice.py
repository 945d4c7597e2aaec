"""Which transfer regime for this data: trials at a few training-set sizes, compared on val, drawn, put into a word."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_cnn.core.intervals import Interval, wilson_interval
from lit_cnn.core.labels import SEPARATOR
from lit_cnn.core.words import counted
from lit_cnn.evaluation.decision import ALPHA, MARGIN, Decision, Tested, decide
from lit_cnn.evaluation.paired import smallest_unpaired_difference
from lit_cnn.evaluation.statistics import holm, unpaired_difference
from lit_cnn.reports.figures import legend_columns, new_figure, save_png, shortened, svg_of
from lit_cnn.reports.page import drawing, grid, paragraph
from lit_cnn.reports.result import Result, json_text, text_grid, with_limits, write_texts
from lit_cnn.reports.wording import missed_words, others_words, percent_words, points_words
from lit_cnn.training.transfer import Regime

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

_TITLES = ("Trial", "Training images", "Val % [95 %]", "Right", "Time", "Run")
_CAPTION = (
    "Val: accuracy of the best epoch on val, with its Wilson interval; val has chosen the epoch and the trial, so the "
    "best looks somewhat better than it is. Time: of the whole run, from reading the images on."
)
_LEAST_PER_CLASS = 5
_COLORS = ("#0b5cad", "#c2410c", "#15803d", "#7e22ce", "#9aa5b1", "#b45309")


@dataclass(frozen=True, eq=False)
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


def default_sizes(num_images: int, num_classes: int) -> list[int]:
    """Returns up to three training-set sizes: all images, a quarter and a sixteenth, of five a class at least."""
    sizes = [num_images // 16, num_images // 4]
    return [size for size in sizes if size >= _LEAST_PER_CLASS * num_classes] + [num_images]


@dataclass(frozen=True, eq=False, repr=False)
class Advice(Result):
    """What trials say about which regime and network to take.

    Attributes:
        trials: At least one.
        num_images: Training images that there are.
        subject: What they are about: the data set.
        run: The id of the run that holds the trials in MLflow.
    """

    trials: tuple[Trial, ...]
    num_images: int
    subject: str = ""
    run: str = ""

    @property
    def title(self) -> str:
        """Title of its page."""
        return f"Advice for {self.subject}" if self.subject else "Advice"

    @cached_property
    def decision(self) -> Decision[Trial]:
        """Which of the trials with the most training images to take; see `decide`.

        The reference is the best on val, of equal ones the fastest. Fisher's exact tests of the numbers of val images
        leave out that all saw the same ones, so they claim a difference too seldom rather than too often.
        """
        largest = max(trial.size for trial in self.trials)
        there = [trial for trial in self.trials if trial.size == largest]
        best = max(there, key=lambda trial: (trial.num_correct, -trial.seconds))
        return decide(there, best, _tests, lambda trial: trial.seconds, lambda trial: trial.num_correct)

    def answer(self) -> str:
        """Returns which regime to take, how the others stand to it, and what so many val images can show."""
        found = self.decision
        chosen, name = found.chosen, dict(zip(self.trials, names_of(self.trials), strict=True))
        n = chosen.num_val
        accuracy = f"{percent_words(chosen.accuracy, n)} on {counted(n, 'val image')} in {_seconds(chosen)}"
        of = counted(chosen.size, "training image")
        if not found.num_others:
            return f"{name[chosen]}: {accuracy}, with {of}. There is nothing here to compare it with."
        said = [f"Take {name[chosen]}: {accuracy}, with {of}."]
        if found.is_for_its_cost:
            assert found.over_reference is not None
            ratio = found.reference.seconds / chosen.seconds
            times = f"{ratio:,.0f}" if ratio >= 9.5 else f"{ratio:.1f}"
            said.append(
                f"{name[found.reference]}, the best on val, takes {times} times as "
                f"long, and a loss of more than {100 * MARGIN:.0f} point is excluded "
                f"({points_words(found.over_reference, n)})."
            )
        smallest = smallest_unpaired_difference(found.reference.num_correct, n, alpha=ALPHA / found.num_others)
        said.append(others_words(len(found.worse), found.num_others, missed_words(smallest, n, "val")))
        if found.cheaper is not None:
            said.append(
                f"Faster and not measurably worse: {name[found.cheaper.row]}, in {_seconds(found.cheaper.row)}, "
                f"{points_words(found.cheaper.difference, n)}."
            )
        if chosen.size < self.num_images:
            said.append(f"There are {self.num_images:,} training images: more of them may turn this round.")
        said.append("One seed each: a small difference may be the seed's.")
        return " ".join(said)

    def text(self) -> "Sequence[RenderableType]":
        """Returns the table of the trials and its caption."""
        trials = self._sorted()
        chosen = [trial is self.decision.chosen for trial in trials]
        return [text_grid(_TITLES, self._cells(trials), chosen, _CAPTION)]

    def sections(self) -> list[str]:
        """Returns table, caption and picture in HTML."""
        trials = self._sorted()
        classes = ["chosen" if trial is self.decision.chosen else "" for trial in trials]
        table = grid(_TITLES, self._cells(trials), classes)
        return [table, paragraph(_CAPTION), drawing(svg_of(draw_trials(self.trials), "trials"))]

    def records(self) -> list[dict[str, Any]]:
        """Returns a row for each trial: accuracies are fractions, in full precision."""
        return [
            {
                "arch": trial.arch,
                "regime": trial.regime,
                "images": trial.size,
                **with_limits("val_acc", trial.accuracy),
                "num_val": trial.num_val,
                "seconds": trial.seconds,
                "is_taken": trial is self.decision.chosen,
                "run": trial.run,
            }
            for trial in self.trials
        ]

    def to_json(self) -> str:
        """Returns the answer and the trials."""
        return json_text({"answer": self.answer(), "trials": self.records(), "run": self.run or None})

    def write(self, folder: Path) -> list[Path]:
        """Writes the trials as CSV and JSON, their picture, and a page."""
        files = write_texts(folder, {"trials.csv": self.to_csv(), "trials.json": self.to_json()})
        save_png(draw_trials(self.trials), folder / "advice.png")
        return [*files, folder / "advice.png", *write_texts(folder, {"report.html": self.to_html()})]

    def _sorted(self) -> list[Trial]:
        return sorted(self.trials, key=lambda trial: (-trial.size, -trial.num_correct, trial.seconds))

    def _cells(self, trials: Sequence[Trial]) -> list[tuple[str, ...]]:
        name = dict(zip(self.trials, names_of(self.trials), strict=True))
        return [
            (
                name[trial],
                f"{trial.size:,}",
                percent_words(trial.accuracy, trial.num_val).replace(" %", ""),
                f"{trial.num_correct:,} of {trial.num_val:,}",
                _seconds(trial),
                trial.run[:8],
            )
            for trial in trials
        ]


def names_of(trials: Sequence[Trial]) -> list[str]:
    """Returns what trials are called: their regimes, with their networks if there are several."""
    if len({trial.arch for trial in trials}) == 1:
        return [trial.regime for trial in trials]
    return [f"{trial.arch.rpartition('/')[2]}{SEPARATOR}{trial.regime}" for trial in trials]


def draw_trials(trials: Sequence[Trial]) -> "Figure":
    """Draws val accuracy with its 95 % interval over training images, a line for each network and regime."""
    figure, axes = new_figure(9, 5.4)
    called = dict(zip(trials, names_of(trials), strict=True))
    names = list(dict.fromkeys(called.values()))
    for place, name in enumerate(names):
        own = sorted((trial for trial in trials if called[trial] == name), key=lambda trial: trial.size)
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
    columns = legend_columns([shortened(name) for name in names], 9)
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _tests(trials: Sequence[Trial], against: Trial) -> list[Tested]:
    from scipy.stats import fisher_exact

    def wrong(trial: Trial) -> int:
        return trial.num_val - trial.num_correct

    p_values = [
        float(fisher_exact([[each.num_correct, wrong(each)], [against.num_correct, wrong(against)]]).pvalue)
        for each in trials
    ]
    return [
        Tested(
            unpaired_difference(trial.num_correct, trial.num_val, against.num_correct, against.num_val),
            p_holm,
        )
        for trial, p_holm in zip(trials, holm(p_values), strict=True)
    ]


def _seconds(trial: Trial) -> str:
    return f"{trial.seconds:,.0f} s" if trial.seconds >= 10 else f"{trial.seconds:.1f} s"
