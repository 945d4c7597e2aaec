"""The report of a run of folds: a page that needs no other file, and the pictures and tables that are on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lit_cnn.core.csv_text import csv_text
from lit_cnn.core.files import write_text_atomically
from lit_cnn.data.image_set import ImageSet
from lit_cnn.reports.curves import plot_folds
from lit_cnn.reports.mistakes import write_mistakes
from lit_cnn.reports.page import answer, grid, heading, paragraph, picture
from lit_cnn.reports.predictions import Predictions
from lit_cnn.reports.run_words import share
from lit_cnn.training.fold_result import FoldResult
from lit_cnn.training.out_of_fold import OutOfFold
from lit_cnn.training.run_report import Part, Reduced, configuration, write_page


def write_fold_report(
    result: FoldResult,
    said: Sequence[str],
    title: str,
    label: str,
    options: Mapping[str, str],
    images: ImageSet,
    folder: Path,
) -> tuple[list[Path], list[str]]:
    """Writes the report of a run of folds that has come to its end.

    Args:
        result: What they came to.
        said: The sentences that the page opens on.
        title: Of the page.
        label: What it is, in a line.
        options: Of the runs, as `chosen_options` gives them.
        images: The images.
        folder: Where the files go; made if it is not there.

    Returns:
        The files, `report.html` last, and what could not be made, with the reason.

    Raises:
        OSError: If the page cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections: list[tuple[str, Callable[[], Part]]] = [("the folds", lambda: _folds(result, folder))]
    if result.out_of_fold is not None:
        sections.append(("the mistakes", lambda: _mistakes(result, images, folder)))
    of_all = {name: value for name, value in options.items() if name != "data.fold"}
    sections.append(("the configuration", lambda: configuration(of_all)))
    return write_page(title, [answer(" ".join(said)), paragraph(label)], sections, folder)


HEADER = ("Fold", "Images", "Right", "Out of fold %", "Epoch chosen on the others %", "Best epoch", "Test %", "Run")
"""Of the table of folds."""


def rows_of_folds(result: FoldResult) -> list[tuple[str, ...]]:
    """Returns the cells of the table of folds."""
    rows: list[tuple[str, ...]] = []
    for label, fold in result.folds.items():
        metrics, right = fold.run.metrics, round(fold.share * fold.num_images)
        nested = "-" if fold.nested is None else f"{100 * fold.nested:.1f}"
        test = f"{100 * metrics['test/acc']:.1f}" if "test/acc" in metrics else "-"
        of_fold = share(right, fold.num_images).replace(" %", "", 1)
        epoch = f"{int(metrics['best/epoch']) + 1}" if "best/epoch" in metrics else "-"
        rows.append((label, f"{fold.num_images:,}", f"{right:,}", of_fold, nested, epoch, test, fold.run.id[:8]))
    return rows


def _folds(result: FoldResult, folder: Path) -> Part:
    rows = rows_of_folds(result)
    file, folds = folder / "folds.csv", folder / "folds.png"
    write_text_atomically(file, csv_text([HEADER, *rows]))
    parts = [heading("Folds"), grid(HEADER, rows)]
    parts.append(paragraph("Each network has been trained on the other folds; none has seen test."))
    curves = {label: fold.curve for label, fold in result.folds.items()}
    if not all(curves.values()):
        return [file], "\n".join(parts)
    best = {name: int(each.run.metrics["best/epoch"]) for name, each in result.folds.items()}
    plot_folds(curves, best, result.facts.nested, folds)
    return [file, folds], "\n".join([*parts, picture(folds, "accuracy of each fold by epoch")])


def _mistakes(result: FoldResult, images: ImageSet, folder: Path) -> Part:
    assert result.out_of_fold is not None
    predictions = predictions_of(result.out_of_fold, images)
    return write_mistakes(predictions, folder, images="images, each by networks that were not trained on it,")


def predictions_of(found: OutOfFold, images: ImageSet) -> Predictions:
    """Returns what is predicted out of fold; its images are read small."""
    labels, places = found.probabilities.argmax(axis=1), found.places_in(images)
    confidence = found.probabilities.max(axis=1)
    return Predictions("out of fold", replace(images, images=Reduced(images.images)), places, labels, confidence)
