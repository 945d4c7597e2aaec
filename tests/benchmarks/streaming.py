"""How what comes before the first batch grows with the number of images in shards: by a synthetic index of each size.

    make bench NAME=streaming

Shards of 1,000 images of 100 kB each. First the order of epochs over an index on disk (offset, size, label and SHA-256
of each image, in arrays that are mapped into memory): from nothing to the first batch, to a batch in the middle of a
later epoch, as after a kill, and through all batches of an epoch, each position of which must come once. Then all that
a run holds of a set today: `ImageSet`, its splits, digests and manifest. Each size is a process of its own. Three
minutes on two cores that others shared, and 4.6 GB of disk for the index of 100 million images meanwhile.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.benchmarks.common import in_own_process, processor, save_result, workplace

PER_SHARD, IMAGE_BYTES, BATCH = 1_000, 100_000, 256
FIELDS = {"offsets": "<i8", "sizes": "<u4", "labels": "<u2", "digests": "V32"}
_AT_ONCE = 1_000_000


def write_index(folder: Path, num_images: int) -> int:
    """Writes an index of shards of equal size, in parts; returns its bytes."""
    draw = np.random.default_rng(0)
    np.save(folder / "starts.npy", np.arange(0, num_images + PER_SHARD, PER_SHARD))
    for name, kind in FIELDS.items():
        with (folder / name).open("wb") as file:
            for start in range(0, num_images, _AT_ONCE):
                size = min(_AT_ONCE, num_images - start)
                if name == "offsets":
                    values = np.arange(start, start + size) % PER_SHARD * IMAGE_BYTES
                elif name == "digests":
                    values = np.frombuffer(draw.bytes(32 * size), kind)
                else:
                    values = draw.integers(0, 1_000, size)
                values.astype(kind).tofile(file)
    return sum(file.stat().st_size for file in folder.iterdir())


def memory() -> dict[str, float]:
    """Returns megabytes of this process: its own, and at most with the pages of files that it has mapped."""
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return {"own MB": int(status["RssAnon"].split()[0]) / 1e3, "most MB": int(status["VmHWM"].split()[0]) / 1e3}


def order_of_epochs(folder: str, num_images: int) -> dict[str, float]:
    """Returns seconds and memory of the order of epochs; see the module."""
    from lit_cnn.data.streaming import BLOCK_BYTES, StreamedOrder

    before = memory()["own MB"]
    block = int(BLOCK_BYTES / (PER_SHARD * IMAGE_BYTES))
    found: dict[str, float] = {"images": num_images}

    def read(seed: int, epoch: int, batch: int) -> None:
        starts = np.load(f"{folder}/starts.npy", mmap_mode="r")
        fields = [np.memmap(f"{folder}/{name}", kind, "r") for name, kind in FIELDS.items()]
        positions = StreamedOrder(seed, epoch, starts, block)[batch * BATCH : (batch + 1) * BATCH]
        assert all(len(field[positions]) == BATCH for field in fields)

    started = time.perf_counter()
    read(0, 0, 0)
    found["first batch s"] = time.perf_counter() - started
    started = time.perf_counter()
    read(0, 7, num_images // BATCH // 2)
    found["batch in the middle s"] = time.perf_counter() - started
    starts = np.load(f"{folder}/starts.npy", mmap_mode="r")
    found["own MB"] = memory()["own MB"] - before
    order, seen = StreamedOrder(0, 1, starts, block), np.zeros(num_images, bool)
    started = time.perf_counter()
    for place in range(0, num_images, BATCH):
        seen[order[place : min(place + BATCH, num_images)]] = True
    found["epoch s"] = time.perf_counter() - started
    assert seen.all()
    return {**found, "epoch images/s": num_images / found["epoch s"]}


def image_set_of_today(num_images: int) -> dict[str, float]:
    """Returns seconds and memory of what a run holds of its set."""
    from lit_cnn.data.image_set import SpanImages
    from lit_cnn.data.sources.shards import set_of_samples
    from lit_cnn.data.splits import draw_splits, manifest

    draw, before = np.random.default_rng(0), memory()["own MB"]
    names = [f"{number:06}.tar" for number in range(num_images // PER_SHARD)]
    number, place = np.divmod(np.arange(num_images), PER_SHARD)
    index = {
        "keys": np.char.mod("%08d", np.arange(num_images)),
        "labels": draw.integers(0, 100, num_images).astype(str),
        "places": np.column_stack([number, place * IMAGE_BYTES, np.full(num_images, IMAGE_BYTES)]),
        "digests": np.frombuffer(draw.bytes(32 * num_images), np.uint8).reshape(-1, 32),
        "not_one_image": np.empty((0, 3), str),
        "passed_over": np.empty((0, 2), str),
    }
    started = time.perf_counter()
    paths = [f"{names[shard]}/{key}" for shard, key in zip(number, index["keys"], strict=True)]
    opened = SpanImages("shards", [], index["places"], paths, 3)
    image_set = set_of_samples(("shards", "shards"), index, names, [""] * len(names), opened)
    splits = draw_splits(image_set, 0.1, 0.2, 0)
    held = memory()["own MB"] - before
    assert image_set.digest and manifest(image_set, splits)
    seconds = time.perf_counter() - started
    return {"images": num_images, "start s": seconds, "own MB": held, "most MB": memory()["most MB"] - before}


def main() -> None:
    """Measures each size, prints two tables and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--sets", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    orders = []
    for num_images in options.sizes:
        with workplace():
            started = time.perf_counter()
            num_bytes = write_index(Path.cwd(), num_images)
            written = time.perf_counter() - started
            found = in_own_process(order_of_epochs, os.getcwd(), num_images)
            orders.append({**found, "index MB": num_bytes / 1e6, "index written s": written})
    with workplace():
        sets = [in_own_process(image_set_of_today, num_images) for num_images in options.sets]
    for title, rows in (("the order of epochs, by an index on disk", orders), ("a set as it is held today", sets)):
        table = Table(title=title)
        for column in rows[0]:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*(f"{value:,.0f}" if value >= 100 else f"{value:.3f}" for value in row.values()))
        Console(width=120).print(table)
    print(processor())
    save_result("streaming", {"orders": orders, "sets": sets})


if __name__ == "__main__":
    main()
