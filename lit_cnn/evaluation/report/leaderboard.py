"""The leaderboard for a terminal, a spreadsheet, MLflow's description of a run, a browser and a program."""

import csv
import io
import json
import math
from typing import TYPE_CHECKING, Any

from lit_cnn.evaluation.leaderboard import Leaderboard, Standing
from lit_cnn.evaluation.report.formats import escaped_markdown, print_grid
from lit_cnn.evaluation.report.page import bullets, grid, page, paragraph
from lit_cnn.evaluation.report.wording import p_text, rounded, signed

if TYPE_CHECKING:
    from rich.console import Console

_TITLES = ("Configuration", "n", "Mean ± std %", "95 %", "Difference [95 %]", "p", "p Holm", "Test", "Params", "MACs")


def render_leaderboard(board: Leaderboard, console: "Console") -> None:
    """Prints the table, its caption and its notes."""
    from rich.padding import Padding
    from rich.text import Text

    rows = [_cells(standing, board) for standing in board.standings]
    is_bold = [standing.group is board.reference for standing in board.standings]
    print_grid(_TITLES, rows, is_bold, _caption(board), console)
    for note in board.notes:
        console.print(Padding(Text(note), (0, 0, 0, 2)))


def leaderboard_markdown(board: Leaderboard) -> str:
    """Returns the table, its caption and its notes in GitHub's Markdown."""
    rows = [_TITLES, ("---", *["---:"] * (len(_TITLES) - 1))]
    cells = [[escaped_markdown(cell) for cell in _cells(standing, board)] for standing in board.standings]
    lines = ["| " + " | ".join(row) + " |" for row in [*rows, *cells]]
    notes = [f"- {escaped_markdown(note)}" for note in board.notes]
    return "\n".join([*lines, "", escaped_markdown(_caption(board)), "", *notes, ""])


def leaderboard_html(board: Leaderboard) -> str:
    """Returns a page that needs no other file."""
    rows = [(*_cells(standing, board), " ".join(standing.group.run_ids)) for standing in board.standings]
    classes = ["reference" if standing.group is board.reference else "" for standing in board.standings]
    parts = [grid((*_TITLES, "Runs"), rows, classes), paragraph(_caption(board))]
    return page(f"Leaderboard of {board.experiment}", *parts, bullets(board.notes) if board.notes else "")


def leaderboard_csv(board: Leaderboard) -> str:
    """Returns one line a configuration after a header; fractions; empty where there is no number."""
    text = io.StringIO()
    records = [_record(standing, board) for standing in board.standings]
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**record, "runs": " ".join(record["runs"])} for record in records)
    return text.getvalue()


def leaderboard_json(board: Leaderboard) -> str:
    """Returns every number, in fractions and full precision, and the notes; null for no number."""
    document = {
        "experiment": board.experiment,
        "split": board.split,
        "configurations": [_record(standing, board) for standing in board.standings],
        "notes": board.notes,
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _caption(board: Leaderboard) -> str:
    return (
        f"Accuracy on {board.split}: mean and standard deviation over n seeds; 95 %: Wilson limits of the mean over "
        f"the images, as of one network. Reference: {board.reference.name}, best on val. Difference: percentage points "
        "against it. Test images: paired over the images, about these trained networks (exact McNemar for one run "
        "each, else sign flips); seeds: Welch's t over the seeds. p Holm: adjusted over the table. Params, MACs: "
        "parameters and multiply-adds for one image."
    )


def _cells(standing: Standing, board: Leaderboard) -> tuple[str, ...]:
    accuracy, limits, difference = standing.accuracy, standing.limits, standing.difference
    spread = "" if math.isnan(accuracy.std) else f" ± {100 * accuracy.std:.2f}"
    is_reference = standing.group is board.reference
    dash = "reference" if is_reference else "-"
    return (
        standing.group.name,
        f"{accuracy.n}",
        f"{100 * accuracy.mean:.2f}{spread}",
        "-" if limits is None else f"[{100 * limits[0]:.2f}, {100 * limits[1]:.2f}]",
        dash if difference is None else signed(difference),
        "-" if standing.p_value is None else p_text(standing.p_value),
        "-" if standing.p_holm is None else p_text(standing.p_holm),
        "-" if is_reference else standing.test,
        rounded(standing.group.parameters),
        "-" if standing.group.multiply_adds is None else rounded(standing.group.multiply_adds),
    )


def _record(standing: Standing, board: Leaderboard) -> dict[str, Any]:
    accuracy, limits, difference = standing.accuracy, standing.limits, standing.difference
    return {
        "name": standing.group.name,
        "is_reference": standing.group is board.reference,
        "n": accuracy.n,
        "mean": accuracy.mean,
        "std": None if math.isnan(accuracy.std) else accuracy.std,
        "low": limits and limits[0],
        "high": limits and limits[1],
        "val_mean": standing.group.val_accuracy,
        "difference": difference and difference.mean,
        "difference_low": difference and difference.low,
        "difference_high": difference and difference.high,
        "p": standing.p_value,
        "p_holm": standing.p_holm,
        "test": standing.test,
        "parameters": standing.group.parameters,
        "multiply_adds": standing.group.multiply_adds,
        "runs": list(standing.group.run_ids),
    }
