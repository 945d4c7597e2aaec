"""The table in words: cells, caption and whole sentences, the same in every format."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from lit_cnn.evaluation.calibration import Calibration, Scaled
from lit_cnn.evaluation.report.table import Line, Row, Table
from lit_cnn.evaluation.statistics import Interval

T = TypeVar("T")

ALPHA = 0.05
"""A Holm-adjusted p below this is called a difference."""


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, the text of a cell, and whether it fits into a terminal of 100 columns."""

    title: str
    text: Callable[[Line], str]
    narrow: bool = True


COLUMNS = (
    Column("Model", lambda line: line.row.name),
    Column("Models\nx crops", lambda line: _models_x_crops(line.row)),
    Column("Passes", lambda line: f"{line.row.forward_passes:,}"),
    Column("Val %", lambda line: _or_dash(line.row.val_accuracy, lambda value: f"{100 * value:.2f}"), narrow=False),
    Column("Test % [95 %]", lambda line: _accuracy(line.accuracy)),
    Column("Difference [95 %]", lambda line: _or_dash(line.difference, _signed, "reference")),
    Column("p", lambda line: _or_dash(line.mcnemar, lambda test: p_text(test.p_value))),
    Column("p Holm", lambda line: _or_dash(line.p_holm, p_text)),
    Column("Over fewer crops [95 %]", lambda line: _or_dash(line.marginal, _signed), narrow=False),
    Column("Run", lambda line: line.row.run_id or "", narrow=False),
)

CALIBRATION_COLUMNS = (
    Column("Model", lambda line: line.row.name),
    Column("Models\nx crops", lambda line: _models_x_crops(line.row)),
    Column("ECE %", lambda line: _of_calibration(line, lambda found: f"{100 * found.ece:.2f}")),
    Column("Brier", lambda line: _of_calibration(line, lambda found: f"{found.brier:.4f}")),
    Column("NLL", lambda line: _of_calibration(line, lambda found: f"{found.nll:.4f}")),
    Column("T", lambda line: _of_scaled(line, lambda scaled: f"{scaled.temperature:.3f}")),
    Column("ECE %\nafter T", lambda line: _of_scaled(line, lambda scaled: f"{100 * scaled.ece:.2f}")),
    Column("NLL\nafter T", lambda line: _of_scaled(line, lambda scaled: f"{scaled.nll:.4f}")),
)

CALIBRATION_CAPTION = (
    "ECE: expected calibration error, 15 bins. Brier: 0 to 2. NLL: negative log-likelihood, nats. All on test; "
    "T: temperature fitted on val. A vote has no probabilities."
)


def caption(table: Table) -> str:
    """Says what the columns hold and on how many images and classes they rest."""
    parts = {len(line.row.correct) for line in table.lines if line.row.part is not None}
    on_part = "".join(f" *: on a stratified part of {count:,} test images." for count in sorted(parts))
    return (
        f"n = {table.num_images:,} test images, {table.num_classes:,} classes. Passes: forward passes per image. "
        f"Test: accuracy with its Wilson interval. Difference: percentage points against the reference on the same "
        f"images, with its paired bootstrap interval; p: exact McNemar test, alone and Holm-adjusted over the table."
        f"{on_part}"
    )


def sentences(table: Table) -> list[str]:
    """What the table says, in plain words.

    Returns:
        Which row the reference is; one sentence for each ensemble, and for the reference's network at other numbers
        of crops; what more crops bring to these; how much better than on test an ensemble selected on val looked
        there; then the gain of each ensemble over the mean of its members; then the members' mean and spread.
    """
    compared = [
        _comparison(line)
        for line in table.lines
        if line.difference is not None and (line.row.kind == "ensemble" or line.row.name == table.reference.name)
    ]
    gains = [
        f"{_subject(gain.row)} minus the mean of its members with {_crops(gain.row.num_views)}: "
        f"{_points(gain.difference)}."
        for gain in table.gains
    ]
    members = [
        f"Members with {_crops(summary.num_views)}: mean {100 * summary.accuracy.mean:.2f}"
        f" ± {100 * summary.accuracy.std:.2f} % (standard deviation), n = {summary.accuracy.n}."
        for summary in table.members
        if summary.accuracy.n > 1
    ]
    return [_reference(table.reference), *compared, *_steps(table), *_selections(table), *gains, *members]


