"""`make bench NAME=fast_net`: the fast net against LeNet-5 with Adam on Fashion-MNIST: accuracy, seconds, time to 88 %.

The fast net twice: as long as its configuration says, and for 5 epochs. All in the precision that `lit-cnn fit`
takes on this machine, seed by seed in turn, after a warm-up. The clock runs from the first step to the end of training,
validation and checkpoints included; the start of the process and the test are left out. `time to 88 %` ends with the
first validation, one an epoch, that finds 88 % or more.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.common import ROOT, processor, save_result, workplace

EXPERIMENTS = {
    "fast net": ("fast_fashion_mnist",),
    "fast net, 5 epochs": ("fast_fashion_mnist", "--trainer.max_epochs=5"),
    "LeNet-5 + Adam": ("lenet5_scratch_fashion_mnist",),
}
VIEWS = (1, 2)  # the image, and its mirror image besides
ENOUGH = 0.88
_CURVE = Path("curve.json")


class Clock(pl.Callback):
    """Writes `curve.json`: the seconds of training, and (seconds, val/acc) of each validation."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()
        self._curve: list[tuple[float, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads it."""
        if trainer.state.fn == "fit":
            self._curve.append((time.perf_counter() - self._started, float(trainer.callback_metrics["val/acc"])))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops it."""
        seconds = time.perf_counter() - self._started
        _CURVE.write_text(json.dumps({"seconds": seconds, "curve": self._curve}))


def lit_cnn(*arguments: str) -> str:
    """Runs lit-cnn and returns what it prints."""
    command = [sys.executable, "-m", "lit_cnn", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def train(side: str, seed: int, *more: str) -> dict[str, Any]:
    """Trains one run; returns its MLflow id, its seconds, its curve and the seconds to `ENOUGH`, None if never."""
    experiment, *options = EXPERIMENTS[side]
    said = lit_cnn(
        "fit",
        f"--config={ROOT / 'configs' / 'experiment' / experiment}.yaml",
        f"--seed_everything={seed}",
        "--trainer.callbacks+=tests.benchmarks.fast_net.Clock",
        *options,
        *more,
    )
    (run_id,) = re.findall(r"run ([0-9a-f]{32})", said)
    clocked = json.loads(_CURVE.read_text())
    to_enough = next((seconds for seconds, accuracy in clocked["curve"] if accuracy >= ENOUGH), None)
    return {"seed": seed, "run_id": run_id, **clocked, "seconds_to_88": to_enough}


def test_accuracies(side: str, runs: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Returns n, mean and standard deviation of the test accuracy, in fractions, for each number of views."""
    run_ids = [run["run_id"] for run in runs]
    lit_cnn("ensemble", "--runs", *run_ids, "--views", *map(str, VIEWS), "--output", side)
    table = json.loads(Path(side, "table.json").read_text())
    return {summary["num_views"]: summary for summary in table["members"]}


def print_table(measured: dict[str, list[dict[str, Any]]], accuracies: dict[str, dict[int, dict[str, Any]]]) -> None:
    """Prints a line for each side: mean ± std of the test accuracy, median and range of the seconds."""
    table = Table(title=__doc__.splitlines()[0].partition(": ")[2])
    for column in ("", "test %", "test %, with mirror image", "seconds", "seconds to 88 %", "seeds"):
        table.add_column(column)
    for side, runs in measured.items():
        to_enough = [run["seconds_to_88"] for run in runs if run["seconds_to_88"] is not None]
        table.add_row(
            side,
            *(_percent(accuracies[side][views]) for views in VIEWS),
            _spread([run["seconds"] for run in runs]),
            _spread(to_enough) if len(to_enough) == len(runs) else f"reached by {len(to_enough)}",
            str(len(runs)),
        )
    Console(width=120).print(table)


def _percent(summary: dict[str, Any]) -> str:
    spread = "" if summary["std"] is None else f" ± {100 * summary['std']:.2f}"  # none of a single seed
    return f"{100 * summary['mean']:.2f}{spread}"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


def main() -> None:
    """Prints the table and the ratio of the times; writes all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many; default: 5")
    seeds = parser.parse_args().seeds
    measured: dict[str, list[dict[str, Any]]] = {side: [] for side in EXPERIMENTS}
    with workplace():
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path.cwd() / 'mlruns' / 'mlflow.db'}"
        for side in measured:
            train(side, 0, "--trainer.max_epochs=1", "--trainer.limit_train_batches=10", "--experiment=warm_up")
        for seed in range(seeds):
            for side, runs in measured.items():
                runs.append(train(side, seed))
                run = runs[-1]
                print(f"{side}, seed {seed}: {run['seconds']:.1f} s, val {run['curve'][-1][1]:.4f}", file=sys.stderr)
        accuracies = {side: test_accuracies(side, runs) for side, runs in measured.items()}
    print_table(measured, accuracies)
    machine = f"{torch.get_num_threads()} threads, {processor()}"
    ratios = {}
    *fast, lenet = measured
    for side in fast:
        pairs = [[run["seconds_to_88"] for run in pair] for pair in zip(measured[side], measured[lenet], strict=True)]
        ratios[side] = [slow / quick for quick, slow in pairs if quick is not None and slow is not None]
        if ratios[side]:
            reached = f"{_spread(ratios[side])}, {len(ratios[side])} of {seeds} seeds"
            print(f"time to 88 % on val, {lenet} / {side}: {reached}; {machine}")
    save_result("fast_net", {"measured": measured, "test": accuracies, "ratios_to_88": ratios})


if __name__ == "__main__":
    main()
