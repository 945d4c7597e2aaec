"""What the benchmarks share: a stopwatch in the Trainer, a terminal for the progress bar, rounds in turn, a table."""

import contextlib
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table


class Stopwatch(pl.Callback):
    """Times training: from the first batch to the end of the last epoch, checkpoints and logging included."""

    seconds: float = 0.0
    _started: float = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock."""
        Stopwatch._started = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops it."""
        Stopwatch.seconds = time.perf_counter() - Stopwatch._started


class LogFive(pl.Callback):
    """Logs five metrics at every step."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """Logs them."""
        for logger in trainer.loggers:
            logger.log_metrics({f"bench/{name}": pl_module.last_loss for name in "abcde"}, step=trainer.global_step - 1)


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Makes standard error a terminal that somebody reads, so that the progress bar is drawn as for a user."""
    reader, writer = os.openpty()

    def drain() -> None:
        with contextlib.suppress(OSError):
            while os.read(reader, 65536):
                pass

    threading.Thread(target=drain, daemon=True).start()
    before = sys.stderr
    with os.fdopen(writer, "w") as screen:
        sys.stderr = screen
        try:
            yield
        finally:
            sys.stderr = before


def interleave(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
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
    console = Console(width=100)
    table = Table(title=title)
    for column in ("", "median", "least", "largest", "rounds"):
        table.add_column(column)
    for name, values in {**measured, f"{one} / {other}": ratios}.items():
        table.add_row(name, *(f"{value:.3f}" for value in _spread(values)), str(len(values)))
    console.print(table)
    machine = f"{torch.get_num_threads()} threads, {_processor()}"
    console.print(f"{unit}; {machine}; target: {one} / {other} of at least {target}")
    figures = {"ratios": ratios, "median_ratio": statistics.median(ratios), "target": target, "machine": machine}
    print(json.dumps({"title": title, "unit": unit, "measured": measured, **figures}))


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
