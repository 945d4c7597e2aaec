"""The one exception for a mistake that the user can mend."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from typing import Any

from lit_cnn.core.credentials import without_credentials
from lit_cnn.core.file_names import in_sentence

Spelling = Callable[[str, str], str]
"""From an option's name in Python and its value as text, "" for none, to how it is written: `batch_size=0`."""

# A dot before it: MLflow's "metrics.`loss`".
_MENTIONED = re.compile(r"(?<![\w.])`(\w+(?:\.\w+)?)(?:=([^`]*))?`")


class UsageError(Exception):
    """A mistake of the user, in one line: the option, the value given, what is wrong with it, and the way out.

    In Python it reads ``batch_size=0: give a whole number of at least 1``. The command line alone knows how its options
    are spelt: it says ``--data.batch_size 0: …`` and ends with exit code 2. Other options that the text mentions stand
    in backticks, ``give `in_channels=3` too``, and are spelt in the same way.

    Args:
        option: Name of the argument in Python, `run` for a run; None if it is no argument's mistake.
        value: What was given; None leaves it out. Without an option, what the line begins with: a file, a run.
        reason: What is wrong, or at once what to give.
        remedy: What to give instead.
        message: The whole line; for PyTorch, which makes the exceptions of worker processes anew.

    Attributes:
        option: As given.
        value: As given.
        reason: As given.
        remedy: As given.
    """

    message = "a mistake of the user"  # PyTorch gives the keyword to exceptions that have such an attribute

    def __init__(
        self,
        option: str | None = None,
        value: Any = None,
        reason: str = "",
        remedy: str = "",
        *,
        message: str | None = None,
    ) -> None:
        reason = reason if message is None else message
        super().__init__(option, value, reason, remedy)
        self.option = option
        self.value = value
        self.reason = reason
        self.remedy = remedy

    def in_words(self, spelling: Spelling) -> str:
        """Returns the line with every option spelt in one way."""
        value = value_in_words(self.value)
        if self.option == "run":  # which functions and commands take in several ways
            beginning = f"run {value}"
        else:
            beginning = spelling(self.option, value) if self.option is not None else value
        text = "; ".join(part for part in (self.reason, self.remedy) if part)
        text = spelt(text, spelling)
        return in_sentence(without_credentials(f"{beginning}: {text}" if beginning else text))

    def __str__(self) -> str:
        return self.in_words(in_python)


def spelt(text: str, spelling: Spelling) -> str:
    """Returns a text with the options that stand in backticks in it spelt in one way."""
    return _MENTIONED.sub(lambda found: spelling(found[1], found[2] or ""), text)


def in_python(option: str, value: str) -> str:
    """Returns an option as Python spells it: `batch_size=0`."""
    return f"{option}={value}" if value else option


_PRINTED: ContextVar[Spelling] = ContextVar("how lines that are printed spell options", default=in_python)


@contextmanager
def spelling_printed(spelling: Spelling) -> Iterator[None]:
    """Makes `as_printed` spell options in this way: the command line's."""
    token = _PRINTED.set(spelling)
    try:
        yield
    finally:
        _PRINTED.reset(token)


def as_printed(text: str) -> str:
    """Returns a line to print with the options that stand in backticks in it spelt as where the user gives them."""
    return spelt(text, _PRINTED.get())


def at_least(least: int, **options: int | None) -> None:
    """Refuses whole numbers that are too small; None stands for a default.

    Args:
        least: The least value.
        **options: Name of an argument -> its value.

    Raises:
        UsageError: If one is less.
    """
    for option, value in options.items():
        if value is not None and (not isinstance(value, Integral) or value < least):
            raise UsageError(option, value, f"give a whole number of at least {least}")


def value_in_words(value: Any) -> str:
    """Returns a value as a person would type it: lists as words, a number without digits that say nothing."""
    if value is None:
        return ""
    if isinstance(value, list | tuple | set | frozenset):
        return " ".join(value_in_words(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
