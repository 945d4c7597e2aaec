"""The table for a terminal, a notebook, a spreadsheet, MLflow's description of a run, a browser and a program."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_cnn.evaluation.activation import maps_of
from lit_cnn.evaluation.cost import BATCHES
from lit_cnn.evaluation.table.accuracy import draw_accuracy
from lit_cnn.evaluation.table.answer import answer
from lit_cnn.evaluation.table.frontier import decision_of
from lit_cnn.evaluation.table.numbers import Line, Numbers
from lit_cnn.evaluation.table.pareto import draw_pareto
from lit_cnn.evaluation.table.reliability import draw_reliability
from lit_cnn.evaluation.table.wording import (
    CALIBRATION_COLUMNS,
    COLUMNS,
    GRID_COLUMNS,
    Column,
    calibration_caption,
    caption,
    cost_caption,
    cost_columns,
    grid_caption,
    machine_of,
    sentences,
)
from lit_cnn.reports.figures import save_png, svg_of
from lit_cnn.reports.mistakes import write_mistakes
from lit_cnn.reports.page import bullets, details, drawing, grid, heading, paragraph
from lit_cnn.reports.predictions import Predictions
from lit_cnn.reports.result import (
    Result,
    escaped_markdown,
    json_text,
    markdown_grid,
    text_grid,
    text_notes,
    with_limits,
    write_texts,
)
from lit_cnn.tracking.run import Run
from lit_cnn.training.classifier import LitClassifier

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, eq=False, repr=False)
class Table(Numbers, Result):
    """Models x crops: networks alone and combined, every number with its error.

    In the form of GoogLeNet's paper (Szegedy et al. 2014, table 3). Made by `ensemble`, or by `Table.of` from rows.

    Attributes:
        predictions: What the combination that was asked for predicts for each test image; its mistakes are reported.
        load_model: Returns the network whose class-activation maps of these a report shows; None for no maps.
        run: The run that holds this comparison in MLflow.
        experiment: The experiment of that run.
    """

    predictions: Predictions | None = None
    load_model: Callable[[], LitClassifier] | None = None
    run: Run | None = None
    experiment: str = ""

    @property
    def title(self) -> str:
        """Title of its page."""
        return f"Models x crops: {self.subject}" if self.subject else "Models x crops"

    def answer(self) -> str:
        """Returns which row to take, how it stands to the others, and what so many images can show."""
        return answer(self)

    def text(self) -> "Sequence[RenderableType]":
        """Returns the table, its caption and its sentences; ensembles are bold.

        Where temperatures were asked for, a second table of the calibration follows; where latency was measured, one of
        costs.
        """
        narrow = [column for column in COLUMNS if column.narrow]
        parts = [_text_grid(narrow, self.lines, caption(self)), "", *text_notes(sentences(self))]
        found = [line.row.calibration for line in self.lines if line.row.calibration]
        if any(calibration.scaled or calibration.no_temperature for calibration in found):
            parts += ["", _text_grid(CALIBRATION_COLUMNS, self.lines, calibration_caption(self))]
        if machine_of(self):
            parts += ["", _text_grid(cost_columns(self), self.lines, cost_caption(self))]
        return parts

    def sections(self) -> list[str]:
        """Returns tables, pictures and sentences in HTML."""
        parts = [self._html_grid(COLUMNS), paragraph(caption(self)), drawing(svg_of(draw_accuracy(self), "accuracy"))]
        parts.append(details("Statistics", bullets(sentences(self))))
        if self.grid:
            parts += [heading("Networks against crops"), self._html_grid(GRID_COLUMNS, self.grid)]
            parts.append(paragraph(grid_caption(self)))
        if self._has_cost:
            parts += [
                heading("Cost"),
                drawing(svg_of(draw_pareto(self), "pareto")),
                self._html_grid(cost_columns(self)),
            ]
            parts.append(paragraph(cost_caption(self)))
        if self._has_calibration:
            parts += [heading("Calibration"), drawing(svg_of(draw_reliability(self), "reliability"))]
            parts += [self._html_grid(CALIBRATION_COLUMNS), paragraph(calibration_caption(self))]
        return parts

    def records(self) -> list[dict[str, Any]]:
        """Returns the rows: fractions, in full precision; None where there is no number."""
        return [_record(line) for line in self.lines]

    def to_markdown(self) -> str:
        """Returns answer, tables with their captions and sentences in GitHub's Markdown."""
        said = [f"- {escaped_markdown(sentence)}" for sentence in sentences(self)]
        table = [*_markdown_grid(COLUMNS, self.lines), "", caption(self).replace("*:", r"\*:"), ""]
        parts = [f"**{escaped_markdown(self.answer())}**", "", *table, *said, ""]
        if self._has_calibration:
            parts += [*_markdown_grid(CALIBRATION_COLUMNS, self.lines), "", calibration_caption(self), ""]
        if self.grid:
            parts += [*_markdown_grid(GRID_COLUMNS, self.grid), "", grid_caption(self).replace("*:", r"\*:"), ""]
        if self._has_cost:
            parts += [*_markdown_grid(cost_columns(self), self.lines), "", cost_caption(self), ""]
        return "\n".join(parts)

    def to_json(self) -> str:
        """Returns every number of the table, in fractions and full precision, and its sentences; null for no number."""
        found = decision_of(self)
        take = {
            "name": found.chosen.row.name,
            "num_views": found.chosen.row.num_views,
            "is_better": found.is_better,
            "is_for_its_cost": found.is_for_its_cost,
        }
        return json_text(
            {
                "answer": self.answer(),
                "take": take,
                "num_images": self.num_images,
                "num_classes": self.num_classes,
                "machine": machine_of(self) or None,
                "rows": [_record(line) | {"is_reference": line.row is self.reference} for line in self.lines],
                "members": [
                    {
                        "num_views": summary.num_views,
                        "n": summary.accuracy.n,
                        "mean": summary.accuracy.mean,
                        "std": None if math.isnan(summary.accuracy.std) else summary.accuracy.std,
                    }
                    for summary in self.members
                ],
                "grid": [
                    {
                        "num_models": line.row.num_models,
                        "num_views": line.row.num_views,
                        "forward_passes": line.row.forward_passes,
                        "num_images": len(line.row.correct),
                        "accuracy": line.accuracy.mean,
                        "over_base": line.difference and line.difference._asdict(),
                    }
                    for line in self.grid
                ],
                "gains_over_members_mean": [
                    {"name": gain.row.name, "num_models": gain.row.num_models, "num_views": gain.row.num_views}
                    | gain.difference._asdict()
                    for gain in self.gains
                ],
                "sentences": sentences(self),
            }
        )

    def write(self, folder: Path) -> list[Path]:
        """Writes the table as CSV, Markdown and JSON, its pictures, its mistakes, and a page with all of it."""
        files = write_texts(
            folder, {"table.csv": self.to_csv(), "table.md": self.to_markdown(), "table.json": self.to_json()}
        )
        pictures = {"accuracy.png": draw_accuracy}
        if self._has_cost:
            pictures["pareto.png"] = draw_pareto
        if self._has_calibration:
            pictures["reliability.png"] = draw_reliability
        for name, draw in pictures.items():
            save_png(draw(self), folder / name)
            files.append(folder / name)
        appendix = ""
        if self.predictions is not None:
            of_mistakes, appendix = write_mistakes(self.predictions, folder, maps_of(self.load_model))
            files += of_mistakes
        return files + write_texts(folder, {"report.html": self.to_html(appendix)})

    def _html_grid(self, columns: Sequence[Column], lines: Sequence[Line] | None = None) -> str:
        lines, chosen = self.lines if lines is None else lines, decision_of(self).chosen
        return grid(
            [column.one_line_title for column in columns],
            [[column.text(line) for column in columns] for line in lines],
            [
                line.row.kind * (lines is self.lines)
                + " reference" * (line.row is self.reference)
                + " chosen" * (line is chosen)
                for line in lines
            ],
        )

    @property
    def _has_calibration(self) -> bool:
        return any(line.row.calibration for line in self.lines)

    @property
    def _has_cost(self) -> bool:
        return any(line.row.cost for line in self.lines)


