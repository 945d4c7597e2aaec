"""`make bench NAME=augment_jpeg`: from JPEG files to augmented batches of 224 px, against torchvision on Pillow.

Four hundred JPEGs of 500 x 375 px cut from the two photographs of scikit-learn; random resized crop, mirror,
rotation and jitter of colour with the same parameters on both sides; batches of 32 of uint8; images per second.

The two draw from other streams, so their views are not the same; a table says how far apart each step takes one image
with the same parameters. Pillow's filter widens as the image shrinks (antialiased), OpenCV's bilinear takes four pixels
however far apart; of the rotated image they treat the border in different ways; changes of colour differ by rounding,
and hue, which OpenCV holds in 180 steps and Pillow in 256, by a little more.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations
import numpy as np
import sklearn.datasets
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from lit_cnn.data.datamodule import ImageDataModule
from tests.benchmarks.common import interleave, report, save_result

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
    """Writes JPEGs of quality 90 in two folders: parts of the photographs, drawn from seed 0."""
    photographs = sklearn.datasets.load_sample_images().images  # (427, 640, 3) each
    draw = np.random.default_rng(0)
    for number in range(count):
        top, left = draw.integers(0, 427 - 375 + 1), draw.integers(0, 640 - 500 + 1)
        cut = photographs[number % len(photographs)][top : top + 375, left : left + 500]
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


def differences(file: Path) -> dict[str, np.ndarray]:
    """Returns by how many of 256 levels the two sides differ, `(H, W, 3)` float, after each step with one parameter."""
    photograph = Image.open(file).convert("RGB")
    square = v2.functional.resized_crop(photograph, 20, 60, 340, 340, [SIZE, SIZE])
    steps: dict[str, tuple[Any, Any, Image.Image]] = {
        "resized crop, 340 to 224 px": (
            albumentations.Compose(
                [albumentations.Crop(60, 20, 400, 360), albumentations.Resize(SIZE, SIZE, interpolation=1)]
            ),
            lambda image: v2.functional.resized_crop(image, 20, 60, 340, 340, [SIZE, SIZE]),
            photograph,
        ),
        "mirror": (albumentations.HorizontalFlip(p=1.0), v2.functional.horizontal_flip, square),
        "rotation by 10 degrees": (
            albumentations.Rotate((10, 10), p=1.0),
            lambda image: v2.functional.rotate(image, 10, InterpolationMode.BILINEAR),
            square,
        ),
    }
    for name, value in (("brightness", 1.2), ("contrast", 1.2), ("saturation", 1.2), ("hue", 0.05)):
        none: dict[str, Any] = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}
        jitter = albumentations.ColorJitter(**{**none, name: (value, value)}, p=1.0)
        adjust = partial(getattr(v2.functional, f"adjust_{name}"), **{f"{name}_factor": value})
        steps[f"{name} by {value}"] = (jitter, adjust, square)
    return {
        step: np.abs(ours(image=np.asarray(image))["image"].astype(float) - np.asarray(theirs(image)))
        for step, (ours, theirs, image) in steps.items()
    }


def print_differences(root: Path) -> dict[str, list[float]]:
    """Prints the table of the differences; returns mean, median and largest of each step."""
    table = Table(title="one image, the same parameters: levels of 256 apart")
    figures: dict[str, list[float]] = {}
    for column in ("", "mean", "median", "largest"):
        table.add_column(column)
    for step, apart in differences(root / "a" / "0.jpg").items():
        figures[step] = [round(float(of(apart)), 2) for of in (np.mean, np.median, np.max)]
        table.add_row(step, *map(str, figures[step]))
    Console(width=100).print(table)
    return figures


def main() -> None:
    """Prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3, help="of a round")
    parser.add_argument("--num_workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root, options.images)
        apart = print_differences(root)
        loaders = {
            OURS: our_loader(root, options.num_workers, prepared="off"),
            TORCHVISION: torchvision_loader(root, options.num_workers),
        }
        sides = {name: partial(images_per_second, loader, options.epochs) for name, loader in loaders.items()}
        measured = interleave(sides, options.rounds)
    title = f"{__doc__.splitlines()[0]} {options.num_workers} workers"
    figures = report(title, measured, "images per second", (OURS, TORCHVISION), 2.0)
    save_result("augment_jpeg", {**figures, "levels_apart": apart})


if __name__ == "__main__":
    main()
