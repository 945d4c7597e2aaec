"""What a comparison found, as one object: in a terminal, a notebook, a data frame, a spreadsheet and a report."""

import io
import json
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_cnn.core.csv_text import csv_text
from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import write_text_atomically
from lit_cnn.core.intervals import Interval
from lit_cnn.reports.page import answer, page

if TYPE_CHECKING:
    import pandas
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

_WIDTH = 150  # columns of the text; every table fits
_LEAST_ROOM = 16  # columns of a terminal for the names of a table's rows


class Result(ABC):
    """What a comparison found: `print` it, show it in a notebook, or take its numbers.

    `rich.print` and the command line fit its tables to the terminal.
    """

    @property
    @abstractmethod
    def title(self) -> str:
        """Title of its page."""

    @abstractmethod
    def answer(self) -> str:
        """Returns what one can act on, in a few sentences: what every form of the result opens on."""

    @abstractmethod
    def text(self) -> "Sequence[RenderableType]":
        """Returns what is printed below the answer, one below the other."""

    @abstractmethod
    def sections(self) -> list[str]:
        """Returns what a notebook and a page show below the answer, in HTML."""

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """Returns the rows: fractions, in full precision; None where there is no number."""

    @abstractmethod
    def to_json(self) -> str:
        """Returns every number, in fractions and full precision, and every sentence; null for no number."""

    @abstractmethod
    def write(self, folder: Path) -> list[Path]:
        """Writes the report's files and returns them, `report.html` last; see `report`."""

    def to_html(self, *appendix: str) -> str:
        """Returns a page that needs no other file: answer, tables and pictures; and what is appended, in HTML."""
        return page(self.title, answer(self.answer()), *self.sections(), *appendix)

    def to_csv(self) -> str:
        """Returns one line a row after a header; fractions, in full precision; empty where there is no number."""
        records = self.records()
        header = list(records[0])
        return csv_text([header, *([record[name] for name in header] for record in records)])

    def to_dataframe(self) -> "pandas.DataFrame":
        """Returns the rows as a data frame; see `records`."""
        import pandas

        return pandas.DataFrame(self.records())

    def report(self, output: Path | str) -> Path:
        """Writes a report: the numbers for programs, pictures, and a page with all of it that needs no other file.

        Args:
            output: The folder; made if it is not there.

        Returns:
            The page, `report.html`.

        Raises:
            UsageError: If the folder cannot be written.
        """
        return self.report_files(output)[-1]

    def report_files(self, output: Path | str) -> list[Path]:
        """Writes a report as `report` does, and returns all of its files."""
        try:
            return self.write(Path(output))
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise UsageError("output", output, reason, "give another folder") from error

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        yield Text(self.answer())
        yield ""
        yield from self.text()

    def __str__(self) -> str:
        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=_WIDTH, color_system=None, force_jupyter=False).print(self)
        return file.getvalue().rstrip("\n")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "\n".join([answer(self.answer()), *self.sections()])


def json_text(document: Mapping[str, Any]) -> str:
    """Returns a document as JSON for people and programs; raises ValueError for NaN, which JSON does not know."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def with_limits(name: str, value: Interval | None) -> dict[str, float | None]:
    """Returns an estimate and its limits under three names: `NAME`, `NAME_low`, `NAME_high`."""
    mean, low, high = value if value is not None else (None, None, None)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def write_texts(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Writes texts into files of these names and returns the files."""
    for name, text in texts.items():
        write_text_atomically(folder / name, text)
    return [folder / name for name in texts]


def text_grid(
    titles: Sequence[str], rows: Sequence[Sequence[str]], is_bold: Sequence[bool], caption: str
) -> "RenderableType":
    """Returns a table for a terminal; names in its first column are folded, numbers in the others kept whole.

    Where the terminal leaves no room for the names, limits stand below their numbers.
    """
    return _Grid(titles, rows, is_bold, caption)


@dataclass(frozen=True)
class _Grid:
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_bold: Sequence[bool]
    caption: str

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        is_narrow = self._room(options.max_width) < _LEAST_ROOM
        titles, rows = self._narrow() if is_narrow else (self.titles, self.rows)
        grid = RichTable(
            box=box.SIMPLE_HEAD,
            padding=(0, 0 if is_narrow else 1, 0, 0),
            pad_edge=False,
            caption=Text(self.caption),
            caption_justify="left",
        )
        for number, title in enumerate(titles):
            # Names give way; a number cut in two is no number.
            column: dict[str, Any] = {"overflow": "fold"} if number == 0 else {"justify": "right", "no_wrap": True}
            grid.add_column(title, **column)
        for cells, bold in zip(rows, self.is_bold, strict=True):
            grid.add_row(*map(Text, cells), style="bold" if bold else None)
        yield grid

    def _room(self, width: int) -> int:
        """Returns how many columns are left for the names, or more than enough if they need no more."""
        from rich.cells import cell_len

        names, *others = zip(self.titles, *self.rows, strict=True)
        taken = sum(2 + max(cell_len(line) for cell in column for line in cell.split("\n")) for column in others)
        room = width - 3 - taken
        return _LEAST_ROOM if room >= max(map(cell_len, names)) else room

    def _narrow(self) -> tuple[list[str], list[list[str]]]:
        """Returns titles and rows in which limits stand below their numbers, and titles on several lines."""
        rows = [[row[0], *(cell.replace(" [", "\n[") for cell in row[1:])] for row in self.rows]
        _, *columns = zip(*rows, strict=True)
        widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
        titles = []
        for title, width in zip(self.titles[1:], widths, strict=True):
            parts = title.replace(" [", "\n[").split("\n")
            lines = [textwrap.wrap(part, max(width, *map(len, part.split()))) for part in parts]
            titles.append("\n".join(line for of_part in lines for line in of_part))
        return [self.titles[0], *titles], rows


def text_notes(notes: Sequence[str]) -> "list[RenderableType]":
    """Returns sentences for a terminal, set in by two columns below a table."""
    from rich.padding import Padding
    from rich.text import Text

    return [Padding(Text(note), (0, 0, 0, 2)) for note in notes]


def markdown_grid(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table in GitHub's Markdown."""
    marks = ["---", *["---:"] * (len(titles) - 1)]
    cells_of_rows = [titles, marks, *([escaped_markdown(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(cells) + " |" for cells in cells_of_rows]


def escaped_markdown(text: str) -> str:
    """Returns a text of one line that GitHub's Markdown shows as it is, also in a table."""
    # A name such as a_b_c must not turn italic, nor one with a bar add a column.
    return "".join(f"\\{character}" if character in "\\`*_|<" else character for character in " ".join(text.split()))
