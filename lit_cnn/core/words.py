"""Numbers and lists in sentences."""

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun: `1 image`, `0 images`, `2,000 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def and_more(number: int) -> str:
    """Returns what follows the first of several things in a sentence: ` (and 3 more)` of four, nothing of one."""
    return f" (and {number - 1:,} more)" if number > 1 else ""


def joined(things: Sequence[str]) -> str:
    """Returns things as a sentence lists them: `a`, `a and b`, `a, b and c`."""
    return " and ".join([*([", ".join(things[:-1])] if len(things) > 1 else []), *things[-1:]])
