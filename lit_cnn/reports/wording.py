"""Numbers as people read them."""

import math

from lit_cnn.core.intervals import Interval


def p_text(p_value: float) -> str:
    """Writes a p-value with one or two significant digits; below 0.001 only that it is below."""
    if p_value < 0.001:
        return "<0.001"
    return f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def rounded(number: float) -> str:
    """Writes a count with three or four digits and its unit: 61.7 k, 1.82 G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.{2 if number < 10 * size else 1}f} {unit}"
    return f"{number:,.0f}"


def accuracy_text(value: Interval) -> str:
    """Writes an accuracy and its limits in per cent."""
    return f"{100 * value.mean:.2f} [{100 * value.low:.2f}, {100 * value.high:.2f}]"


def points(value: Interval) -> str:
    """Writes a difference of accuracies in points, with its limits."""
    return signed(value).replace(" ", " points ", 1)


def signed(value: Interval) -> str:
    """Writes a difference of accuracies with its limits, in points."""
    # z: -0.00 is written as +0.00.
    return f"{100 * value.mean:+z.2f} [{100 * value.low:+z.2f}, {100 * value.high:+z.2f}]"


def rounded_up(number: int) -> str:
    """Writes a number with its first two digits, rounded up."""
    step = 10 ** max(0, len(str(number)) - 2)
    return f"{math.ceil(number / step) * step:,}"
