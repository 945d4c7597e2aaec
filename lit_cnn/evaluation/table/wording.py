"""The table in words: cells, caption and whole sentences, the same in every format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lit_cnn.core.intervals import Interval
from lit_cnn.core.words import joined
from lit_cnn.evaluation.calibration import NO_TEMPERATURE, Calibration, Scaled, most_fitted
from lit_cnn.evaluation.cost import LARGEST_PASS, Latency
from lit_cnn.evaluation.decision import ALPHA
from lit_cnn.evaluation.paired import score_limits
from lit_cnn.evaluation.table.numbers import Line, Numbers, Row
from lit_cnn.reports.wording import (
    accuracy_text,
    p_text,
    points,
    rounded,
    rounded_up,
    signed,
)

T = TypeVar("T")

SAME = "same images"
"""In a table: what is right on the very images on which the other one is."""


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, the text of a cell, and whether it fits into a terminal of 100 columns."""

    title: str
    text: Callable[[Line], str]
    narrow: bool = True

    @property
    def one_line_title(self) -> str:
        """The title where there is room for it."""
        return self.title.replace("-\n", "-").replace("\n", " ")


COLUMNS = (
    Column("Model", lambda line: line.row.name),
    Column("Models\nx crops", lambda line: _models_x_crops(line.row)),
    Column("Passes", lambda line: f"{line.row.forward_passes:,}"),
    Column("Val %", lambda line: _or_dash(line.row.val_accuracy, lambda value: f"{100 * value:.2f}"), narrow=False),
    Column("Test % [95 %]", lambda line: accuracy_text(line.accuracy)),
    Column("Difference [95 %]", lambda line: _difference(line)),
    Column("p", lambda line: _or_dash(line.mcnemar, lambda test: p_text(test.p_value))),
    Column("p Holm", lambda line: _or_dash(line.p_holm, p_text)),
    Column("Over fewer crops [95 %]", lambda line: _or_dash(line.marginal, _signed_or_same), narrow=False),
    Column("Run", lambda line: (line.row.run_id or "")[:8], narrow=False),
)

CALIBRATION_COLUMNS = (
    Column("Model", lambda line: line.row.name),
    Column("Models\nx crops", lambda line: _models_x_crops(line.row)),
    Column("ECE %", lambda line: _of_calibration(line, lambda found: f"{100 * found.ece:.2f}")),
    Column("Brier", lambda line: _of_calibration(line, lambda found: f"{found.brier:.4f}")),
    Column("NLL", lambda line: _of_calibration(line, lambda found: f"{found.nll:.4f}")),
    Column("T", lambda line: _of_calibration(line, _temperature)),
    Column("ECE %\nafter T", lambda line: _of_scaled(line, lambda scaled: f"{100 * scaled.ece:.2f}")),
    Column("NLL\nafter T", lambda line: _of_scaled(line, lambda scaled: f"{scaled.nll:.4f}")),
)

_CALIBRATION_CAPTION = (
    "ECE: expected calibration error, 15 bins. Brier: 0 to 2. NLL: negative log-likelihood, nats. All on test; "
    "T: temperature fitted on {val}; where a reason stands instead, none is taken. A vote has no probabilities."
)

GRID_COLUMNS = (
    Column("Models", lambda line: f"{_num_networks(line.row)}"),
    Column("Crops", lambda line: f"{line.row.num_views}{_star(line.row)}"),
    Column("Passes", lambda line: f"{line.row.forward_passes:,}"),
    Column("Top-1 error % [95 %]", lambda line: accuracy_text(_error(line.accuracy))),
    Column("Compared to base [95 %]", lambda line: _or_dash(line.difference, _of_error, "base")),
)

COST_COLUMNS = (
    Column("Model", lambda line: line.row.name),
    Column("Models\nx crops", lambda line: _models_x_crops(line.row)),
    Column("Passes", lambda line: f"{line.row.forward_passes:,}"),
    Column("Multiply-\nadds", lambda line: _or_dash(line.row.cost, lambda cost: rounded(cost.multiply_adds))),
    Column("Parameters", lambda line: _or_dash(line.row.cost, lambda cost: rounded(cost.parameters))),
)

LATENCY_COLUMNS = (
    *COST_COLUMNS,
    Column("1 image\nms (p95)", lambda line: _of_latency(line, 1, _milliseconds)),
    Column("32 images\nms (p95)", lambda line: _of_latency(line, 32, _milliseconds)),
    Column("Images/s", lambda line: _of_latency(line, 32, lambda found: f"{32 / found.median:,.0f}")),
)


def grid_caption(table: Numbers) -> str:
    """Says what the grid of models x crops holds."""
    return (
        "In the form of Szegedy et al. 2014, table 3: the mean of the networks best on val over their crops; error on "
        "test with its Wilson interval, and its points over the base on the same images with their paired bootstrap "
        f"interval.{_on_part(table.grid)}"
    )


