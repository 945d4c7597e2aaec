"""What the benchmarks share: `lit-cnn fit` with a stopwatch and a terminal, rounds in turn, a table, a file of results.

Every round of every side is a process of its own, as for a user. It is clocked after its tenth training batch: torch
imports parts of itself at the first optimizer step, in whichever of the sides did not need them before.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
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

from lit_cnn import __version__
from lit_cnn.core.environment import set_environment
from lit_cnn.core.files import write_text_atomically

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
BATCH_SIZE = 128
WARM_UP = 10  # batches
_SECONDS = Path("seconds.txt")
Result = TypeVar("Result")
Figures = Mapping[str, Any] | Sequence[Mapping[str, Any]]

# What decides how fast a processor multiplies, by the names that torch has for it.
INSTRUCTIONS = {"avx2": "avx2", "avx512": "avx512_f", "bf16": "avx512_bf16", "amx": "amx_bf16"}
PACKAGES = ("torch", "lightning", "mlflow", "albumentations", "opencv-python-headless", "timm", "numpy")
_LOAD = os.getloadavg()[0]  # of the last minute, before the benchmark itself is a load


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


def report(
    title: str, measured: dict[str, list[float]], unit: str, ratio: tuple[str, str], target: float
) -> dict[str, Any]:
    """Prints a table; returns the figures. The ratio is taken round by round, and is to be `target` at least."""
    one, other = ratio
    ratios = [a / b for a, b in zip(measured[one], measured[other], strict=True)]
    _print_table(title, {**measured, f"{one} / {other}": ratios})
    print(f"{unit}; {_threads()}; target: {one} / {other} of at least {target}")
    figures = {"ratio": f"{one} / {other}", "ratios": ratios, "median_ratio": statistics.median(ratios)}
    return {"title": title, "unit": unit, "measured": measured, **figures, "target": target}


def report_costs(title: str, measured: dict[str, list[float]], unit: str, target: float) -> dict[str, Any]:
    """Prints a table; returns the figures, of what is to be `target` at most."""
    _print_table(title, measured)
    print(f"{unit}; {_threads()}; target: at most {target}")
    return {"title": title, "unit": unit, "measured": measured, "target": target}


def _print_table(title: str, measured: dict[str, list[float]]) -> None:
    table = Table(title=title)
    for column in ("", "median", "least", "largest", "rounds"):
        table.add_column(column)
    for name, values in measured.items():
        table.add_row(name, *(f"{value:.3f}" for value in _spread(values)), str(len(values)))
    Console(width=100).print(table)


def _threads() -> str:
    return f"{torch.get_num_threads()} threads, {processor()}"


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def save_result(name: str, figures: Figures, folder: Path = RESULTS) -> Path:
    """Writes what a benchmark found as JSON, a file for each machine, and says where; an earlier one gives way.

    Args:
        name: The benchmark's, as in `make bench NAME=…`.
        figures: All that it measured, round by round: what JSON can hold.
        folder: Where to.

    Returns:
        The file, `NAME.MACHINE.json`.
    """
    where = machine()
    result = {
        "name": name,
        # No path of one machine.
        "arguments": [Path(each).name if each.startswith("/") else each for each in sys.argv[1:]],
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "machine": where,
        "load_before": _LOAD,
        "versions": versions(),
        "figures": figures,
    }
    file = folder / f"{name}.{machine_slug(where)}.json"
    write_text_atomically(file, as_json(result))
    print(f"written to {os.path.relpath(file)}")
    return file


class Parts:
    """What a long measurement has done: a line of JSON for each part, on disk before the next one begins.

    A measurement that is stopped goes on where it was; a line that a crash has cut short is passed over.

    Args:
        file: Where they are kept.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        self.found: dict[str, dict[str, Any]] = {}
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                part = json.loads(line)
                self.found[part["part"]] = part

    def add(self, name: str, **figures: Any) -> dict[str, Any]:
        """Keeps what a part has come to, in place of what it came to before; returns it."""
        part = {"part": name, "date": datetime.datetime.now().isoformat(timespec="seconds"), **figures}
        with self._lock:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                # The line before may have been cut short.
                file.write(("" if file.tell() == 0 else "\n") + json.dumps(part))
                file.flush()
                os.fsync(file.fileno())
            self.found[name] = part
        return part


def as_json(result: Mapping[str, Any]) -> str:
    """Returns JSON with a line for each entry, so that a difference shows which one has changed."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in result.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def machine() -> dict[str, Any]:
    """Returns the processor's name, its cores, which of INSTRUCTIONS it has, and the GPU's name, None without one."""
    capabilities = torch.cpu.get_capabilities()
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "instructions": [name for name, called in INSTRUCTIONS.items() if capabilities.get(called)],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def machine_slug(of: Mapping[str, Any]) -> str:
    """Returns a machine's name for a file's: `amd-epyc-2-cores-avx2-avx512-bf16`."""
    words = (of["processor"], f"{of['cores']} cores", *of["instructions"], of["gpu"] or "")
    return re.sub("[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def versions() -> dict[str, str]:
    """Returns the versions of Python, of lit_cnn and of what computes."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "lit-cnn": __version__, **installed}


def commit() -> str | None:
    """Returns the commit that is measured, `+` behind it if files differ from it; None outside of a checkout."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+" if changed else head


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def processor() -> str:
    """Returns what the processor calls itself."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
