"""A classifier's mistakes as files and as sections of a page."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_cnn.core.csv_text import csv_text
from lit_cnn.core.files import write_text_atomically
from lit_cnn.core.fonts import class_labels, note_on_labels
from lit_cnn.data.contact_sheet import captioned_images
from lit_cnn.data.preview import write_png
from lit_cnn.reports.figures import new_figure, save_png, shortened
from lit_cnn.reports.page import grid, heading, paragraph, picture
from lit_cnn.reports.predictions import (
    ClassScores,
    Predictions,
    confusion_matrix,
    most_confused,
    scores_of_classes,
    worst_mistakes,
)

Maps = Callable[[Predictions, np.ndarray], tuple[list[np.ndarray] | None, str]]
"""Takes predictions and places of images; returns a picture of each, or none, and a sentence about them."""

_MOST_COUNTS = 25  # classes; with more of them the numbers would not fit into their fields
MOST_CLASSES = 60
"""Of more classes a report shows some, says so, and has all of them in a file."""

_CONFUSED = 24  # classes in the matrix then
_OUTERMOST = 20  # classes at each end of the table


def write_mistakes(
    predictions: Predictions, folder: Path, maps: Maps | None = None, prefix: str = "", images: str = "test images"
) -> tuple[list[Path], str]:
    """Writes what is to be seen of a classifier's mistakes, and returns the files and the sections of a page.

    The files: `confusion.png`, `classes.csv`, and where there are mistakes `mistakes.png` and, where there can be,
    `activation.png`. Of more than 60 classes the picture and the page show those that are confused most, and those with
    the lowest and the highest scores; `confusion.csv` has every pair then.

    Args:
        predictions: What the classifier predicts.
        folder: Where the files go.
        maps: Draws class-activation maps of the worst mistakes; None: no maps.
        prefix: What the files' names begin with.
        images: What the images are.
    """
    confusion = folder / f"{prefix}confusion.png"
    plot_confusion(predictions, confusion)
    classes = folder / f"{prefix}classes.csv"
    write_text_atomically(classes, _classes_csv(predictions))
    files, is_cut = [confusion, classes], len(predictions.class_names) > MOST_CLASSES
    pairs = folder / f"{prefix}confusion.csv"
    if is_cut:
        write_text_atomically(pairs, _pairs_csv(predictions))
        files.append(pairs)
    worst = worst_mistakes(predictions)
    parts = [
        heading(f"Mistakes: {predictions.name}"),
        paragraph(
            f"{int((~predictions.correct).sum()):,} of {len(predictions.labels):,} {images} are classified wrongly."
        ),
        picture(confusion, "confusion matrix"),
        paragraph(f"{_cut_words(predictions)}. {pairs.name} has every pair of classes that is confused.")
        if is_cut
        else "",
        _legend_html(predictions, worst),
        _confused_html(predictions),
        _classes_html(predictions, classes.name),
    ]
    if len(worst):
        mistakes = folder / f"{prefix}mistakes.png"
        shown = [predictions.image_set.images[index] for index in predictions.indices[worst]]
        write_png(mistakes, captioned_images(shown, *_captions(predictions, worst)))
        files.append(mistakes)
        parts += [heading("Worst mistakes"), picture(mistakes, "the most confident wrong predictions")]
        parts.append(_list(predictions, worst))
    if len(worst) and maps is not None:
        activation = folder / f"{prefix}activation.png"
        sheet, said = maps(predictions, worst)
        if sheet is not None:
            write_png(activation, captioned_images(sheet, *_captions(predictions, worst)))
            files.append(activation)
            parts.append(picture(activation, "class-activation maps"))
        parts.append(paragraph(said))
    return files, "\n".join(parts)


def plot_confusion(predictions: Predictions, path: Path) -> None:
    """Draws the confusion matrix as a PNG: counts as numbers, and each row's shares as its colours.

    With more than 25 classes there are no numbers. Of more than 60 the 24 that are confused most are drawn, and a
    column for all others.

    Args:
        predictions: What the classifier predicts.
        path: The PNG file; replaced whole if it is there.
    """
    counts, shown = confusion_matrix(predictions), _shown_classes(predictions)
    is_cut = len(shown) < len(counts)
    if is_cut:
        others = np.delete(counts[shown], shown, axis=1).sum(axis=1, keepdims=True)
        counts = np.hstack([counts[np.ix_(shown, shown)], others])
    num_classes = len(shown)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 3.5 + 0.42 * counts.shape[1])
    figure, axes = new_figure(side + 0.8, side)
    # The squares are square: room that is left beside them is taken away, or the labels would stand outside.
    figure.set_layout_engine("compressed")
    axes.spines[["top", "right"]].set_visible(True)
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=axes, fraction=0.04, label="share of the true class's images")
    labels = class_labels(predictions.class_names)
    names = [labels[label] for label in shown]
    columns = [*names, "all others"] if is_cut else names
    axes.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 3 else 0, fontsize=8)
    axes.set_yticks(range(num_classes), names, fontsize=8)
    if num_classes <= _MOST_COUNTS:
        for true, predicted in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[true, predicted] > 0.5 else "#222222"
            text = f"{counts[true, predicted]:,}"
            axes.text(predicted, true, text, ha="center", va="center", fontsize=8, color=color)
    note = note_on_labels(predictions.class_names, labels)
    axes.set_xlabel("\n".join(["predicted class", *textwrap.wrap(note, int(11 * side), break_on_hyphens=False)]))
    axes.set_ylabel("true class")
    title = f"{shortened(predictions.name)}, n = {len(predictions.labels):,}"
    axes.set_title(f"{title}\n{_cut_words(predictions)}" if is_cut else title, fontsize=10)
    save_png(figure, path)


def _shown_classes(predictions: Predictions) -> np.ndarray:
    """Returns the labels of the classes that the matrix shows: all, or those of the most frequent confusions."""
    num_classes = len(predictions.class_names)
    if num_classes <= MOST_CLASSES:
        return np.arange(num_classes)
    counts = confusion_matrix(predictions)
    by_images = np.argsort(-counts.sum(axis=1), kind="stable")
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_CONFUSED]
    pairs = [pair for pair in zip(*np.unravel_index(order, counts.shape), strict=True) if counts[pair]]
    # Those that are taken for each other stand side by side; classes with many images where there are few mistakes.
    found = dict.fromkeys([*(int(label) for pair in pairs for label in pair), *map(int, by_images)])
    return np.array(list(found)[:_CONFUSED])


def _cut_words(predictions: Predictions) -> str:
    return f"The {_CONFUSED} of {len(predictions.class_names):,} classes that are confused most"


def _captions(predictions: Predictions, places: np.ndarray) -> tuple[list[list[str]], str]:
    """Returns the lines below wrong images, and a note on them.

    The lines: its file's name, what it is, what it was taken for and how surely.
    """
    names = class_labels(predictions.class_names)
    captions = []
    for place in places:
        path, _, _, sure = predictions.of(place)
        true_name, label = names[predictions.targets[place]], names[predictions.labels[place]]
        captions.append([path.rpartition("/")[2], f"is {true_name}", f"predicted {label}", f"{sure} %"])
    return captions, note_on_labels(predictions.class_names, names)


def _list(predictions: Predictions, worst: np.ndarray) -> str:
    rows = [predictions.of(place) for place in worst]
    return grid(("Image", "True class", "Predicted", "Probability %"), rows)


def _legend_html(predictions: Predictions, worst: np.ndarray) -> str:
    """Returns the names that the pictures have numbers for, which a browser's own fonts may have."""
    names = class_labels(predictions.class_names)
    note = note_on_labels(predictions.class_names, names)
    shown = {*_shown_classes(predictions), *predictions.targets[worst], *predictions.labels[worst]}
    pairs = [(names[label], predictions.class_names[label]) for label in sorted(shown)]
    rows = [pair for pair in pairs if pair[0] != pair[1] and pair[0].startswith("class ")]
    return f"{paragraph(note)}\n{grid(('In the pictures', 'Class'), rows)}" if note else ""


