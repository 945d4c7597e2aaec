"""The table for a terminal, a spreadsheet, MLflow's description of a run, a browser and a program."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_cnn.evaluation.cost import BATCHES
from lit_cnn.evaluation.report.figure import accuracy_svg
from lit_cnn.evaluation.report.page import bullets, grid, heading, page, paragraph
from lit_cnn.evaluation.report.pareto import pareto_svg
from lit_cnn.evaluation.report.reliability import reliability_svg
from lit_cnn.evaluation.report.table import Line, Table
from lit_cnn.evaluation.report.wording import (
    CALIBRATION_CAPTION,
    CALIBRATION_COLUMNS,
    COLUMNS,
    GRID_COLUMNS,
    Column,
    caption,
    cost_caption,
    cost_columns,
    grid_caption,
    machine_of,
    sentences,
)

if TYPE_CHECKING:
    from rich.console import Console


def render(table: Table, console: "Console") -> None:
    """Prints the table, its caption and its sentences; made for 100 columns. Ensembles are bold.

    Where temperatures were fitted, a second table of the calibration follows; where latency was measured, one of costs.
    """
    from rich.padding import Padding
    from rich.text import Text

    _print_columns([column for column in COLUMNS if column.narrow], table.lines, caption(table), console)
    console.print()
    for sentence in sentences(table):
        console.print(Padding(Text(sentence), (0, 0, 0, 2)))
    if any(line.row.calibration and line.row.calibration.scaled for line in table.lines):
        console.print()
        _print_columns(CALIBRATION_COLUMNS, table.lines, CALIBRATION_CAPTION, console)
    if machine_of(table):
        console.print()
        _print_columns(cost_columns(table), table.lines, cost_caption(table), console)


def _print_columns(columns: Sequence[Column], lines: Sequence[Line], caption: str, console: "Console") -> None:
    rows = [[column.text(line) for column in columns] for line in lines]
    is_bold = [line.row.stands_out for line in lines]
    print_grid([column.title for column in columns], rows, is_bold, caption, console)


def print_grid(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    is_bold: Sequence[bool],
    caption: str,
    console: "Console",
) -> None:
    """Prints a table with a caption; names in its first column are folded, numbers in the others kept whole."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=Text(caption),
        caption_justify="left",
    )
    for number, title in enumerate(titles):
        # Names give way; a number cut in two is no number.
        options: dict[str, Any] = {"overflow": "fold"} if number == 0 else {"justify": "right", "no_wrap": True}
        grid.add_column(title, **options)
    for cells, bold in zip(rows, is_bold, strict=True):
        grid.add_row(*map(Text, cells), style="bold" if bold else None)
    console.print(grid)


def to_csv(table: Table) -> str:
    """Returns one line a row after a header; fractions, in full precision; empty where there is no number."""
    records = [_record(line) for line in table.lines]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """Returns the sentences, the tables and their captions in GitHub's Markdown."""
    said = [f"- {escaped_markdown(sentence)}" for sentence in sentences(table)]
    parts = [*said, "", *_markdown_grid(COLUMNS, table.lines), "", caption(table).replace("*:", r"\*:"), ""]
    if _has_calibration(table):
        parts += [*_markdown_grid(CALIBRATION_COLUMNS, table.lines), "", CALIBRATION_CAPTION, ""]
    if table.grid:
        parts += [*_markdown_grid(GRID_COLUMNS, table.grid), "", grid_caption(table).replace("*:", r"\*:"), ""]
    if _has_cost(table):
        parts += [*_markdown_grid(cost_columns(table), table.lines), "", cost_caption(table), ""]
    return "\n".join(parts)


def _markdown_grid(columns: Sequence[Column], lines: Sequence[Line]) -> list[str]:
    cells_of_rows = [
        [column.one_line_title for column in columns],
        ["---" if number == 0 else "---:" for number in range(len(columns))],
        *([escaped_markdown(column.text(line)) for column in columns] for line in lines),
    ]
    return ["| " + " | ".join(cells) + " |" for cells in cells_of_rows]


