"""`make bench NAME=fold_overhead`: what a run of folds takes besides the runs of its folds, the report included.

LeNet-5 on the digits, five folds; seconds from the first fold's start to the end, less those of the folds.
"""

import argparse
import time

from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.fit import fit
from tests.benchmarks.common import report_costs, save_result, workplace


def main() -> None:
    """Prints the seconds of each round and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    measured: dict[str, list[float]] = {"five folds": [], "besides": []}
    with workplace():
        for _ in range(options.rounds):
            data = ImageDataModule("digits", num_workers=0)
            model = LitClassifier.for_data(data, arch="lenet5")
            started = time.perf_counter()
            run = fit(model, data, folds=5, max_epochs=options.epochs, enable_progress_bar=False)
            whole = time.perf_counter() - started
            of_folds = sum(child.seconds or 0.0 for child in run.children)
            measured["five folds"].append(of_folds)
            measured["besides"].append(whole - of_folds)
    save_result("fold_overhead", report_costs("A run of five folds", measured, "seconds", target=2.0))


if __name__ == "__main__":
    main()
