"""Numbers and lists in sentences."""

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun: `1 image`, `0 images`, `2,000 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def and_more(number: int) -> str:
    """Returns what follows the first of several things in a sentence: ` (and 3 more)` of four, nothing of one."""
    return f" (and {number - 1:,} more)" if number > 1 else ""


def duration(seconds: float) -> str:
    """Returns a time for reading: `0.4 s`, `42 s`, `3 min 20 s`, `25 min`, `2 h 10 min`.

    Args:
        seconds: At least 0; an int has no decimal.
    """
    if seconds < 9.95 and not isinstance(seconds, int):
        return f"{seconds:.1f} s"
    if (whole := round(seconds)) < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if whole < 600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def about(seconds: float) -> str:
    """Returns a time that is only estimated: `40 s`, `3 min`, `2 h 10 min`."""
    if seconds < 57.5:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return duration(60 * round(seconds / 60) if seconds < 3600 else 600 * round(seconds / 600))


def joined(things: Sequence[str]) -> str:
    """Returns things as a sentence lists them: `a`, `a and b`, `a, b and c`."""
    return " and ".join([*([", ".join(things[:-1])] if len(things) > 1 else []), *things[-1:]])
