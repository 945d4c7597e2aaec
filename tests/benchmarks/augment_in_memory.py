"""`make bench NAME=augment_in_memory`: a padded random crop and a flip of images in memory, against albumentations.

Fashion-MNIST (needs the Debian package dataset-fashion-mnist), batches of 128 through a DataLoader; images per second.
The last lines: what it takes to make the draws of one image a function of its key, in microseconds.
"""

import argparse
import os
import statistics
import time
from functools import partial
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations
import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lit_cnn.core.errors import UsageError
from lit_cnn.core.randomness import KeyedRandom, first_uniforms
from lit_cnn.data.batches import TrainImages
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.sources import FASHION_MNIST_FOLDER
from tests.benchmarks.common import BATCH_SIZE, interleave, report, report_costs, save_result

PAD, SIZE = 4, 28
AUGMENT: list[dict[str, Any]] = [
    {"class_path": "albumentations.Pad", "init_args": {"padding": PAD}},
    {"class_path": "albumentations.RandomCrop", "init_args": {"height": SIZE, "width": SIZE}},
    {"class_path": "albumentations.HorizontalFlip"},
]
OURS, ONE_BY_ONE, PLAIN = "a batch at a time", "one by one, same draws", "plain albumentations"


class PlainImages(Dataset[tuple[torch.Tensor, int]]):
    """What albumentations' documentation shows: one image an item, the loader makes the batch."""

    def __init__(self, array: np.ndarray, labels: np.ndarray) -> None:
        self.array, self.labels = array, labels
        self.compose = albumentations.Compose(
            [albumentations.Pad(PAD), albumentations.RandomCrop(SIZE, SIZE), albumentations.HorizontalFlip()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.compose(image=self.array[index])["image"]
        return torch.from_numpy(image).permute(2, 0, 1), int(self.labels[index])


def loaders(num_images: int, num_workers: int) -> dict[str, DataLoader[Any]]:
    """Returns the loader of each side; their workers persist."""
    found: dict[str, DataLoader[Any]] = {}
    for name in (OURS, ONE_BY_ONE):
        data = ImageDataModule(
            "fashion_mnist",
            root=str(FASHION_MNIST_FOLDER),
            image_size=SIZE,
            batch_size=BATCH_SIZE,
            num_workers=num_workers,
            augment=AUGMENT,
            limit_train=num_images,
        )
        found[name] = data.train_dataloader()
    one_by_one: Any = found[ONE_BY_ONE].dataset
    assert isinstance(one_by_one, TrainImages)
    one_by_one.fallback_reason = "the benchmark's wish"
    array, chosen = data.image_set.images.array, data.splits.train  # type: ignore[attr-defined]
    found[PLAIN] = DataLoader(
        PlainImages(array[chosen], data.image_set.labels[chosen]),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=_one_thread,
    )
    return found


def _one_thread(worker_id: int) -> None:
    cv2.setNumThreads(0)


def images_per_second(loader: DataLoader[Any]) -> float:
    """Takes an epoch out of a loader; clocked from its tenth batch on."""
    count, started = 0, 0.0
    for number, (images, _) in enumerate(loader):
        if number == 10:
            count, started = 0, time.perf_counter()
        count += len(images)
    return count / (time.perf_counter() - started)


def assert_the_same(one: DataLoader[Any], other: DataLoader[Any]) -> None:
    """Compares an epoch of two loaders, bit for bit."""
    for (images, labels), (others, other_labels) in zip(one, other, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


def key_costs(rounds: int) -> dict[str, list[float]]:
    """Returns the microseconds per image of setting its key, alone and in a batch with four draws, in each round."""
    keyed = KeyedRandom()
    keys = [(0, 3, index) for index in range(BATCH_SIZE)]

    def alone() -> None:
        for key in keys:
            keyed.rekey("augment", *key)

    sides = {"rekey, one image": alone, "a batch, four draws each": lambda: first_uniforms("augment", keys, 4)}
    costs: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, run in sides.items():
            started = time.perf_counter()
            for _ in range(200):
                run()
            costs[name].append((time.perf_counter() - started) / 200 / len(keys) * 1e6)
    return {name: values[1:] for name, values in costs.items()}  # without the warm-up


def main() -> None:
    """Prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=51200, help="of an epoch, which is a round")
    parser.add_argument("--num_workers", type=int, default=2)
    options = parser.parse_args()
    try:
        sides = loaders(options.images, options.num_workers)
    except UsageError as error:
        raise SystemExit(f"{error}; or apt-get install dataset-fashion-mnist") from error
    assert_the_same(sides[OURS], sides[ONE_BY_ONE])
    clocks = {name: partial(images_per_second, loader) for name, loader in sides.items()}
    measured = interleave(clocks, options.rounds)
    title = f"{__doc__.splitlines()[0]} {options.num_workers} workers"
    figures = [report(title, measured, "images per second", (OURS, PLAIN), 7.0)]
    ratio = statistics.median(a / b for a, b in zip(measured[OURS], measured[ONE_BY_ONE], strict=True))
    print(f"{OURS} / {ONE_BY_ONE}: {ratio:.2f}; their batches are the same, bit for bit")
    costs = key_costs(options.rounds)
    figures.append(report_costs("What a key costs", costs, "microseconds per image", 20.0))
    save_result("augment_in_memory", figures)


if __name__ == "__main__":
    main()