def cost_columns(table: Numbers) -> tuple[Column, ...]:
    """Returns the columns of the table of costs: with latency where it was measured."""
    return LATENCY_COLUMNS if machine_of(table) else COST_COLUMNS


def cost_caption(table: Numbers) -> str:
    """Says what the costs count, and how latency was measured."""
    said = "Passes: forward passes per image. Multiply-adds: per image. Parameters: of all networks."
    if not (machine := machine_of(table)):
        return said
    rounds = {latency.num_rounds for line in table.lines if line.row.cost for latency in line.row.cost.latency.values()}
    many = f"{min(rounds)} to {max(rounds)}" if len(rounds) > 1 else f"{max(rounds)}"
    return (
        f"{said} ms: the networks alone, from views in memory to logits, float32, on {machine}; median and 95th "
        f"percentile of {many} interleaved rounds. An ensemble's is the sum over its networks, round by round; the "
        f"views of an image share a pass, {LARGEST_PASS} at most, and several passes are one that was timed, "
        "multiplied. Images/s: at 32."
    )


def machine_of(table: Numbers) -> str:
    """Returns on what latency was measured; empty if it was not."""
    return next((line.row.cost.machine for line in table.lines if line.row.cost), "")


def caption(table: Numbers) -> str:
    """Says what the columns hold and on how many images and classes they rest."""
    about = f"{table.subject}. " if table.subject else ""
    return (
        f"{about}n = {table.num_images:,} test images, {table.num_classes:,} classes. Passes: forward passes an image. "
        "Test: accuracy with its Wilson interval. Difference: percentage points against the reference on the same "
        "images, with its paired bootstrap interval (the first sentences have a wider one where few images differ); p: "
        "exact McNemar test, alone and Holm-adjusted over the table."
        f"{_on_part(table.lines)}"
    )


def sentences(table: Numbers) -> list[str]:
    """What the table says in detail, below the answer.

    Returns:
        Which row the reference is; one sentence for each ensemble and baseline, and for the reference's network at
        other numbers of crops, that differs from it; which do not differ in any image; what more crops bring to
        these; how much better than on test an ensemble selected on val looked there; then the gain of each ensemble
        over the mean of its members; then the members' mean and spread; then which rows have no temperature, and why.
    """
    told = [
        line
        for line in table.lines
        if line.difference is not None and (line.row.is_combined or line.row.name == table.reference.name)
    ]
    gains = [
        f"{_subject(gain.row)} minus the mean of its members with {_crops(gain.row.num_views)}: "
        f"{points(gain.difference)}."
        for gain in table.gains
        if any(gain.difference)
    ]
    members = [
        f"Members with {_crops(summary.num_views)}: mean {100 * summary.accuracy.mean:.2f}"
        f" ± {100 * summary.accuracy.std:.2f} % (standard deviation), n = {summary.accuracy.n}."
        for summary in table.members
        if summary.accuracy.n > 1
    ]
    return [
        _reference(table),
        *(_comparison(line) for line in told if not is_same(line)),
        *_same(table),
        *_steps(table),
        *_selections(table),
        *gains,
        *members,
        *_without_temperature(table),
    ]


def is_same(line: Line) -> bool:
    """Whether a row is right on the very images on which the reference is."""
    return line.mcnemar is not None and not (line.mcnemar.only_a or line.mcnemar.only_b)


def is_claimed(line: Line) -> bool:
    """Whether the table calls this line different from the reference."""
    return line.p_holm is not None and line.p_holm < ALPHA


def _reference(table: Numbers) -> str:
    row = table.reference
    if row.val_accuracy is None:
        return f"The reference is {_subject(row)}."
    ties = [
        line.row.name
        for line in table.lines
        if line.row is not row
        and (line.row.kind, line.row.num_views, line.row.val_accuracy) == ("member", row.num_views, row.val_accuracy)
    ]
    also = f"; {', '.join(ties)} {'are' if len(ties) > 1 else 'is'} as good there" if ties else ""
    return (
        f"The reference is the member best on val ({100 * row.val_accuracy:.2f} % there{also}): {row.name} with "
        f"{_crops(row.num_views)}."
    )


def _same(table: Numbers) -> list[str]:
    """Which rows no image tells from the reference, and what that excludes: said once."""
    same = [line for line in table.lines if is_same(line)]
    if not same:
        return []
    names = joined([subject(line.row) for line in same])
    limit = 100 * max(score_limits(0, 0, len(line.row.correct)).high for line in same)
    return [
        f"No image tells {names} from the reference: a true difference above {limit:.2g} points is excluded (95 %)."
    ]


def _holm_words(p_holm: float) -> str:
    written = p_text(p_holm)
    return f"Holm-adjusted p {'< 0.001' if written.startswith('<') else '= ' + written}"


