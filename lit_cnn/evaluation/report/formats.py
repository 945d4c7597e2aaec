"""The table for a terminal, a spreadsheet, MLflow's description of a run, a browser and a program."""

import csv
import html
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_cnn.evaluation.report.figure import accuracy_svg
from lit_cnn.evaluation.report.reliability import reliability_svg
from lit_cnn.evaluation.report.table import Line, Table
from lit_cnn.evaluation.report.wording import (
    CALIBRATION_CAPTION,
    CALIBRATION_COLUMNS,
    COLUMNS,
    Column,
    caption,
    sentences,
)

if TYPE_CHECKING:
    from rich.console import Console


def render(table: Table, console: "Console") -> None:
    """Prints the table, its caption and its sentences; made for 100 columns. Ensembles are bold.

    Where temperatures were fitted, a second table of the calibration follows.
    """
    from rich.padding import Padding
    from rich.text import Text

    _render_grid([column for column in COLUMNS if column.narrow], table.lines, caption(table), console)
    console.print()
    for sentence in sentences(table):
        console.print(Padding(Text(sentence), (0, 0, 0, 2)))
    if any(line.row.calibration and line.row.calibration.scaled for line in table.lines):
        console.print()
        _render_grid(CALIBRATION_COLUMNS, table.lines, CALIBRATION_CAPTION, console)


def _render_grid(columns: Sequence[Column], lines: Sequence[Line], caption: str, console: "Console") -> None:
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
    for number, column in enumerate(columns):
        # Names give way; a number cut in two is no number.
        options: dict[str, Any] = {"overflow": "fold"} if number == 0 else {"justify": "right", "no_wrap": True}
        grid.add_column(column.title, **options)
    for line in lines:
        style = "bold" if line.row.kind == "ensemble" else None
        grid.add_row(*(Text(column.text(line)) for column in columns), style=style)
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
    said = [f"- {_escaped_markdown(sentence)}" for sentence in sentences(table)]
    parts = [*said, "", *_markdown_grid(COLUMNS, table.lines), "", caption(table).replace("*:", r"\*:"), ""]
    if _has_calibration(table):
        parts += [*_markdown_grid(CALIBRATION_COLUMNS, table.lines), "", CALIBRATION_CAPTION, ""]
    return "\n".join(parts)


def _markdown_grid(columns: Sequence[Column], lines: Sequence[Line]) -> list[str]:
    grid = [
        [column.title.replace("\n", " ") for column in columns],
        ["---" if number == 0 else "---:" for number in range(len(columns))],
        *([_escaped_markdown(column.text(line)) for column in columns] for line in lines),
    ]
    return ["| " + " | ".join(cells) + " |" for cells in grid]


def to_html(table: Table) -> str:
    """Returns a page that needs no other file: sentences, pictures, tables."""
    said = "\n".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences(table))
    calibration = ""
    if _has_calibration(table):
        calibration = f"<h2>Calibration</h2>\n{reliability_svg(table)}\n" + _html_grid(
            CALIBRATION_COLUMNS, table, CALIBRATION_CAPTION
        )
    return _PAGE.format(
        said=said, figure=accuracy_svg(table), table=_html_grid(COLUMNS, table, caption(table)), calibration=calibration
    )


def _html_grid(columns: Sequence[Column], table: Table, caption: str) -> str:
    header = "".join(f"<th>{html.escape(column.title)}</th>" for column in columns)
    body = "\n".join(
        f'<tr class="{line.row.kind}{" reference" if line.row is table.reference else ""}">'
        + "".join(f"<td>{html.escape(column.text(line))}</td>" for column in columns)
        + "</tr>"
        for line in table.lines
    )
    return _GRID.format(header=header, body=body, caption=html.escape(caption))


def _has_calibration(table: Table) -> bool:
    return any(line.row.calibration for line in table.lines)


def to_json(table: Table) -> str:
    """Returns every number of the table, in fractions and full precision, and its sentences; null for no number."""
    document = {
        "num_images": table.num_images,
        "num_classes": table.num_classes,
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
        "run_id": row.run_id,
    }


def _escaped_markdown(text: str) -> str:
    # A name such as a_b_c must not turn italic, nor one with a bar add a column.
    return "".join(f"\\{character}" if character in "\\`*_|<" else character for character in text)


_GRID = """<div class="wide">
<table>
<thead><tr>{header}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
<p class="caption">{caption}</p>"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Models x crops</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 80rem; margin: 2rem auto;
  padding: 0 1rem; }}
svg {{ max-width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
.caption {{ color: #555; }}
th, td {{ padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }}
td:last-child {{ font: .75em monospace; }}
thead th {{ border-bottom: 2px solid #222; }}
tr.ensemble {{ font-weight: 600; }}
tr.reference {{ background: #f3f3f3; }}
</style>
</head>
<body>
<h1>Models x crops</h1>
<ul>
{said}
</ul>
{figure}
{table}
{calibration}
</body>
</html>
"""