def _text_grid(columns: Sequence[Column], lines: Sequence[Line], caption: str) -> "RenderableType":
    rows = [[column.text(line) for column in columns] for line in lines]
    return text_grid([column.title for column in columns], rows, [line.row.is_combined for line in lines], caption)


def _markdown_grid(columns: Sequence[Column], lines: Sequence[Line]) -> list[str]:
    rows = [[column.text(line) for column in columns] for line in lines]
    return markdown_grid([column.one_line_title for column in columns], rows)


def _record(line: Line) -> dict[str, Any]:
    row, test, calibration = line.row, line.mcnemar, line.row.calibration
    scaled = calibration and calibration.scaled
    cost, latency = row.cost, row.cost.latency if row.cost else {}
    return {
        "name": row.name,
        "kind": row.kind,
        "num_models": row.num_models,
        "num_views": row.num_views,
        "forward_passes": row.forward_passes,
        "val_accuracy": row.val_accuracy,
        **with_limits("accuracy", line.accuracy),
        **with_limits("difference", line.difference),
        "only_this_correct": test and test.only_a,
        "only_reference_correct": test and test.only_b,
        "p": test and test.p_value,
        "p_holm": line.p_holm,
        "images_needed": line.images_needed,
        "num_images": len(row.correct),
        "fewer_views": line.fewer_views,
        **with_limits("marginal", line.marginal),
        "composition": row.composition or None,
        "weights": " ".join(map(repr, row.weights)) or None,
        **with_limits("optimism", line.optimism),
        "ece": calibration and calibration.ece,
        "brier": calibration and calibration.brier,
        "nll": calibration and calibration.nll,
        "temperature": scaled and scaled.temperature,
        "no_temperature": (calibration and calibration.no_temperature) or None,
        "ece_after": scaled and scaled.ece,
        "nll_after": scaled and scaled.nll,
        "parameters": cost and cost.parameters,
        "multiply_adds": cost and cost.multiply_adds,
        **{
            f"seconds_for_{num_images}_{what}": latency[num_images]._asdict()[what] if latency else None
            for num_images in BATCHES
            for what in ("median", "p95")
        },
        "timed_rounds": min(found.num_rounds for found in latency.values()) if latency else None,
        "run_id": row.run_id,
    }
