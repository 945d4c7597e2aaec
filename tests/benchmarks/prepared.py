"""`make bench NAME=prepared`: epochs over large photographs, kept shrunk or decoded each time, against timm's loader.

JPEGs of 4000 x 3000 px, as of a telephone: enlarged parts of the two photographs of scikit-learn, for the time to
decode one depends on its number of pixels more than on what they show. Random resized crop and mirror, two workers;
each side makes the same training steps in a process of its own, in turn; images per second of whole epochs. What is
kept is made in the first epoch, which is told apart, with the bytes that an image takes.
"""

import argparse
import contextlib
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import numpy as np
import timm.data
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lit_cnn.core.environment import set_environment
from lit_cnn.data.datamodule import ImageDataModule
from tests.benchmarks.augment_jpeg import write_photographs
from tests.benchmarks.common import interleave, report, save_result
from tests.benchmarks.train_step import TrainSteps

WIDTH, HEIGHT = 4000, 3000
KEPT, DECODED, REDUCED = "lit_cnn", "prepared off", "reduced_decode"
TIMM, TORCHVISION = "timm", "torchvision"
AIM = 4.5


class Epochs:
    """A network with a loader of photographs, in a process of its own.

    Args:
        side: One of those above.
        root: A folder of classes.
        arch: As `--model.arch`.
        size: Pixels of the square.
        batch_size: Images of a step.
        num_workers: Of the loader.
    """

    def __init__(self, side: str, root: Path, arch: str, size: int, batch_size: int, num_workers: int) -> None:
        set_environment()
        self._steps = TrainSteps(arch, size, batch_size, ours=True)
        self._loader: Any
        of_all: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
        of_torch = {**of_all, "shuffle": True, "persistent_workers": num_workers > 0}
        if side == TORCHVISION:
            crop = v2.RandomResizedCrop(size, scale=(0.35, 1.0))
            seen = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
            self._loader = DataLoader(ImageFolder(str(root), seen), **of_torch)
        elif side == TIMM:
            drawn: dict[str, Any] = {"scale": (0.35, 1.0), "color_jitter": 0.0, "use_prefetcher": True}
            images = timm.data.ImageDataset(str(root), transform=timm.data.create_transform(size, True, **drawn))
            self._loader = DataLoader(images, **of_torch, collate_fn=timm.data.loader.fast_collate)
        else:
            how: Any = {KEPT: {}, DECODED: {"prepared": "off"}, REDUCED: {"reduced_decode": True}}[side]
            crop_and_flip: dict[str, Any] = {
                "train_crop": "random_resized",
                "augment": [{"class_path": "albumentations.HorizontalFlip"}],
            }
            shares: dict[str, Any] = {"val_fraction": 0.01, "test_fraction": 0.01}
            data = ImageDataModule("image_folder", str(root), size, **of_all, **shares, **crop_and_flip, **how)
            self._loader = data.train_dataloader()

    def run(self) -> float:
        """Trains for an epoch; returns the images per second."""
        started, count = time.perf_counter(), 0
        for images, labels in self._loader:
            device = self._steps.device
            self._steps.images, self._steps.targets = images.to(device), (labels % 10).to(device)
            self._steps.run(1)
            count += len(images)
        return count / (time.perf_counter() - started)


_SIDES: list[Epochs] = []  # the one of this process


def _prepare(*arguments: Any) -> None:
    _SIDES.append(Epochs(*arguments))


def _run() -> float:
    return _SIDES[0].run()


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder) / "photographs"
        os.environ["XDG_CACHE_HOME"] = folder
        write_photographs(root, options.images)
        for file in root.rglob("*.jpg"):
            Image.open(file).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, quality=90)
        of_all = (root, options.arch, options.size, options.batch_size, options.num_workers)
        sides = {}
        for side in (KEPT, DECODED, REDUCED, TIMM, TORCHVISION):
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(1, context, _prepare, (side, *of_all)))
            sides[side] = partial(lambda pool: pool.submit(_run).result(), pool)
        first = {side: sides[side]() for side in (KEPT, DECODED)}
        measured = interleave(sides, options.rounds)
        kept = [file.stat().st_size for file in Path(folder).glob("lit_cnn/prepared/objects/*/*")]
        source = [file.stat().st_size for file in root.rglob("*.jpg")]
    title = f"{__doc__.splitlines()[0]} {options.arch}, {options.size} px"
    figures = report(title, measured, "images per second", (KEPT, DECODED), AIM)
    print(f"first epoch: {first[KEPT]:.1f} images per second, {first[DECODED]:.1f} without keeping any")
    print(f"{np.mean(kept) / 1e3:.0f} kB kept an image, of files of {np.mean(source) / 1e3:.0f} kB")
    save_result("prepared", {**figures, "first": first, "bytes_kept": float(np.mean(kept))})


if __name__ == "__main__":
    main()
