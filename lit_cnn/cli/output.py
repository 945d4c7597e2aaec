"""How commands write to the terminal: the width of tables, and the line about a run that is not all in MLflow."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lit_cnn.core.environment import says_not_first

if TYPE_CHECKING:
    from rich.console import Console

    from lit_cnn.reports.result import Result

FILE_WIDTH = 150
"""Columns of a table in a file or a pipe, where there is no terminal to ask: every table of ours fits."""


def console() -> "Console":
    """Returns the console that tables are printed on: as wide as the terminal, else `FILE_WIDTH`."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH, force_jupyter=False)


def tell_starting(line: str) -> None:
    """Says what is about to start, to who waits at a terminal: importing takes seconds."""
    if sys.stderr.isatty() and not says_not_first():
        print(line, file=sys.stderr, flush=True)


def tell_replaced(folder: Path, file: str, is_resumed: bool) -> None:
    """Says before anything is done that the result of another command will be replaced; its run keeps its own.

    Args:
        folder: For the result.
        file: That a result has.
        is_resumed: Whether what is there is that of the command itself.
    """
    if not is_resumed and (folder / file).exists():
        print(f"{folder} has an earlier result, which will be replaced; its run keeps it", file=sys.stderr)


def warn_not_sent() -> None:
    """Says on stderr that a run is not all in MLflow yet, and which command sends the rest."""
    print("not all of this run could be sent to MLflow; it is kept, lit-cnn sync sends it", file=sys.stderr)


def print_result(result: "Result", format: str) -> None:
    """Prints what a comparison found: `table` for people, the answer first; `csv` or `json` for programs."""
    if format == "table":
        console().print(result)
    else:
        print(result.to_json() if format == "json" else result.to_csv(), end="")


def from_here(path: Path | str) -> str:
    """Returns a path as it is written from the working directory, where it lies below that."""
    return str(Path(path).relative_to(Path.cwd()) if Path(path).is_relative_to(Path.cwd()) else path)
