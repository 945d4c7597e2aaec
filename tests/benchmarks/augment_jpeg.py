"""`make bench NAME=augment_jpeg`: from JPEG files to augmented batches of 224 px, against torchvision on Pillow.

Four hundred JPEGs of 500 x 375 px cut from the two photographs of scikit-learn; random resized crop, mirror,
 rotation and jitter of colour with the same parameters on both sides; batches of 32 of uint8; images per second.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import numpy as np
import sklearn.datasets
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from lit_cnn.datamodule import ImageDataModule
from tests.benchmarks.common import interleave, report

SIZE, BATCH, DEGREES = 224, 32, 15
JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
AUGMENT: list[dict[str, Any]] = [
    {"class_path": "albumentations.HorizontalFlip"},
    {"class_path": "albumentations.Rotate", "init_args": {"limit": [-DEGREES, DEGREES], "p": 1.0}},
    {
        "class_path": "albumentations.ColorJitter",
        "init_args": {
            **{name: [1 - JITTER[name], 1 + JITTER[name]] for name in ("brightness", "contrast", "saturation")},
            "hue": [-JITTER["hue"], JITTER["hue"]],
            "p": 1.0,
        },
    },
]
OURS, TORCHVISION = "lit_cnn", "torchvision v2 on Pillow"


def write_photographs(root: Path, count: int) -> None:
    """Writes JPEGs of quality 90 in two folders: parts of the photographs and mirrors of such, drawn from seed 0."""
    photographs = sklearn.datasets.load_sample_images().images  # (427, 640, 3) each
    draw = np.random.default_rng(0)
    for number in range(count):
        top, left = draw.integers(0, 427 - 375 + 1), draw.integers(0, 640 - 500 + 1)
        cut = photographs[number % len(photographs)][top : top + 375, left : left + 500]
        cut = cut[:]
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(cut)).save(folder / f"{number}.jpg", quality=90)


def our_loader(root: Path, num_workers: int, **options: Any) -> DataLoader[Any]:
    """Returns the training loader of our data module."""
    data = ImageDataModule(
        "image_folder",
        root=str(root),
        image_size=SIZE,
        batch_size=BATCH,
        num_workers=num_workers,
        val_fraction=0.01,
        test_fraction=0.01,
        train_crop="random_resized",
        augment=AUGMENT,
        interpolation="bilinear",
        **options,
    )
    return data.train_dataloader()


def torchvision_loader(root: Path, num_workers: int) -> DataLoader[Any]:
    """Returns the loader that torchvision's documentation shows."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=(0.35, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(DEGREES, InterpolationMode.BILINEAR),
            v2.ColorJitter(**JITTER),
            v2.PILToTensor(),
        ]
    )
    return DataLoader(
        ImageFolder(str(root), transform),
        batch_size=BATCH,
        shuffle=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def images_per_second(loader: DataLoader[Any], epochs: int) -> float:
    """Takes whole epochs out of a loader."""
    count, started = 0, time.perf_counter()
    for _ in range(epochs):
        for images, _ in loader:
            assert images.shape[1:] == (3, SIZE, SIZE)
            count += len(images)
    return count / (time.perf_counter() - started)


def main() -> None:
    """Prints the table and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3, help="of a round")
    parser.add_argument("--num_workers", type=int, default=2)
    options = parser.parse_args()
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root, options.images)
        loaders = {
            OURS: our_loader(root, options.num_workers),
            TORCHVISION: torchvision_loader(root, options.num_workers),
        }
        sides = {name: partial(images_per_second, loader, options.epochs) for name, loader in loaders.items()}
        measured = interleave(sides, options.rounds)
    title = f"{__doc__.splitlines()[0]} {options.num_workers} workers"
    report(title, measured, "images per second", (OURS, TORCHVISION), 2.0)


if __name__ == "__main__":
    main()
