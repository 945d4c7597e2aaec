"""What the benchmarks share: `lit-cnn fit` with a stopwatch and a terminal, rounds in turn, a table.

Every round of every side is a process of its own, as for a user. It is clocked after its tenth training batch: torch
imports parts of itself at the first optimizer step, in whichever of the sides did not need them before.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table

from lit_cnn.core.environment import set_environment

ROOT = Path(__file__).resolve().parents[2]
BATCH_SIZE = 128
WARM_UP = 10  # batches
_SECONDS = Path("seconds.txt")
Result = TypeVar("Result")


class Stopwatch(pl.Callback):
    """Writes the seconds of training, checkpoints and logging included, to `seconds.txt` in the working directory."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Starts the clock."""
        if trainer.global_step == WARM_UP:
            self._started = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops it."""
        _SECONDS.write_text(str(time.perf_counter() - self._started))


class LogFive(pl.Callback):
    """Logs five metrics at every step."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Logs them."""
        for logger in trainer.loggers:
            logger.log_metrics({f"bench/{name}": pl_module.last_loss for name in "abcde"}, step=trainer.global_step - 1)


def options_of(description: str) -> argparse.Namespace:
    """Parses the command line: how many rounds, and how long a run is."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=25600, help="training images of an epoch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--num_workers", type=int, default=2)
    return parser.parse_args()


@contextlib.contextmanager
def workplace() -> Iterator[None]:
    """Works in an empty folder, with what lit-cnn sets for its own process set for every side."""
    set_environment()
    os.environ["PYTHONPATH"] = str(ROOT)
    before = Path.cwd()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def run_fit(options: argparse.Namespace, *more: str) -> float:
    """Returns the images per second of `lit-cnn fit` on Fashion-MNIST, with its progress bar on a terminal."""
    arguments = [
        f"--config={ROOT / 'configs' / 'experiment' / 'lenet5_scratch_fashion_mnist.yaml'}",
        f"--data.limit_train={options.images}",
        f"--data.batch_size={BATCH_SIZE}",
        f"--data.num_workers={options.num_workers}",
        f"--trainer.max_epochs={options.epochs}",
        "--trainer.limit_val_batches=0",
        "--trainer.precision=32-true",  # as the plain loop computes
        "--test_after_fit=false",
        "--trainer.callbacks+=tests.benchmarks.common.Stopwatch",
        *more,
    ]
    _SECONDS.unlink(missing_ok=True)
    with _terminal() as screen:
        subprocess.run([sys.executable, "-m", "lit_cnn", "fit", *arguments], stderr=screen, stdout=screen, check=True)
    return images_clocked(options) / float(_SECONDS.read_text())


def images_clocked(options: argparse.Namespace) -> int:
    """Returns the number of images that a run trains on while the clock runs."""
    return options.images * options.epochs - WARM_UP * BATCH_SIZE


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Returns what a function returns in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@contextlib.contextmanager
def _terminal() -> Iterator[int]:
    """Yields a terminal that somebody reads, so that the progress bar is drawn as for a user."""
    reader, writer = os.openpty()

    def drain() -> None:
        with contextlib.suppress(OSError):
            while os.read(reader, 65536):
                pass

    threading.Thread(target=drain, daemon=True).start()
    try:
        yield writer
    finally:
        os.close(writer)


def interleave(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Runs the sides in turn, once as a warm-up and then `rounds` times; returns what each returned."""
    for run in sides.values():
        run()
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            measured[name].append(run())
    return measured


def report(title: str, measured: dict[str, list[float]], unit: str, ratio: tuple[str, str], target: float) -> None:
    """Prints a table and the figures as JSON; the ratio is taken round by round."""
    one, other = ratio
    ratios = [a / b for a, b in zip(measured[one], measured[other], strict=True)]
    machine = _print_table(title, {**measured, f"{one} / {other}": ratios})
    print(f"{unit}; {machine}; target: {one} / {other} of at least {target}")
    figures = {"ratios": ratios, "median_ratio": statistics.median(ratios), "target": target, "machine": machine}
    print(json.dumps({"title": title, "unit": unit, "measured": measured, **figures}))


def report_costs(title: str, measured: dict[str, list[float]], unit: str, target: float) -> None:
    """Prints a table and the figures as JSON, of what is to be `target` at most."""
    machine = _print_table(title, measured)
    print(f"{unit}; {machine}; target: at most {target}")
    print(json.dumps({"title": title, "unit": unit, "measured": measured, "target": target, "machine": machine}))


def _print_table(title: str, measured: dict[str, list[float]]) -> str:
    table = Table(title=title)
    for column in ("", "median", "least", "largest", "rounds"):
        table.add_column(column)
    for name, values in measured.items():
        table.add_row(name, *(f"{value:.3f}" for value in _spread(values)), str(len(values)))
    Console(width=100).print(table)
    return f"{torch.get_num_threads()} threads, {processor()}"


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def processor() -> str:
    """Returns what the processor calls itself."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
