"""What `lit-cnn best` came to: what to take, how good it is on test images that chose nothing, and what was tried."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_cnn.core.intervals import Interval
from lit_cnn.core.words import counted, duration
from lit_cnn.evaluation.choice import Choice
from lit_cnn.reports.page import drawing, grid, heading, paragraph
from lit_cnn.reports.result import Result, json_text, text_grid, with_limits, write_texts
from lit_cnn.reports.wording import percent_words
from lit_cnn.search.halving import Trained, name_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

_TRAININGS = ("Training", "Epochs", "Images", "Val % [95 %]", "Time", "Run")
_WAYS = ("Way to classify", "Val % [95 %]", "Val loss", "Multiply-adds")
_ABOUT_TRAININGS = (
    "In the order of time. Val chose the epoch, and what is trained on: the best look better than they are."
)
_ABOUT_WAYS = (
    "The cheapest is taken that is on val not measurably worse than the best, by McNemar's exact test of right and "
    "wrong, or by Wilcoxon's signed-rank test of the log-likelihoods."
)
_MOST_WAYS = 12


@dataclass(frozen=True, eq=False, repr=False)
class Best(Result):
    """What a budget gave.

    Attributes:
        subject: The data set.
        outcomes: The trainings, in the order of time.
        ways: What could be chosen.
        chosen: What was.
        chosen_on: The images that it was chosen on, such as `143 val images`.
        test: Accuracy of what was chosen on test, a fraction with its 95 % limits.
        num_test: Test images.
        temperature: Of its probabilities; None where none was taken.
        seconds: That it took in all.
        budget: Seconds that there were.
        export: The folder of the model; None where it could not be exported.
        was_stopped: Whether somebody ended it early.
        run: Id of the run of the evaluation.
    """

    subject: str
    outcomes: tuple[Trained, ...]
    ways: tuple[Choice, ...]
    chosen: Choice
    chosen_on: str
    test: Interval
    num_test: int
    temperature: float | None
    seconds: float
    budget: float
    export: Path | None = None
    was_stopped: bool = False
    run: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def title(self) -> str:
        """Title of its page."""
        return f"The best for {self.subject} in {duration(round(self.budget))}"

    def answer(self) -> str:
        """Returns what to take and how good it is."""
        num_right = round(self.test.mean * self.num_test)
        of_test = f"{num_right:,} of {counted(self.num_test, 'test image')} right"
        said = [f"Take {self.chosen.name}: {of_test}, {percent_words(self.test, self.num_test)}."]
        n = len(self.chosen.correct)
        said.append(f"It was chosen on {self.chosen_on}, where it has {percent_words(self.chosen.accuracy, n)}; ")
        said[-1] += "the test images chose nothing."
        tried = f"{counted(len({each.candidate.name for each in self.outcomes}), 'configuration')} tried in "
        said.append(f"{tried}{counted(len(self.outcomes), 'training')}, {duration(round(self.seconds))}.")
        if self.was_stopped:
            said.append("It was stopped before its time was over: this is the best so far.")
        return " ".join([*said, *self.notes])

    def text(self) -> "Sequence[RenderableType]":
        """Returns the tables of trainings and of ways to classify."""
        ways = self._best_ways()
        return [
            text_grid(_TRAININGS, self._training_cells(), [False] * len(self.outcomes), _ABOUT_TRAININGS),
            text_grid(_WAYS, _way_cells(ways), [way is self.chosen for way in ways], self._about_ways()),
        ]

    def sections(self) -> list[str]:
        """Returns the picture and both tables in HTML."""
        from lit_cnn.reports.figures import svg_of

        ways = self._best_ways()
        return [
            heading("What was chosen from"),
            grid(_WAYS, _way_cells(ways), ["chosen" if way is self.chosen else "" for way in ways]),
            paragraph(self._about_ways()),
            heading("What was trained"),
            drawing(svg_of(draw_outcomes(self.outcomes), "trainings")),
            grid(_TRAININGS, self._training_cells()),
            paragraph(_ABOUT_TRAININGS),
        ]

    def records(self) -> list[dict[str, Any]]:
        """Returns a row for each training."""
        return [
            {
                "name": each.candidate.name,
                "arch": each.candidate.arch,
                "regime": each.candidate.regime,
                "seed": each.seed,
                "epochs": each.extent.epochs,
                "images": each.extent.num_images,
                **with_limits("val_acc", each.accuracy),
                "num_val": each.num_val,
                "seconds": each.seconds,
                "run": each.run,
            }
            for each in self.outcomes
        ]

    def to_json(self) -> str:
        """Returns answer, estimate, what was chosen from and what was trained."""
        ways = [
            {
                "name": way.name,
                "views": way.num_views,
                **with_limits("val_acc", way.accuracy),
                "val_loss": way.loss,
                "multiply_adds": way.cost,
                "is_taken": way is self.chosen,
            }
            for way in self.ways
        ]
        return json_text(
            {
                "answer": self.answer(),
                **with_limits("test_acc", self.test),
                "num_test": self.num_test,
                "temperature": self.temperature,
                "seconds": self.seconds,
                "budget": self.budget,
                "export": str(self.export) if self.export else None,
                "was_stopped": self.was_stopped,
                "run": self.run or None,
                "ways": ways,
                "trainings": self.records(),
            }
        )

    def write(self, folder: Path) -> list[Path]:
        """Writes the numbers and a page."""
        files = write_texts(folder, {"best.csv": self.to_csv(), "best.json": self.to_json()})
        return [*files, *write_texts(folder, {"report.html": self.to_html()})]

    def _best_ways(self) -> list[Choice]:
        ways = sorted(self.ways, key=lambda way: (-way.correct.mean(), way.loss))
        return ways[:_MOST_WAYS] if self.chosen in ways[:_MOST_WAYS] else [*ways[: _MOST_WAYS - 1], self.chosen]

    def _about_ways(self) -> str:
        left = len(self.ways) - _MOST_WAYS
        return f"{_ABOUT_WAYS} {left} more are in best.json." if left > 0 else _ABOUT_WAYS

    def _training_cells(self) -> list[tuple[str, ...]]:
        return [
            (
                name_of(each),
                f"{each.extent.epochs}",
                f"{each.extent.num_images:,}",
                percent_words(each.accuracy, each.num_val).replace(" %", ""),
                duration(each.seconds),
                each.run[:8],
            )
            for each in self.outcomes
        ]


def _way_cells(ways: Sequence[Choice]) -> list[tuple[str, ...]]:
    from lit_cnn.reports.wording import rounded

    return [
        (
            way.name,
            percent_words(way.accuracy, len(way.correct)).replace(" %", ""),
            f"{way.loss:.3f}",
            rounded(way.cost),
        )
        for way in ways
    ]


def draw_outcomes(outcomes: Sequence[Trained]) -> "Figure":
    """Draws accuracy on val over the minutes in which trainings ended, a line for each configuration."""
    import numpy as np

    from lit_cnn.reports.figures import legend_columns, new_figure, shortened

    figure, axes = new_figure(9, 5.4)
    ends = np.cumsum([each.seconds for each in outcomes]) / 60
    names = list(dict.fromkeys(each.candidate.name for each in outcomes))
    colors = ("#0b5cad", "#c2410c", "#15803d", "#7e22ce", "#9aa5b1", "#b45309", "#0e7490", "#be185d")
    for place, name in enumerate(names):
        own = [(end, each) for end, each in zip(ends, outcomes, strict=True) if each.candidate.name == name]
        values = [100 * each.accuracy.mean for _, each in own]
        color, line = colors[place % len(colors)], ("-", "--", ":")[place // len(colors) % 3]
        axes.plot([end for end, _ in own], values, marker="o", label=shortened(name), color=color, linestyle=line)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("accuracy on val, %")
    axes.grid(alpha=0.3)
    columns = legend_columns([shortened(name) for name in names], 9)
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    return figure
