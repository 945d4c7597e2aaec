"""`make bench NAME=feature_cache`: ten epochs of head_only with cached features against the same without.

EfficientNet-Lite0 with ImageNet's weights (extra offline-weights) on Fashion-MNIST at 112 px, `lit-cnn fit` in one
process after a warm-up: seconds of `Trainer.fit`, checkpoints and logging included, so the start of the process, the
reading of the data and the test are left out. In turn: without a cache (live), at the machine's precision and in
float32; with an empty cache (first run); with a full one (second run); with a full one and L-BFGS. Processor seconds
are what is left to compare by where other work shares the cores.
"""

import argparse
import functools
import os
import shutil
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from lit_cnn.cli import main as lit_cnn
from lit_cnn.core.precision import default_precision
from lit_cnn.training.feature_store import store_folder
from tests.benchmarks.common import ROOT, in_own_process, interleave, report, save_result, workplace
from tests.runs import tracked_runs

Figures = dict[str, list[float]]

_SECONDS: list[tuple[float, float]] = []  # by the clock, and of the processor


def run_fit(options: argparse.Namespace, *more: str) -> float:
    """Returns the seconds that `Trainer.fit` takes."""
    arguments = [
        f"--config={ROOT / 'configs' / 'transfer' / 'head_only.yaml'}",
        "--data.dataset=fashion_mnist",
        "--data.image_size=112",
        "--data.in_channels=3",
        f"--data.limit_train={options.images}",
        f"--data.val_fraction={options.val_fraction}",
        "--data.num_workers=0",
        "--data.check=off",
        "--model.arch=tf_efficientnet_lite0",
        "--model.weights=offline",
        f"--trainer.max_epochs={options.epochs}",
        "--test_after_fit=false",
        *more,
    ]
    if lit_cnn(["fit", *arguments]) != 0:
        raise RuntimeError("lit-cnn fit failed")
    return _SECONDS[-1][0]


def clock_fit() -> None:
    """Makes every `Trainer.fit` of this process note its seconds."""
    fit = pl.Trainer.fit

    @functools.wraps(fit)  # the command line asks for its signature
    def clocked(self: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        started, used = time.perf_counter(), time.process_time()
        fit(self, *args, **kwargs)
        _SECONDS.append((time.perf_counter() - started, time.process_time() - used))

    pl.Trainer.fit = clocked  # type: ignore[method-assign]


def first_run(options: argparse.Namespace) -> float:
    """Returns the seconds of a run that has to compute its features."""
    shutil.rmtree(store_folder(), ignore_errors=True)
    return run_fit(options)


def measure(options: argparse.Namespace) -> tuple[Figures, Figures, Figures, float]:
    """Returns each side's seconds, processor seconds and best accuracy on val, round by round, and bytes per value."""
    clock_fit()
    sides = {
        "live": lambda: run_fit(options, "--model.feature_cache=off"),
        "first run": lambda: first_run(options),
        "second run": lambda: run_fit(options),
        "lbfgs": lambda: run_fit(options, "--model.head_solver=lbfgs"),
    }
    if default_precision("cpu") != "32-true":
        naive = ("--model.feature_cache=off", "--trainer.precision=32-true")
        sides["live, float32"] = lambda: run_fit(options, *naive)
    measured = interleave(sides, options.rounds)
    count, runs = len(sides), tracked_runs(Path.cwd(), "fit")
    processor = {name: [used for _, used in _SECONDS[count + place :: count]] for place, name in enumerate(sides)}
    accuracies = {
        name: [run.metrics["best/val/acc"] for run in runs[count + place :: count]] for place, name in enumerate(sides)
    }
    arrays = [np.load(file, mmap_mode="r") for file in store_folder().glob("*/features.npy")]
    return measured, processor, accuracies, sum(each.nbytes for each in arrays) / sum(each.size for each in arrays)


def main() -> None:
    """Prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--val_fraction", type=float, default=0.002, help="of Fashion-MNIST's 60,000 training images")
    options = parser.parse_args()
    with workplace():
        os.environ["XDG_CACHE_HOME"] = str(Path.cwd())
        # One process for all, begun with what is set for it.
        measured, processor, accuracies, bytes_per_value = in_own_process(measure, options)
    naive = "live, float32" if "live, float32" in measured else "live"
    ratios = []
    for unit, seconds in (("seconds", measured), ("processor seconds", processor)):
        for one, other, target in (
            ("live", "first run", 9.0),
            ("live", "second run", 100.0),
            (naive, "first run", 20.0),
            ("second run", "lbfgs", 10.0),
            ("live", "lbfgs", 10.0),
        ):
            title = f"{one} / {other}, {default_precision('cpu')}"
            ratios.append(report(title, {name: seconds[name] for name in (one, other)}, unit, (one, other), target))
    print(f"best/val/acc {accuracies}")
    print(f"{bytes_per_value:g} bytes a value; load {os.getloadavg()} on {os.cpu_count()} cores")
    save_result("feature_cache", {"ratios": ratios, "best_val_acc": accuracies, "bytes_per_value": bytes_per_value})


if __name__ == "__main__":
    main()
