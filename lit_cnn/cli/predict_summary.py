"""What `lit-cnn predict` prints at its end: few images one by one, and how many of each class."""

from collections.abc import Sequence
from pathlib import Path

from lit_cnn.core.words import counted
from lit_cnn.data.class_table import printable
from lit_cnn.evaluation.predictor import Prediction
from lit_cnn.evaluation.tally import ClassTally, Tally

FEW = 10
"""As many images are said one by one."""
_MOST_CLASSES = 20


def summary_of(
    tally: Tally, class_names: Sequence[str], few: Sequence[tuple[str, Prediction, str]], output: Path
) -> str:
    """Returns the lines that say what predictions came to.

    Args:
        tally: They were counted in it.
        class_names: All that the network knows.
        few: Name, prediction and error of each image, if they are few.
        output: The file that has all.
    """
    whole = tally.num_classified + tally.num_bad
    begin = f"{tally.num_classified:,} of {counted(whole, 'image')}" if tally.num_bad else counted(whole, "image")
    lines = [f"{begin} classified: {output}", *(_line(tally, *each) for each in few)]
    return "\n".join([*lines, count_table(tally, class_names)] if whole > 1 else lines)


def count_table(tally: Tally, class_names: Sequence[str]) -> str:
    """Returns a line for each class, that with the most images first; of more than 20, for 20 that have images.

    Args:
        tally: The predictions.
        class_names: All that the network knows.
    """
    ranked = tally.ranked()
    named = [(name, each) for name, each in ranked if name is not None]
    rows = [("class", "images", "mean probability")]
    rows += [_row(printable(name), each) for name, each in named[:_MOST_CLASSES]]
    if len(class_names) <= _MOST_CLASSES:
        rows += [(printable(name), "0", "") for name in class_names if name not in tally.classes]
    if rest := named[_MOST_CLASSES:]:
        images = sum(each.count for _, each in rest)
        rows.append((f"{len(rest):,} more", f"{images:,}", ""))
    rows += [
        _row(f"uncertain, below {100 * (tally.min_confidence or 0):g} %", each) for name, each in ranked if name is None
    ]
    if tally.num_bad:
        rows.append(("not classified", f"{tally.num_bad:,}", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (
        f"{name.ljust(widths[0])}  {count.rjust(widths[1])}  {sure.rjust(widths[2])}" for name, count, sure in rows
    )
    return "\n".join(line.rstrip() for line in aligned)


def _row(name: str, tally: ClassTally) -> tuple[str, str, str]:
    return name, f"{tally.count:,}", f"{100 * tally.mean:.1f} %"


def _line(tally: Tally, name: str, prediction: Prediction, error: str) -> str:
    if error:
        return f"{printable(name)}: not classified, {error}"
    label = f"{printable(prediction.label)} {100 * prediction.probability:.1f} %"
    return f"{printable(name)}: {label if tally.is_sure(prediction) else f'uncertain, {label}'}"
