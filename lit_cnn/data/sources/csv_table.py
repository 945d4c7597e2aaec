"""CSV of whatever program: commas, semicolons or tabs; UTF-8, UTF-16 or Windows-1252; line breaks in quoted cells."""

import codecs
import csv
import io
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_cnn.core.errors import UsageError

WINDOWS = "cp1252"
"""The encoding in which spreadsheets of Western languages save CSV that is not UTF-8."""

_DELIMITERS = ",;\t|"
_HEAD = 1 << 20  # bytes that hold the header
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_WESTERN = "\x00-\x7fÀ-ÖØ-öø-ÿŠšŽžŒœŸ\u2019°µ"  # letters, and what stands in names


@dataclass(frozen=True)
class CsvTable:
    """How a CSV file is to be read, as its first line shows.

    Attributes:
        file: The file.
        columns: The cells of the first line, without blanks around them.
        delimiter: What is between cells.
        encoding: `utf-8`, `utf-16`, `utf-16-le` or `utf-16-be`; see `texts` for UTF-8 that is none.
        skipped: Lines before the first, such as Excel's `sep=;`.
    """

    file: Path
    columns: tuple[str, ...]
    delimiter: str
    encoding: str
    skipped: int

    def texts(self, columns: Mapping[str, str]) -> dict[str, list[str]]:
        """Returns columns as text, with the blanks around a cell; an empty cell is the empty text.

        Bytes that are not UTF-8 are as Python has them in names of files: see `lit_cnn.core.file_names`.

        Args:
            columns: What a column is for -> its name.

        Raises:
            UsageError: If a line has more or fewer cells than the first, or the file is no CSV.
        """
        import pyarrow as pa

        places = {role: f"f{self.columns.index(name)}" for role, name in columns.items()}
        try:
            # As bytes, a line that is not UTF-8 is read too; as text, all that is UTF-8 is read at half the cost.
            try:
                table = self._read(list(places.values()), pa.string())
            except pa.ArrowInvalid as error:
                if "UTF8" not in str(error):
                    raise
                table = self._read(list(places.values()), pa.binary())
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise UsageError("root", self.file, *_in_words(error)) from error
        return {role: [_text(cell) for cell in table[place].to_pylist()[1:]] for role, place in places.items()}

    def _read(self, places: list[str], kind: Any) -> Any:
        """Returns some of the columns, f0, f1, …, the first line among their cells."""
        from pyarrow import csv as arrow

        return arrow.read_csv(
            self.file,
            # Rows have numbers in one thread only; it is as fast.
            read_options=arrow.ReadOptions(
                autogenerate_column_names=True,
                encoding="utf8" if self.encoding == "utf-8" else self.encoding,
                block_size=_HEAD * 16,  # the longest row
                skip_rows=self.skipped,
                use_threads=False,
            ),
            parse_options=arrow.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
            # All as text: "01" is no 1, and a class may be called NA.
            convert_options=arrow.ConvertOptions(include_columns=places, column_types=dict.fromkeys(places, kind)),
        )


def csv_table(file: Path, known: Collection[str]) -> CsvTable:
    """Returns how a CSV file is to be read.

    Args:
        file: The file.
        known: What columns may be called: of the possible delimiters, it is the one that gives most of these, and then
            the one that gives most columns.

    Raises:
        UsageError: If it cannot be read, or is empty.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD)
    except OSError as error:
        raise UsageError("root", file, f"cannot be read ({error.strerror})", "make it readable") from error
    encoding = _encoding(head)
    text = head.decode(encoding, "replace").lstrip("\ufeff")
    lines = text.splitlines()
    excel = re.fullmatch(r'"?sep=([,;\t|])"?', lines[0]) if lines else None
    if excel is not None:
        text = "\n".join(lines[1:])
    readings = [(delimiter, _first_line(text, delimiter)) for delimiter in ([excel[1]] if excel else _DELIMITERS)]
    delimiter, columns = max(readings, key=lambda reading: (len(set(reading[1]) & set(known)), len(reading[1])))
    if not any(columns):
        raise UsageError("root", file, "cannot be read as CSV (it is empty)", "list the images, with a first line")
    return CsvTable(file, columns, delimiter, encoding, 1 if excel else 0)


def windows_text(cell: str) -> str | None:
    """Returns a cell with bytes that are not UTF-8 as Windows-1252; None if it cannot be, or does not read like it."""
    try:
        text = cell.encode("utf-8", "surrogateescape").decode(WINDOWS)
    except UnicodeError:
        return None
    # Western words have an accent here and there; Greek, Cyrillic or Japanese becomes nothing but accents, or signs.
    return None if re.search(r"[^\x00-\x7f]{3}", text) or re.search(f"[^{_WESTERN}]", text) else text


def _in_words(error: Exception) -> tuple[str, str]:
    """Returns what is wrong, and the way out; pyarrow counts the first line as a row."""
    ragged = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)(?:: (.*))?", str(error), re.DOTALL)
    if ragged is None:
        return f"cannot be read as CSV ({error})", "save it as UTF-8, one line for each image"
    row, expected, found, text = ragged.groups()
    shown = " ".join((text or "").split())[:60]
    reason = f"row {int(row) - 1} has {found} cells where the first line has {expected}: {shown}"
    return reason, 'put a cell with a comma or a quote in it into quotes: "a, b"'


def _text(cell: str | bytes) -> str:
    return cell if isinstance(cell, str) else cell.decode("utf-8", "surrogateescape")


def _encoding(head: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    if b"\0" in head[:2]:  # half of a letter of the header
        return "utf-16-be" if head[:1] == b"\0" else "utf-16-le"
    return "utf-8"


def _first_line(text: str, delimiter: str) -> tuple[str, ...]:
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return tuple(cell.strip() for cell in next((row for row in rows if row), []))
    except csv.Error:  # a cell that does not end
        return ()
