"""How long a folder of images takes before the first step, how much memory, and what of it goes to MLflow.

    make bench NAME=data_scan
    python -m tests.benchmarks.data_scan --images 1000 10000 100000 1000000 --rounds 1

Every round is a process of its own with the cache of the first scan: it lists the folder, hashes, draws the split and
takes the quick look, as `lit-cnn fit` does before it trains. With each goes another process, `lit-cnn fit` itself,
clocked from the end of its imports to its first training batch; its memory is what it has taken since then, and what is
sent are the run's files but its checkpoints.
"""

import argparse
import io
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from tests.benchmarks.common import in_own_process, processor, save_result, workplace

_TARGET_SECONDS, _TARGET_CHECK = 5.0, 2.0
_DRAWN = 1000  # images that differ in their pixels; the others have a comment of their own
_COMMENT = b"\xff\xfe\x00\x0a"  # a JPEG's marker of a comment of eight bytes


def write_folder(root: Path, num_images: int) -> None:
    """Writes JPEGs of 32 px, no two files alike, in 100 classes."""
    draw = np.random.default_rng(0)
    files = []
    for _ in range(min(_DRAWN, num_images)):
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "jpeg")
        files.append(buffer.getvalue())
    for label in range(100):
        (root / f"class_{label:02}").mkdir(parents=True)
    for number in tqdm(range(num_images), desc="writing images", unit="image"):
        file = files[number % _DRAWN]
        (root / f"class_{number % 100:02}" / f"{number:07}.jpg").write_bytes(
            file[:2] + _COMMENT + number.to_bytes(8, "big") + file[2:]
        )


def prepare(root: str) -> dict[str, float]:
    """Returns the seconds of what comes before the first step, and the memory that it takes."""
    from lit_cnn.data.datamodule import ImageDataModule
    from lit_cnn.training.before_fit import check_before_fit

    memory = _memory()
    started = time.perf_counter()
    data = ImageDataModule("image_folder", root, image_size=32)
    assert len(data.splits.train) and data.digests["data"]
    before_check = time.perf_counter()
    check_before_fit(data)
    ended = time.perf_counter()
    seconds = {"before the first step": ended - started, "of it the quick look": ended - before_check}
    return {**seconds, "before the first step, MiB": _memory() - memory}


def _memory() -> float:
    """Returns the MiB that this process has for itself, now."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("RssAnon"))


def first_batch(root: str) -> dict[str, float]:
    """Returns the seconds and the memory that `lit-cnn fit` takes to its first batch, and the size of its files."""
    import multiprocessing

    import lightning.pytorch as pl
    import timm  # noqa: F401  # imported before the clock starts, as is the next but one

    from lit_cnn.cli import main
    from lit_cnn.cli.train import run_trainer_command  # noqa: F401

    # A process that was spawned spawns its own too, unlike lit-cnn started by a user; that took 10 of 14 seconds.
    multiprocessing.set_start_method(None, force=True)
    reached: list[float] = []
    memory: list[float] = [_memory()]

    def clock(self: pl.Callback, *args: object) -> None:
        reached.append(time.perf_counter())
        memory.append(_memory())

    pl.Callback.on_train_batch_start = clock  # type: ignore[assignment, method-assign]
    started = time.perf_counter()
    options = (
        "--data.dataset=image_folder",
        f"--data.root={root}",
        "--data.image_size=32",
        "--data.num_workers=2",
        "--model.arch=lenet5",
        "--trainer.max_epochs=1",
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
        "--test_after_fit=false",
    )
    main(["fit", *options])
    run = max(Path("mlruns/journal").glob("*/"), key=lambda folder: folder.stat().st_mtime)
    files = [file for file in run.rglob("*") if file.is_file() and file.suffix != ".ckpt"]
    sent = sum(file.stat().st_size for file in files) / 2**20
    name = "lit-cnn fit, to its first batch"
    return {name: reached[0] - started, f"{name}, MiB": memory[1] - memory[0], "its files, MiB": sent}


def run() -> None:
    """Prints a table for each number of images and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    figures = [_measure(num_images, options.rounds) for num_images in options.images]
    print(
        f"{os.cpu_count()} cores, {processor()}; targets: {_TARGET_SECONDS} s before the first step for 100,000 "
        f"images, {_TARGET_CHECK} s for the quick look at 10,000"
    )
    save_result("data_scan", figures)


def _measure(num_images: int, num_rounds: int) -> dict[str, Any]:
    with workplace():
        os.environ["XDG_CACHE_HOME"] = str(Path("cache").absolute())
        root = str(Path("images").absolute())
        write_folder(Path(root), num_images)
        first = in_own_process(prepare, root)
        rounds = [{**in_own_process(prepare, root), **in_own_process(first_batch, root)} for _ in range(num_rounds)]
    table = Table(title=f"{num_images:,} images: seconds, and MiB")
    for column in ("", "first scan", "median", "least", "largest", "rounds"):
        table.add_column(column)
    measured = {name: [one[name] for one in rounds] for name in rounds[0]}
    for name, values in measured.items():
        cells = (f"{value:.2f}" for value in (statistics.median(values), min(values), max(values)))
        table.add_row(name, f"{first[name]:.1f}" if name in first else "", *cells, str(len(values)))
    Console(width=110).print(table)
    return {"images": num_images, "first": first, "measured": measured}


if __name__ == "__main__":
    run()