def to_html(table: Table, *appendix: str) -> str:
    """Returns a page that needs no other file: sentences, pictures, tables; and what is appended, in HTML."""
    parts = [bullets(sentences(table)), accuracy_svg(table), _html_grid(COLUMNS, table.lines, table)]
    parts.append(paragraph(caption(table)))
    if table.grid:
        parts += [heading("Networks against crops"), _html_grid(GRID_COLUMNS, table.grid, table)]
        parts.append(paragraph(grid_caption(table)))
    if _has_cost(table):
        parts += [heading("Cost"), pareto_svg(table), _html_grid(cost_columns(table), table.lines, table)]
        parts.append(paragraph(cost_caption(table)))
    if _has_calibration(table):
        parts += [heading("Calibration"), reliability_svg(table), _html_grid(CALIBRATION_COLUMNS, table.lines, table)]
        parts.append(paragraph(CALIBRATION_CAPTION))
    return page("Models x crops", *parts, *appendix)


def _html_grid(columns: Sequence[Column], lines: Sequence[Line], table: Table) -> str:
    return grid(
        [column.one_line_title for column in columns],
        [[column.text(line) for column in columns] for line in lines],
        [line.row.kind + (" reference" if line.row is table.reference else "") for line in lines],
    )


def _has_calibration(table: Table) -> bool:
    return any(line.row.calibration for line in table.lines)


def _has_cost(table: Table) -> bool:
    return any(line.row.cost for line in table.lines)


def to_json(table: Table) -> str:
    """Returns every number of the table, in fractions and full precision, and its sentences; null for no number."""
    document = {
        "num_images": table.num_images,
        "num_classes": table.num_classes,
        "machine": machine_of(table) or None,
        "rows": [_record(line) | {"is_reference": line.row is table.reference} for line in table.lines],
        "members": [
            {
                "num_views": summary.num_views,
                "n": summary.accuracy.n,
                "mean": summary.accuracy.mean,
                "std": None if math.isnan(summary.accuracy.std) else summary.accuracy.std,
            }
            for summary in table.members
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
            for line in table.grid
        ],
        "gains_over_members_mean": [
            {"name": gain.row.name, "num_models": gain.row.num_models, "num_views": gain.row.num_views}
            | gain.difference._asdict()
            for gain in table.gains
        ],
        "sentences": sentences(table),
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _record(line: Line) -> dict[str, Any]:
    row, difference, test = line.row, line.difference, line.mcnemar
    marginal, optimism, calibration = line.marginal, line.optimism, line.row.calibration
    scaled = calibration and calibration.scaled
    cost, latency = row.cost, row.cost.latency if row.cost else {}
    return {
        "name": row.name,
        "kind": row.kind,
        "num_models": row.num_models,
        "num_views": row.num_views,
        "forward_passes": row.forward_passes,
        "val_accuracy": row.val_accuracy,
        "accuracy": line.accuracy.mean,
        "accuracy_low": line.accuracy.low,
        "accuracy_high": line.accuracy.high,
        "difference": difference and difference.mean,
        "difference_low": difference and difference.low,
        "difference_high": difference and difference.high,
        "only_this_correct": test and test.only_a,
        "only_reference_correct": test and test.only_b,
        "p": test and test.p_value,
        "p_holm": line.p_holm,
        "images_needed": line.images_needed,
        "num_images": len(row.correct),
        "fewer_views": line.fewer_views,
        "marginal": marginal and marginal.mean,
        "marginal_low": marginal and marginal.low,
        "marginal_high": marginal and marginal.high,
        "composition": row.composition or None,
        "weights": " ".join(map(repr, row.weights)) or None,
        "optimism": optimism and optimism.mean,
        "optimism_low": optimism and optimism.low,
        "optimism_high": optimism and optimism.high,
        "ece": calibration and calibration.ece,
        "brier": calibration and calibration.brier,
        "nll": calibration and calibration.nll,
        "temperature": scaled and scaled.temperature,
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


def escaped_markdown(text: str) -> str:
    """Returns a text of one line that GitHub's Markdown shows as it is, also in a table."""
    # A name such as a_b_c must not turn italic, nor one with a bar add a column.
    return "".join(f"\\{character}" if character in "\\`*_|<" else character for character in " ".join(text.split()))
