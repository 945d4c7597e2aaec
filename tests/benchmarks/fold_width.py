"""`make bench NAME=fold_width`: how wide the interval of a difference is on a single val and on five folds, measured.

LeNet-5 on the digits with and without label smoothing, by `fit` and by `fit --folds 5`, on five splits; `compare
--split val` of the two, which has a tenth of the images that are not test, or all of them, out of fold. Widths are
those of the 95 % interval of the paired bootstrap, and Tango's, which does not vanish where the two never disagree, in
points; the ratio is taken split by split. Five minutes on two cores.

What a split came to is a line in `build/fold_width/parts.jsonl`; the same command goes on where it was stopped.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_cnn.core.environment import set_environment
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.evaluation.compare import compare
from lit_cnn.evaluation.pair import Pair
from lit_cnn.tracking.run import Run
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.fit import fit
from tests.benchmarks.common import ROOT, Parts, save_result

NUM_FOLDS = 5
SMOOTHING = 0.1
SIDES = {"single val": None, "out of fold": NUM_FOLDS}
_COLUMNS = ("split", "images", "difference", "width", "Tango's", "images", "difference", "width", "Tango's", "ratio")


def main() -> None:
    """Trains what is missing, prints a table, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fold_width")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    set_environment()
    parts = Parts(Path("parts.jsonl"))
    splits = []
    for split in range(options.splits):
        name = f"{options.epochs} epochs, split {split}"
        found = parts.found.get(name) or parts.add(name, split=split, **_of_split(split, options.epochs))
        splits.append(found)
        print(f"{name}: {found['seconds']:.0f} s, ratio {_ratio(found):.2f}", flush=True)
    _print(splits)
    save_result("fold_width", {"folds": NUM_FOLDS, "label_smoothing": SMOOTHING, "splits": splits})


def _of_split(split: int, epochs: int) -> dict[str, Any]:
    """Returns the difference of the two configurations on a split, by a single val and out of fold."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    for side, folds in SIDES.items():
        runs = [_train(split, smoothing, folds, epochs) for smoothing in (0.0, SMOOTHING)]
        pair = compare(runs, split="val")
        assert isinstance(pair, Pair)
        found[side] = {
            "images": len(pair.first.labels),
            "accuracies": [each.mean for each in pair.accuracies],
            "disagree": pair.mcnemar.only_a + pair.mcnemar.only_b,
            "difference": list(pair.difference),
            "tango": list(pair.limits),
        }
    return {"seconds": time.monotonic() - began, **found}


def _train(split: int, smoothing: float, folds: int | None, epochs: int) -> Run:
    data = ImageDataModule("digits", split_seed=split, num_workers=0)
    model = LitClassifier.for_data(data, arch="lenet5", lr=0.004, schedule="one_cycle", label_smoothing=smoothing)
    return fit(model, data, folds=folds, max_epochs=epochs, enable_progress_bar=False, report=False)


def _width(of: list[float]) -> float:
    _, low, high = of
    return 100 * (high - low)


def _ratio(found: dict[str, Any]) -> float:
    """Returns the width out of fold in terms of that of a single val, of Tango's intervals, which are never 0."""
    out_of_fold, single = (_width(found[side]["tango"]) for side in ("out of fold", "single val"))
    return out_of_fold / single


def _print(splits: list[dict[str, Any]]) -> None:
    table = Table(title="width of the 95 % interval of a difference, in points: a single val, then out of fold")
    for column in _COLUMNS:
        table.add_column(column)
    for found in splits:
        cells = []
        for side in SIDES:
            of = found[side]
            difference = f"{100 * of['difference'][0]:+.2f}"
            cells += [str(of["images"]), difference, f"{_width(of['difference']):.2f}", f"{_width(of['tango']):.2f}"]
        table.add_row(str(found["split"]), *cells, f"{_ratio(found):.2f}")
    Console(width=120).print(table)
    for name in ("difference", "tango"):
        single, out_of_fold = (statistics.median(_width(found[side][name]) for found in splits) for side in SIDES)
        print(f"median width, {name}: {single:.2f} points on a single val, {out_of_fold:.2f} out of fold")


if __name__ == "__main__":
    main()
