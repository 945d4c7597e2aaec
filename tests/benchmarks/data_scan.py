"""How long a large folder of images takes before the first step: the first scan, and those after it.

    make bench NAME=data_scan

Every round is a process of its own with the cache of the first scan: it lists the folder, hashes, draws the split and
takes the quick look, as `lit-cnn fit` does before it trains. With each goes another process, `lit-cnn fit` itself,
clocked from the end of its imports to its first training batch.
"""

import argparse
import io
import os
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from tests.benchmarks.common import in_own_process, processor, save_result, workplace

_TARGET_SECONDS, _TARGET_CHECK = 5.0, 2.0


def write_folder(root: Path, num_images: int) -> None:
    """Writes JPEGs of 32 px, no two alike, in 100 classes."""
    draw = np.random.default_rng(0)
    for label in range(100):
        (root / f"class_{label:02}").mkdir(parents=True)
    for number in tqdm(range(num_images), desc="writing images", unit="image"):
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "jpeg")
        (root / f"class_{number % 100:02}" / f"{number:06}.jpg").write_bytes(buffer.getvalue())


def prepare(root: str) -> dict[str, float]:
    """Returns the seconds of what comes before the first step, in all and of the quick look alone."""
    from lit_cnn.data.datamodule import ImageDataModule
    from lit_cnn.training.before_fit import check_before_fit

    started = time.perf_counter()
    data = ImageDataModule("image_folder", root, image_size=32)
    assert len(data.splits.train) and data.digests["data"]
    before_check = time.perf_counter()
    check_before_fit(data)
    ended = time.perf_counter()
    return {"before the first step": ended - started, "of it the quick look": ended - before_check}


def first_batch(root: str) -> dict[str, float]:
    """Returns the seconds that `lit-cnn fit` takes from its imports to its first batch."""
    import multiprocessing

    import lightning.pytorch as pl
    import timm  # noqa: F401  # imported before the clock starts, as is the next but one

    from lit_cnn.cli import main
    from lit_cnn.cli.train import run_trainer_command  # noqa: F401

    # A process that was spawned spawns its own too, unlike lit-cnn started by a user; that took 10 of 14 seconds.
    multiprocessing.set_start_method(None, force=True)
    reached: list[float] = []

    def clock(self: pl.Callback, *args: object) -> None:
        reached.append(time.perf_counter())

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
    return {"lit-cnn fit, to its first batch": reached[0] - started}


def run() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with workplace():
        os.environ["XDG_CACHE_HOME"] = str(Path("cache").absolute())
        root = str(Path("images").absolute())
        write_folder(Path(root), options.images)
        first = in_own_process(prepare, root)
        rounds = [{**in_own_process(prepare, root), **in_own_process(first_batch, root)} for _ in range(options.rounds)]
    table = Table(title=f"seconds for {options.images:,} images")
    for column in ("", "first scan", "median", "least", "largest", "rounds"):
        table.add_column(column)
    measured = {name: [one[name] for one in rounds] for name in rounds[0]}
    for name, values in measured.items():
        cells = (statistics.median(values), min(values), max(values))
        table.add_row(
            name, f"{first[name]:.1f}" if name in first else "", *(f"{value:.2f}" for value in cells), str(len(values))
        )
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{os.cpu_count()} cores, {processor()}; targets: {_TARGET_SECONDS} s before the first step for 100,000 "
        f"images, {_TARGET_CHECK} s for the quick look at 10,000"
    )
    save_result("data_scan", {"images": options.images, "unit": "seconds", "first": first, "measured": measured})


if __name__ == "__main__":
    run()
