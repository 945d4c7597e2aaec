"""The numbers of a run that has ended, as tables and in full, read from its store."""

import contextlib
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from lit_cnn.core.fonts import without_middle
from lit_cnn.core.intervals import Interval, wilson_interval
from lit_cnn.evaluation.members import member_names
from lit_cnn.evaluation.stored_folds import num_images
from lit_cnn.reports.result import with_limits
from lit_cnn.reports.wording import percent_words
from lit_cnn.tracking import Store, queries
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.training.fold_report import HEADER as OF_FOLDS
from lit_cnn.training.fold_report import rows_of_folds
from lit_cnn.training.fold_result import FoldResult

_OF_SPLITS = ("Split", "Images", "Right % [95 %]", "Loss")
_OF_CLASSES = ("Class", "Precision %", "Recall %", "F1 %", "Images")
_OF_CHILDREN = ("Run of", "Val %", "Test %", "Run")
_OF_TEXT = ("class", "name", "run")  # columns
_MOST_ROWS = 25  # of a table in a terminal, and columns
_LONGEST = 12  # letters of a column's title


@dataclass(frozen=True)
class Shown:
    """A table.

    Attributes:
        title: What is in it.
        header: Titles of its columns.
        rows: Cells.
        caption: What has to be known to read it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


class Numbers(NamedTuple):
    """What is known of a run: tables, the numbers in full, and further ones that have no row."""

    tables: tuple[Shown, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    more: Mapping[str, Any] = MappingProxyType({})


def of_network(run: RunInfo, files: Sequence[Path]) -> Numbers:
    """Returns what is right on val and test, and the scores of the classes as its page has them."""
    rows = []
    for split, begin in (("val", "best/val"), ("test", "test")):
        if (share := run.metrics.get(f"{begin}/acc")) is not None:
            num = num_images(run, split)
            limits = None if num is None else Interval(share, *wilson_interval(round(share * num), num))
            about = {"split": split, "images": num, **with_limits("acc", limits), "acc_mean": share}
            about["acc"] = about.pop("acc_mean")
            rows.append({**about, "loss": run.metrics.get(f"{begin}/loss")})
    tables = [Shown("Accuracy", _OF_SPLITS, [_split_cells(row) for row in rows])] if rows else []
    classes = [file for file in files if file.name == "classes.csv"]
    if classes and len(scores := _csv_rows(classes[0])) <= _MOST_ROWS:
        names = ("precision", "recall", "f1")
        cells = [
            (str(row["class"]), *(_per_cent(row[name]) for name in names), f"{row['support']:,}") for row in scores
        ]
        split = "test" if "test/acc" in run.metrics else "val"
        tables.append(Shown("Classes", _OF_CLASSES, cells, f"On the {split} images."))
    return Numbers(tuple(tables), tuple(rows))


def _split_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    num, loss = row["images"], row["loss"]
    right = f"{100 * row['acc']:.2f}"
    if num is not None:
        right = percent_words(Interval(row["acc"], row["acc_low"], row["acc_high"]), num).replace(" %", "")
    return row["split"], f"{num:,}" if num else "-", right, "-" if loss is None else f"{loss:.3f}"


def of_folds(run: RunInfo, result: FoldResult) -> Numbers:
    """Returns a row for each fold, and who is taken for whom out of fold."""
    rows = []
    for label, fold in result.folds.items():
        right = round(fold.share * fold.num_images)
        limits = Interval(fold.share, *wilson_interval(right, fold.num_images))
        of_fold = {"fold": label, "images": fold.num_images, "correct": right, **with_limits("acc", limits)}
        metrics = fold.run.metrics
        of_fold |= {"acc_nested": fold.nested, "test_acc": metrics.get("test/acc"), "run": fold.run.id}
        rows.append(of_fold)
    tables = [Shown("Folds", OF_FOLDS, rows_of_folds(result), "Each network has been trained on the other folds.")]
    found = result.out_of_fold
    assert found is not None
    num_classes = found.logits.shape[-1]
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (found.targets, found.probabilities.argmax(axis=1)), 1)
    names = _class_names(run, num_classes)
    if num_classes <= _MOST_ROWS:
        cells = [
            (name, *(f"{count:,}" if count else "·" for count in row)) for name, row in zip(names, counts, strict=True)
        ]
        header = ("True class \\ taken for", *(without_middle(name, _LONGEST) for name in names))
        tables.append(Shown("Out of fold", header, cells, "Images out of fold."))
    facts = result.facts
    more = {
        "oof_acc": facts.num_correct / facts.num_images,
        "oof_acc_nested": facts.nested,
        "oof_optimism": facts.optimism,
        "test_acc_of_mean": run.metrics.get("test/acc_of_mean"),
        "class_names": names,
        "confusion": counts.tolist(),
    }
    return Numbers(tuple(tables), tuple(rows), more)


def _class_names(run: RunInfo, num_classes: int) -> list[str]:
    """Returns the names in label order; numbers where there are so many that the run's tag has not all."""
    try:
        return list(map(str, json.loads(run.tags["class_names"])))
    except ValueError:
        return [str(label) for label in range(num_classes)]


def of_children(store: Store, run: RunInfo) -> Numbers:
    """Returns a row for each run below one."""
    below = queries.list_runs(
        store, run.experiment_name, f"tags.`mlflow.parentRunId` = '{run.run_id}'", "attributes.start_time ASC"
    )
    ended = [child for child in below if child.status == "FINISHED"]
    names = member_names(ended) if ended else []
    rows, cells = [], []
    for name, child in zip(names, ended, strict=True):
        shares = [child.metrics.get(metric) for metric in ("best/val/acc", "test/acc")]
        rows.append({"name": name, "val_acc": shares[0], "test_acc": shares[1], "run": child.run_id})
        cells.append((name, *("-" if share is None else f"{100 * share:.2f}" for share in shares), child.run_id[:8]))
    return Numbers((Shown("Runs", _OF_CHILDREN, cells),), tuple(rows))


def of_result(kind: str, files: Sequence[Path]) -> Numbers:
    """Returns the rows that are stored with a comparison or a search."""
    numbers = [file for file in files if file.suffix == ".csv" and file.with_suffix(".json") in files]
    if not numbers:
        return Numbers()
    rows = _csv_rows(numbers[0])
    more = {"stored": json.loads(numbers[0].with_suffix(".json").read_text(encoding="utf-8"))}
    if kind in ("ensemble", "compare") or not rows:  # what they say of themselves has their table
        return Numbers((), tuple(rows), more)
    cells = [[_cell(name, value) for name, value in row.items()] for row in rows[:_MOST_ROWS]]
    left = len(rows) - len(cells)
    caption = f"{left:,} more are in {numbers[0].name}." if left else ""
    return Numbers((Shown("Trials", list(rows[0]), cells, caption),), tuple(rows), more)


def _csv_rows(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8", newline="") as text:
        return [{name: _value(name, cell) for name, cell in row.items()} for row in csv.DictReader(text)]


def _value(column: str, text: str) -> Any:
    """Returns a cell of a file of ours as what it was: a number, a truth, or a text; None for nothing."""
    if column in _OF_TEXT:
        return text
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if str(kind(text)) == text:  # else it was no number: `1_0`
                return kind(text)
    return {"True": True, "False": False, "": None}.get(text, text)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "run":
        return str(value)[:8]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _per_cent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
