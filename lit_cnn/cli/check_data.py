"""`lit-cnn check-data`, and the same look at the images before a run's first step."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lit_cnn.cli.output import console
from lit_cnn.cli.precheck import precheck
from lit_cnn.cli.shorthand import expand
from lit_cnn.cli.spelling import spelling_of
from lit_cnn.cli.verbs import CommandParser, check_output_file, write_picture
from lit_cnn.core.errors import spelt

if TYPE_CHECKING:
    from lit_cnn.data.audit import Report


def check_data(arguments: list[str]) -> int:
    """Looks through the images; takes the options of `lit-cnn fit` and four of its own."""
    parser = CommandParser(
        prog="lit-cnn check-data",
        description="Look through the images before training: files that are damaged or no images, copies within and "
        "across splits, the same image under two labels, classes and groups out of line. Takes FOLDER and the options "
        "of lit-cnn fit too: --config, --data.root and so on.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--level",
        choices=["quick", "full"],
        default="full",
        help="quick: headers, copies by their bytes, classes; full (default): every image decoded, near copies too",
    )
    parser.add_argument("--format", choices=["table", "json"], default="table", help="default: table")
    parser.add_argument("--output", type=Path, help="write the worst images as a picture (PNG) into this file")
    parser.add_argument(
        "--strict", action="store_true", help="exit code 1 if there are errors or warnings, not for notes"
    )
    options, of_fit = parser.parse_known_args(arguments)
    of_fit = expand("check-data", of_fit)
    precheck(of_fit, parser.options)
    if options.output is not None:
        check_output_file(options.output)
    from lit_cnn.cli.lit_cli import DataCLI
    from lit_cnn.data.audit import check_data as check
    from lit_cnn.data.contact_sheet import contact_sheet
    from lit_cnn.training.process import hush_lightning

    hush_lightning()

    report = check(DataCLI(of_fit).datamodule, options.level)
    if options.format == "json":
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        _print_table(report)
    if options.output is not None and (picture := contact_sheet(report)) is not None:
        write_picture(options.output, picture)
        print(f"{options.output}: {picture.shape[1]} x {picture.shape[0]} px", file=sys.stderr)
    return 1 if options.strict and report.of("error", "warning") else 0


def _print_table(report: "Report") -> None:
    from rich.markup import escape
    from rich.table import Table

    from lit_cnn.data.class_table import class_table

    terminal = console()
    terminal.print(report.summary, markup=False, highlight=False)
    if report.num_by_class:
        terminal.print(class_table(report.num_by_class), markup=False, highlight=False)
    if not report.findings:
        return
    table = Table()
    for column in ("", "what", "cases", "the first", "what it means"):
        table.add_column(column, overflow="fold", justify="right" if column == "cases" else "left")
    spelling = spelling_of("check-data")
    colors = {"error": "red", "warning": "yellow", "note": "default"}
    for finding in report.findings:
        first = "\n".join(" = ".join(case[:2]) for case in finding.cases[:3])
        more = f"\n… and {len(finding.cases) - 3:,} more" if len(finding.cases) > 3 else ""
        message = spelt(finding.message, spelling)
        cells = (finding.severity, finding.kind, f"{len(finding.cases):,}", first + more, message)
        table.add_row(*(escape(cell) for cell in cells), style=colors[finding.severity])
    terminal.print(table)
