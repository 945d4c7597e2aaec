"""Numbers as people read them."""

import math

from lit_cnn.core.intervals import Interval
from lit_cnn.core.words import counted


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


def percent(value: float, num_images: int) -> str:
    """Writes a share of so many images in per cent, with the digits that they bear: 90.9 of 22, 99.16 of 10,000."""
    return f"{100 * value:.{_digits(num_images)}f}"


def percent_words(value: Interval, num_images: int) -> str:
    """Writes an accuracy on so many images and its limits for a sentence: `90.9 % [72.2, 97.5]`."""
    mean, low, high = (percent(each, num_images) for each in value)
    return f"{mean} % [{low}, {high}]"


def points_words(value: Interval, num_images: int) -> str:
    """Writes a difference of accuracies on so many images for a sentence: `+1.4 points [-0.6, +3.3]`."""
    mean, low, high = (f"{100 * each:+z.{_digits(num_images)}f}" for each in value)
    return f"{mean} points [{low}, {high}]"


def missed_words(smallest: float | None, num_images: int, split: str = "test") -> str:
    """Says which differences so many images would miss, of `smallest_difference`."""
    images = counted(num_images, f"{split} image")
    if smallest is None:
        return f"{images} {'is' if num_images == 1 else 'are'} too few to show any difference"
    return f"with {images} a difference under {100 * smallest:.2g} points is easily missed"


def others_words(num_worse: int, num_others: int, missed: str = "") -> str:
    """Says how the others stand to what is taken, where none is better.

    Args:
        num_worse: How many of them are measurably worse.
        num_others: All of them, at least 1.
        missed: What these images would miss, of `missed_words`; nothing where images were not compared.
    """
    if num_worse == num_others:
        return "Everything else here is measurably worse." if num_others > 1 else "The other one is measurably worse."
    verb = "is" if num_worse == 1 else "are"
    worse = f" and {num_worse:,} of the {num_others:,} others {verb} measurably worse" if num_worse else ""
    return f"Nothing else here is measurably better{worse}{f'; {missed}' if missed else ''}."


def points(value: Interval) -> str:
    """Writes a difference of accuracies in points, with its limits."""
    return signed(value).replace(" ", " points ", 1)


def signed(value: Interval) -> str:
    """Writes a difference of accuracies with its limits, in points."""
    # z: -0.00 is written as +0.00.
    return f"{100 * value.mean:+z.2f} [{100 * value.low:+z.2f}, {100 * value.high:+z.2f}]"


def _digits(num_images: int) -> int:
    return 1 if num_images <= 1000 else 2


def rounded_up(number: int) -> str:
    """Writes a number with its first two digits, rounded up."""
    step = 10 ** max(0, len(str(number)) - 2)
    return f"{math.ceil(number / step) * step:,}"
