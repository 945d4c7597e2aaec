"""Rows as CSV that is read back as it was."""

import csv
from collections.abc import Iterable, Sequence
from typing import Any


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    r"""Returns rows as CSV with lines that end in `\n`; a cell with any kind of line break in it is quoted."""
    lines = _Lines()
    csv.writer(lines, lineterminator=_END).writerows(rows)
    return "".join(lines)


_END = "\r\n"  # csv quotes a cell with any of these letters in it


class _Lines(list[str]):
    def write(self, line: str) -> None:
        self.append(line.removesuffix(_END) + "\n")
