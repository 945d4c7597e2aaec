"""What a search came to: what to take, what is left of it with new seeds, what mattered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_cnn.core.errors import as_printed
from lit_cnn.core.intervals import Interval
from lit_cnn.core.words import counted, duration
from lit_cnn.evaluation.statistics import mean_std, paired_difference
from lit_cnn.reports.figures import save_png, svg_of
from lit_cnn.reports.page import bullets, details, drawing, grid, heading, paragraph
from lit_cnn.reports.result import Result, json_text, text_grid, text_notes, with_limits, write_texts
from lit_cnn.reports.wording import percent, points_words
from lit_cnn.search.desk import Final
from lit_cnn.search.measure import Measure
from lit_cnn.search.pictures import draw_history, draw_importance, draw_slices
from lit_cnn.search.space import in_words
from lit_cnn.search.study import LEAST_FOR_IMPORTANCE, Trial, ranked

if TYPE_CHECKING:
    from rich.console import RenderableType

_LEAST_FOR_OPTIMISM = 3  # new seeds; with two, the limits are tens of points apart
_MOST_ROWS = 10  # of the trials in a terminal
_LEAST_SHARE = 0.01
_CURVE = (1, 3, 10, 30, 100, 300, 1000)  # trials after which the best is told


@dataclass(frozen=True, eq=False, repr=False)
class SearchResult(Result):
    """What a search came to.

    Attributes:
        trials: All of them, in the order in which they were drawn.
        finals: The best one's values with new seeds.
        lines: What was searched, a line for each option.
        monitor: The metric that was searched for.
        mode: Whether the largest (max) or the smallest (min) value is best.
        num_val: Images that judge a trial: val, or all that are not test.
        num_test: Test images.
        seed: The training seed of all trials.
        subject: The data set.
        runs: Key of a run -> its id in MLflow.
        run: Id of the search's own.
        importance: Label of an option -> its share in what decides.
        output: The folder of the report.
        num_folds: Networks a trial, each on a fold; 0 for one.
    """

    trials: tuple[Trial, ...]
    finals: tuple[Final, ...]
    lines: tuple[str, ...]
    monitor: str
    mode: Literal["max", "min"]
    num_val: int
    num_test: int
    seed: int
    subject: str = ""
    runs: Mapping[str, str] = field(default_factory=dict)
    run: str = ""
    importance: Mapping[str, float] = field(default_factory=dict)
    output: Path = Path("search")
    num_folds: int = 0

    @cached_property
    def measure(self) -> Measure:
        """What the trials are compared by."""
        return Measure(self.monitor, self.num_folds)

    @property
    def title(self) -> str:
        """Title of its page."""
        return f"Search on {self.subject}" if self.subject else "Search"

    @cached_property
    def best(self) -> Trial:
        """The best of the complete trials."""
        return self._ranked[0]

    @property
    def optimism(self) -> Interval | None:
        """What the best trial's value has more than the same values with new seeds, with its 95 % interval (t).

        None without three of those at least. In the unit of what is searched for, and positive where it promised too
        much.
        """
        values = self._new_values
        if len(values) < _LEAST_FOR_OPTIMISM:
            return None
        assert self.best.outcome.value is not None
        found = paired_difference([self.best.outcome.value] * len(values), values)
        return found if self.mode == "max" else Interval(-found.mean, -found.high, -found.low)

    def answer(self) -> str:
        """Returns what to take, its accuracy on test, and how much of its value was the selection's."""
        best, label = self.best, self.measure.label
        value = self._value(best.outcome.value)
        among = counted(len(self.trials), "trial")
        said = [f"Take {in_words(best.values)}:"]
        tested = [final.metrics["test/acc"] for final in self.finals if "test/acc" in final.metrics]
        seeds = f"{counted(len(self._new_values), 'new seed')}"
        if tested:
            spread = f" ± {percent(mean_std(tested).std, self.num_test)}" if len(tested) > 1 else ""
            said.append(f"{percent(sum(tested) / len(tested), self.num_test)} %{spread} on test over {seeds}.")
        if self._new_values:
            mean = self._value(sum(self._new_values) / len(self._new_values))
            if tested:
                said.append(f"Among {among} it had {label} {value}; with new seeds it has {mean}{self._by_luck()}.")
            else:
                said.append(f"{label} {mean} over {seeds}; among {among} it had {value}{self._by_luck()}.")
        else:
            said.append(f"{label} {value}, the best of {among}.")
            said.append("It was chosen by that value, so expect less; new seeds and the test would tell how much.")
        return " ".join(said)

    def text(self) -> "Sequence[RenderableType]":
        """Returns the table of the best trials, and what there is to say about the others."""
        rows = self._ranked[:_MOST_ROWS]
        is_best = [trial.number == self.best.number for trial in rows]
        return [text_grid(self._titles, self._cells(rows), is_best, self._caption), *text_notes(self.notes())]

    def notes(self) -> list[str]:
        """Returns what mattered, how the best came with the trials, and what each new seed gave, a sentence each."""
        said = [self._curve_words()]
        if self.importance:
            shown = {name: share for name, share in self.importance.items() if share >= _LEAST_SHARE}
            shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shown.items())
            rest = "; the others under 1 %" if len(shown) < len(self.importance) else ""
            what = "Which of the complete trials are the best is decided by"
            said.append(f"{what} (Optuna's PED-ANOVA, pruned trials left out): {shares}{rest}.")
        else:
            num_complete = sum(trial.outcome.state == "complete" for trial in self.trials)
            if num_complete < LEAST_FOR_IMPORTANCE:
                few = f"Too few complete trials ({num_complete} of {LEAST_FOR_IMPORTANCE})"
                said.append(as_printed(f"{few} to say what matters: more `trials`, or `pruner=none`."))
            else:
                said.append("All complete trials came to the same value: nothing to say of what matters.")
        for final in self.finals:
            said.append(
                f"Seed {final.seed}: {final.reason or self._final_words(final)}; run {self._run_words(final.run)}."
            )
        if failed := [trial for trial in self.trials if trial.outcome.state == "failed"]:
            first = failed[0]
            more = f" {counted(len(failed) - 1, 'more trial')} failed." if len(failed) > 1 else ""
            said.append(f"Trial {first.number} failed: {first.outcome.reason}.{more}")
        return said

    def sections(self) -> list[str]:
        """Returns the tables, the sentences and the pictures in HTML."""
        rows = self._ranked
        classes = ["chosen" if trial.number == self.best.number else "" for trial in rows]
        parts = [
            grid(self._titles, self._cells(rows[:_MOST_ROWS]), classes[:_MOST_ROWS]),
            paragraph(self._caption),
            bullets(self.notes()),
            heading("How the best came"),
            drawing(svg_of(draw_history(self.trials, self.measure.label, self.mode), "history")),
            heading("Value by option"),
            drawing(svg_of(draw_slices(self.trials, self.measure.label), "slices")),
        ]
        if self.importance:
            parts += [heading("What matters"), drawing(svg_of(draw_importance(self.importance), "importance"))]
        if len(rows) > _MOST_ROWS:
            parts.append(details(f"All {len(rows)} trials", grid(self._titles, self._cells(rows), classes)))
        return [*parts, heading("What was searched"), bullets(self.lines)]

    def records(self) -> list[dict[str, Any]]:
        """Returns a row for each trial, and one for each new seed of the best."""
        options = list(dict.fromkeys(name for trial in self.trials for name in trial.values))
        rows = [
            {
                "trial": trial.number,
                "seed": self.seed,
                "state": trial.outcome.state,
                **{name: trial.values.get(name) for name in options},
                "value": trial.outcome.value,
                "test_acc": None,
                f"{self.measure.unit}s": trial.outcome.epochs,
                "seconds": trial.outcome.seconds,
                "elapsed": trial.elapsed,
                "is_best": trial.number == self.best.number,
                "run": self._ids(trial.outcome.run) or None,
            }
            for trial in self.trials
        ]
        for final in self.finals:
            own: dict[str, Any] = {"seed": final.seed, "state": "failed" if final.reason else "final", "is_best": True}
            own |= {"value": final.metrics.get(self.measure.metric), "test_acc": final.metrics.get("test/acc")}
            own |= {name: self.best.values.get(name) for name in options}
            run = self._ids(final.run) or None
            rows.append({**dict.fromkeys(rows[0]), **own, "trial": self.best.number, "run": run})
        return rows

    def to_json(self) -> str:
        """Returns the answer, what to take, the optimism, what matters, and the trials."""
        document = {
            "answer": self.answer(),
            "best": dict(self.best.values),
            "monitor": self.monitor,
            **with_limits("optimism", self.optimism),
            "importance": dict(self.importance),
            "searched": list(self.lines),
            "trials": self.records(),
            "run": self.run or None,
        }
        return json_text(document)

    def write(self, folder: Path) -> list[Path]:
        """Writes the trials as CSV and JSON, their pictures, and a page."""
        files = write_texts(folder, {"trials.csv": self.to_csv(), "trials.json": self.to_json()})
        save_png(draw_history(self.trials, self.measure.label, self.mode), folder / "history.png")
        save_png(draw_slices(self.trials, self.measure.label), folder / "slices.png")
        pictures = [folder / "history.png", folder / "slices.png"]
        return [*files, *pictures, *write_texts(folder, {"report.html": self.to_html()})]

    @property
    def _new_values(self) -> list[float]:
        return [final.metrics[self.measure.metric] for final in self.finals if final.metrics]

    @cached_property
    def _ranked(self) -> list[Trial]:
        return ranked(self.trials, self.mode)

    @property
    def _titles(self) -> tuple[str, ...]:
        unit = f"{self.measure.unit}s".capitalize()
        return ("Values", "Trial", f"{self.measure.label}{'' if self.measure.is_loss else ' %'}", unit, "Time", "Run")

    @property
    def _caption(self) -> str:
        states = [trial.outcome.state for trial in self.trials]
        counts = ", ".join(
            f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed") if state in states
        )
        more = f" Shown are the best {_MOST_ROWS}." if len(self.trials) > _MOST_ROWS else ""
        what = f"of the best epoch, on {counted(self.num_val, 'val image')}, which have chosen the epoch and the trial"
        if self.num_folds:
            each = f"each of {counted(self.num_val, 'image')} judged by the network that was not trained on it"
            if self.measure.label == self.monitor:
                each = f"mean over {self.num_folds} folds of {counted(self.num_val, 'image')}"
            what = f"{each}; they have chosen the epoch of each fold and the trial"
        return (
            f"{counts}; one training seed, {self.seed}, for all.{more} {self.measure.label}: {what}. "
            "A pruned trial was ended early, and cannot be the best."
        )

    def _cells(self, trials: Sequence[Trial]) -> list[tuple[str, ...]]:
        return [
            (
                in_words(trial.values),
                str(trial.number),
                "failed" if trial.outcome.value is None else self._value(trial.outcome.value).removesuffix(" %"),
                f"{trial.outcome.epochs}{' pruned' if trial.outcome.state == 'pruned' else ''}",
                duration(trial.outcome.seconds),
                self._run_words(trial.outcome.run),
            )
            for trial in trials
        ]

    def _ids(self, keys: str) -> str:
        """Returns the ids of runs, given their keys."""
        return " ".join(self.runs.get(key, key) for key in keys.split())

    def _run_words(self, keys: str) -> str:
        """Returns the beginning of a run's id; of several that of the first, and how many more there are."""
        ids = self._ids(keys).split()
        return " ".join([*(each[:8] for each in ids[:1]), *([f"+{len(ids) - 1}"] if ids[1:] else [])])

    def _value(self, value: float | None) -> str:
        if value is None:
            return "none"
        return f"{value:.4f}" if self.measure.is_loss else f"{percent(value, self.num_val)} %"

    def _by_luck(self) -> str:
        """Says what of the best value was the selection's."""
        found = self.optimism
        if found is None:
            return f" (how much of that was luck takes {_LEAST_FOR_OPTIMISM} new seeds to tell)"
        if self.measure.is_loss:
            words = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        else:
            words = points_words(found, self.num_val)
        where = "out of fold" if self.num_folds else "on val"
        if found.low <= 0 <= found.high:
            return f": what it had {where} as the best of the trials is not measurably better ({words})"
        return f": as the best of the trials it had {words} {where}, which is luck"

    def _final_words(self, final: Final) -> str:
        said = f"{self.measure.label} {self._value(final.metrics[self.measure.metric])}"
        return (
            f"{said}, test {percent(final.metrics['test/acc'], self.num_test)} %"
            if "test/acc" in final.metrics
            else said
        )

    def _curve_words(self) -> str:
        """Says what the best was after so many trials: whether more of them would pay."""
        sign = 1 if self.mode == "max" else -1
        ended = sorted((trial for trial in self.trials if trial.elapsed), key=lambda trial: trial.elapsed)
        best: float | None = None
        said, places = [], {*(place for place in _CURVE if place < len(ended)), len(ended)}
        for place, trial in enumerate(ended, start=1):
            value = trial.outcome.value if trial.outcome.state == "complete" else None
            if value is not None and (best is None or sign * value > sign * best):
                best = value
            if place in places:
                said.append(f"{place} ({duration(trial.elapsed)}) {self._value(best)}")
        return f"The best after so many trials: {', '.join(said)}."
