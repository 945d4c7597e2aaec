"""Progress of long steps: a bar in a terminal of any width, and nothing but whole lines elsewhere."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

_WIDEST = 80  # columns
_NARROWEST_BAR = 8
_REFRESH = 0.25  # seconds; so that a bar costs nothing per step


class Bar:
    """A bar on stderr that is gone when it is closed; nothing where stderr is no terminal.

    Args:
        total: How many there are; None where nobody knows.
        unit: What is counted, in the plural.
        initial: How many are done already.
        delay: Seconds before it is shown, so that what is over at once shows none.

    Attributes:
        is_shown: Whether there is a terminal.
    """

    def __init__(self, total: int | None, unit: str = "images", initial: int = 0, delay: float = 0.0) -> None:
        self.total, self.unit = total, unit
        self._drawn = time.monotonic() + delay - _REFRESH
        self._bar: Any = None
        self._initial = initial
        self.is_shown = sys.stderr.isatty()

    def show(self, title: str, done: int, more: Sequence[str] = (), now: bool = False) -> None:
        """Draws the bar, if it is time to.

        Args:
            title: What goes on.
            done: How many are done.
            more: What is told besides, the most important first: what finds no room is left out.
            now: Draw it in any case.
        """
        if not self.is_shown or (not now and time.monotonic() - self._drawn < _REFRESH):
            return
        self._drawn = time.monotonic()
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, initial=self._initial, file=sys.stderr, leave=False, miniters=0)
        text, width = bar_format(title, done, self.total, self.unit, more, columns() - 1)
        self._bar.bar_format, self._bar.ncols, self._bar.n = text, width, done
        self._bar.refresh()

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class ProgressLines:
    """How far a long step is, as a line on stderr every ten seconds; used like tqdm's bar.

    Args:
        total: How many images there are.
        title: What goes on.
    """

    every = 10.0  # seconds

    def __init__(self, total: int, title: str) -> None:
        self.total, self.title = total, title
        self.done, self._said = 0, time.monotonic()

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, number: int) -> None:
        """Counts images, and prints a line if it is time to."""
        self.done += number
        if time.monotonic() - self._said >= self.every and self.done < self.total:
            self._said = time.monotonic()
            print(f"{self.title}: {self.done:,} of {self.total:,} images", file=sys.stderr, flush=True)


def bar_format(title: str, done: int, total: int | None, unit: str, more: Sequence[str], width: int) -> tuple[str, int]:
    """Returns a bar as tqdm's `bar_format`, and its width.

    Args:
        title: What goes on.
        done: How many are done.
        total: How many there are; None where nobody knows.
        unit: What is counted, in the plural.
        more: What is told besides; what finds no room is left out, from the end.
        width: Columns that there are.
    """
    counts = f"{done:,} {unit}" if total is None else f"{done:,} of {total:,} {unit}"
    head = title if total is None else f"{title} {100 * min(done, total) // max(total, 1):3d}%"
    least = 0 if total is None else _NARROWEST_BAR + 1
    parts: list[str] = []
    for part in (counts, *more):
        if len("  ".join([head, *parts, part])) + least > width:
            break
        parts.append(part)
    text = "  ".join(["", *parts]).replace("{", "{{").replace("}", "}}")
    head = head[:width].replace("{", "{{").replace("}", "}}")
    has_bar = total is not None and len(head) + len(text) + least <= width
    return (f"{head} {{bar}}{text}" if has_bar else f"{head}{text}"), width


def columns() -> int:
    """Returns the columns of the terminal that stderr is, 80 at most; 80 where it does not say."""
    try:
        return min(os.get_terminal_size(sys.stderr.fileno()).columns or _WIDEST, _WIDEST)
    except (OSError, ValueError):
        return _WIDEST


def say(line: str) -> None:
    """Prints a line on stderr, above the bars that are there."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()