def _comparison(line: Line) -> str:
    assert line.difference is not None and line.p_holm is not None
    subject, difference = _subject(line.row), line.difference
    p_value = _holm_words(line.p_holm)
    if is_claimed(line) and difference.mean > 0:
        return f"{subject} is {points(difference)} over the member best on val; {p_value}."
    if is_claimed(line):
        return f"{subject} is {points(difference)} against the member best on val, so worse; {p_value}."
    needed = ""
    if line.images_needed:
        needed = f" A true difference of this size would take about {rounded_up(line.images_needed)} test images."
    return (
        f"{subject} against the member best on val: no difference can be claimed "
        f"({points(difference)}, {p_value}).{needed}"
    )


def _steps(table: Numbers) -> list[str]:
    """What each larger number of crops brings, for ensembles, baselines and the reference's network."""
    steps: dict[str, list[str]] = {}
    for line in table.lines:
        if line.marginal is not None and (line.row.is_combined or line.row.name == table.reference.name):
            on_part = f" (on {len(line.row.correct):,} images)" if line.row.part is not None else ""
            change = points(line.marginal) if any(line.marginal) else "no image changes"
            steps.setdefault(line.row.name, []).append(f"{line.fewer_views} to {line.row.num_views} {change}{on_part}")
    return [f"More crops, {name}: {', '.join(parts)}." for name, parts in steps.items()]


def _selections(table: Numbers) -> list[str]:
    return [
        f"{_subject(line.row)} was selected on val ({line.row.composition}): {100 * line.row.val_accuracy:.2f} % "
        f"there, {100 * line.accuracy.mean:.2f} % on test: optimism {points(line.optimism)}."
        for line in table.lines
        if line.row.composition and line.optimism is not None and line.row.val_accuracy is not None
    ]


def _without_temperature(table: Numbers) -> list[str]:
    """Why a temperature that was asked for is not taken: a sentence a reason."""
    return [
        f"No temperature is taken for {', '.join(found)}: {reason}."
        for word, reason in NO_TEMPERATURE.items()
        if (
            found := [
                subject(line.row)
                for line in table.lines
                if line.row.calibration and line.row.calibration.no_temperature == word
            ]
        )
    ]


def _subject(row: Row) -> str:
    name = f"The {row.name}" if row.kind == "ensemble" else row.name
    on_part = f" on {len(row.correct):,} images" if row.part is not None else ""
    return f"{name} with {_crops(row.num_views)}{on_part}"


def subject(row: Row) -> str:
    """Returns a row within a sentence: `the ensemble of 2 with 10 crops`."""
    return _subject(row).replace("The ", "the ", 1)


def _difference(line: Line) -> str:
    return SAME if is_same(line) else _or_dash(line.difference, signed, "reference")


def _signed_or_same(difference: Interval) -> str:
    return signed(difference) if any(difference) else SAME


def calibration_caption(table: Numbers) -> str:
    """Returns what has to be known to read the table of calibration."""
    num_val = max((line.row.val_counts[1] for line in table.lines if line.row.val_counts), default=0)
    most = most_fitted(table.num_classes)
    some = f"{most:,} of the {num_val:,} val images, spread over the classes"
    return _CALIBRATION_CAPTION.format(val=some if num_val > most else "val")


def _models_x_crops(row: Row) -> str:
    return f"{_num_networks(row)} x {row.num_views}{_star(row)}"


def _num_networks(row: Row) -> int:
    """Returns how many networks are run: a run of folds is several."""
    return row.forward_passes // row.num_views


def _star(row: Row) -> str:
    return "" if row.part is None else "*"


def _on_part(lines: Sequence[Line]) -> str:
    parts = {len(line.row.correct) for line in lines if line.row.part is not None}
    return "".join(f" *: on a stratified part of {count:,} test images (limit_144)." for count in sorted(parts))


def _error(accuracy: Interval) -> Interval:
    return Interval(1 - accuracy.mean, 1 - accuracy.high, 1 - accuracy.low)


def _of_error(difference: Interval) -> str:
    """Writes what a difference of accuracies is of errors."""
    return _signed_or_same(Interval(-difference.mean, -difference.high, -difference.low))


def _of_calibration(line: Line, text: Callable[[Calibration], str]) -> str:
    return _or_dash(line.row.calibration, text)


def _temperature(calibration: Calibration) -> str:
    return f"{calibration.scaled.temperature:.3f}" if calibration.scaled else calibration.no_temperature or "-"


def _of_scaled(line: Line, text: Callable[[Scaled], str]) -> str:
    return _or_dash(line.row.calibration.scaled if line.row.calibration else None, text)


def _of_latency(line: Line, num_images: int, text: Callable[[Latency], str]) -> str:
    return _or_dash(line.row.cost.latency.get(num_images) if line.row.cost else None, text)


def _milliseconds(latency: Latency) -> str:
    digits = 2 if latency.median < 0.1 else 0
    return f"{1000 * latency.median:,.{digits}f} ({1000 * latency.p95:,.{digits}f})"


def _crops(num_views: int) -> str:
    return f"{num_views} crop{'s' if num_views > 1 else ''}"


def _or_dash(value: T | None, text: Callable[[T], str], dash: str = "-") -> str:
    return dash if value is None else text(value)
