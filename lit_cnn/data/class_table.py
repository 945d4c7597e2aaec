"""How many images of each class each split has, as numbers and as a small table."""

from collections.abc import Mapping

import numpy as np

from lit_cnn.data.image_set import ImageSet

_MOST_CLASSES = 20  # rows of a table that has them all
_SMALLEST = 5  # rows of one that has not


def count_classes(image_set: ImageSet, splits: Mapping[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """Returns class -> split -> number of images, in label order.

    Args:
        image_set: The images.
        splits: `(n,)` indices each.
    """
    num_classes = len(image_set.class_names)
    counts = {name: np.bincount(image_set.labels[members], minlength=num_classes) for name, members in splits.items()}
    return {
        name: {split: int(count[label]) for split, count in counts.items()}
        for label, name in enumerate(image_set.class_names)
    }


def class_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Returns a table of classes and splits as text, a line each; of more than 20 classes, the 5 with fewest images.

    Args:
        counts: As `count_classes` returns them; at least one class.
    """
    splits = list(next(iter(counts.values())))
    shown = list(counts)
    if len(counts) > _MOST_CLASSES:
        shown = sorted(counts, key=lambda name: sum(counts[name].values()))[:_SMALLEST]
    rows = [("class", *splits)]
    rows += [(printable(name), *(f"{counts[name][split]:,}" for split in splits)) for name in shown]
    if len(shown) < len(counts):
        rows.append((f"and {len(counts) - len(shown):,} with more", *("" for _ in splits)))
    rows.append(("all", *(f"{sum(each[split] for each in counts.values()):,}" for split in splits)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(_aligned, row, widths, [True, *(False for _ in splits)])) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _aligned(cell: str, width: int, is_name: bool) -> str:
    return cell.ljust(width) if is_name else cell.rjust(width)


def printable(name: str) -> str:
    """Returns a name with what does not show, such as a zero-width space or a line break, as an escape."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)