def _confused_html(predictions: Predictions) -> str:
    pairs = most_confused(predictions)
    if not pairs:
        return ""
    rows = [(pair.true_name, pair.predicted_name, f"{pair.num_images:,}", f"{100 * pair.share:.1f}") for pair in pairs]
    header = ("True class", "Taken for", "Images", "% of the true class")
    return heading("Most confused") + "\n" + grid(header, rows)


def _classes_html(predictions: Predictions, file: str) -> str:
    scores = scores_of_classes(predictions)
    header = ("Class", "Precision %", "Recall %", "F1 %", "Images")
    if len(scores) <= MOST_CLASSES:
        return heading("Classes") + "\n" + grid(header, _score_rows(scores))
    by_f1 = sorted((found for found in scores if not math.isnan(found.f1)), key=lambda found: found.f1)
    lowest = by_f1[:_OUTERMOST]
    highest = by_f1[len(lowest) :][-_OUTERMOST:][::-1]
    said = f"Of {len(scores):,} classes the {len(lowest)} with the lowest F1; {file} has all of them."
    if num_absent := len(scores) - len(by_f1):
        said += f" {num_absent:,} of them cannot be scored: no test image, and none is taken for one."
    parts = [heading("Classes"), paragraph(said), grid(header, _score_rows(lowest))]
    return "\n".join([*parts, paragraph(f"The {len(highest)} with the highest:"), grid(header, _score_rows(highest))])


def _score_rows(scores: Sequence[ClassScores]) -> list[tuple[str, ...]]:
    return [
        (found.name, *map(_per_cent, (found.precision, found.recall, found.f1)), f"{found.support:,}")
        for found in scores
    ]


def _pairs_csv(predictions: Predictions) -> str:
    pairs = most_confused(predictions, most=len(predictions.labels))
    rows: list[Sequence[Any]] = [("true class", "predicted class", "images", "share of the true class")]
    return csv_text([*rows, *pairs])


def _classes_csv(predictions: Predictions) -> str:
    rows: list[Sequence[Any]] = [("class", "precision", "recall", "f1", "support")]
    for found in scores_of_classes(predictions):
        scores: Sequence[float] = (found.precision, found.recall, found.f1)
        rows.append((found.name, *("" if math.isnan(score) else score for score in scores), found.support))
    return csv_text(rows)


def _per_cent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f}"