def p_text(p_value: float) -> str:
    """Writes a p-value with one or two significant digits; below 0.001 only that it is below."""
    if p_value < 0.001:
        return "<0.001"
    return f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def is_claimed(line: Line) -> bool:
    """Whether the table calls this line different from the reference."""
    return line.p_holm is not None and line.p_holm < ALPHA


def _reference(row: Row) -> str:
    on_val = "" if row.val_accuracy is None else f" ({100 * row.val_accuracy:.2f} % there)"
    return f"The reference is the member best on val{on_val}: {row.name} with {_crops(row.num_views)}."


def _comparison(line: Line) -> str:
    assert line.difference is not None and line.p_holm is not None
    subject, difference = _subject(line.row), line.difference
    p_value = p_text(line.p_holm)
    p_value = f"Holm-adjusted p {'< 0.001' if p_value.startswith('<') else '= ' + p_value}"
    if is_claimed(line) and difference.mean > 0:
        return f"{subject} is {_points(difference)} over the member best on val; {p_value}."
    if is_claimed(line):
        return f"{subject} is {_points(difference)} against the member best on val, so worse; {p_value}."
    needed = ""
    if line.images_needed:
        needed = f" A true difference of this size would take about {_rounded_up(line.images_needed)} test images."
    return (
        f"{subject} against the member best on val: no difference can be claimed "
        f"({_points(difference)}, {p_value}).{needed}"
    )


def _steps(table: Table) -> list[str]:
    """What each larger number of crops brings, for the ensembles and for the reference's network."""
    steps: dict[str, list[str]] = {}
    for line in table.lines:
        if line.marginal is not None and (line.row.kind == "ensemble" or line.row.name == table.reference.name):
            on_part = f" (on {len(line.row.correct):,} images)" if line.row.part is not None else ""
            steps.setdefault(line.row.name, []).append(
                f"{line.fewer_views} to {line.row.num_views} {_points(line.marginal)}{on_part}"
            )
    return [f"More crops, {name}: {', '.join(parts)}." for name, parts in steps.items()]


def _selections(table: Table) -> list[str]:
    return [
        f"{_subject(line.row)} was selected on val ({line.row.composition}): {100 * line.row.val_accuracy:.2f} % "
        f"there, {100 * line.accuracy.mean:.2f} % on test: optimism {_points(line.optimism)}."
        for line in table.lines
        if line.row.composition and line.optimism is not None and line.row.val_accuracy is not None
    ]


def _subject(row: Row) -> str:
    name = f"The {row.name}" if row.kind == "ensemble" else row.name
    on_part = f" on {len(row.correct):,} images" if row.part is not None else ""
    return f"{name} with {_crops(row.num_views)}{on_part}"


def _models_x_crops(row: Row) -> str:
    return f"{row.num_models} x {row.num_views}{'' if row.part is None else '*'}"


def _of_calibration(line: Line, text: Callable[[Calibration], str]) -> str:
    return _or_dash(line.row.calibration, text)


def _of_scaled(line: Line, text: Callable[[Scaled], str]) -> str:
    return _or_dash(line.row.calibration.scaled if line.row.calibration else None, text)


def _crops(num_views: int) -> str:
    return f"{num_views} crop{'s' if num_views > 1 else ''}"


def _accuracy(value: Interval) -> str:
    return f"{100 * value.mean:.2f} [{100 * value.low:.2f}, {100 * value.high:.2f}]"


def _points(value: Interval) -> str:
    return _signed(value).replace(" ", " points ", 1)


def _signed(value: Interval) -> str:
    # z: -0.00 is written as +0.00.
    return f"{100 * value.mean:+z.2f} [{100 * value.low:+z.2f}, {100 * value.high:+z.2f}]"


def _rounded_up(number: int) -> str:
    step = 10 ** max(0, len(str(number)) - 2)
    return f"{math.ceil(number / step) * step:,}"


def _or_dash(value: T | None, text: Callable[[T], str], dash: str = "-") -> str:
    return dash if value is None else text(value)
