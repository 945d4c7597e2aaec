"""What the benchmark and the script of a tool say to each other; this module needs nothing but Python and timm.

A script is started in the tool's own environment with a folder of images (`POOL/CLASS/…`), a folder of images without
classes, and the seconds that there are to make a classifier from the first. It writes what it says of the second:
`predictions.csv` (file, class), and `about.json`.
"""

import argparse
import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREDICTIONS, ABOUT = "predictions.csv", "about.json"


@dataclass
class Task:
    """What a script is asked.

    Attributes:
        pool: Folder of classes.
        test: Folder of images.
        seconds: That there are from the start of its process to a classifier; the predictions are not counted.
        seed: Of all draws.
        cores: That it has.
        mirrored: Whether a mirrored image is of the same class.
        output: Where to write.
        began: When it did, on the monotonic clock.
    """

    pool: Path
    test: Path
    seconds: float
    seed: int
    cores: int
    mirrored: bool
    output: Path
    began: float

    def left(self) -> float:
        """Returns the seconds that are left."""
        return self.seconds - (time.monotonic() - self.began)

    def classes(self) -> list[str]:
        """Returns the classes in sorted order."""
        return sorted(folder.name for folder in self.pool.iterdir())

    def test_files(self) -> list[Path]:
        """Returns the images to predict."""
        return sorted(self.test.iterdir())

    def is_small(self) -> bool:
        """Whether the images are of 48 pixels at most."""
        from PIL import Image

        return max(Image.open(self.test_files()[0]).size) <= 48

    def image_size(self) -> int:
        """Returns the pixels of the square that a network takes whose user knows how large the images are."""
        return 112 if self.is_small() else 224


def read_task() -> Task:
    """Reads the command line of a script."""
    parser = argparse.ArgumentParser()
    for name in ("pool", "test", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--began", type=float, required=True, help="on this machine's monotonic clock")
    parser.add_argument("--mirrored", action="store_true")
    return Task(**vars(parser.parse_args()))


def finish(
    task: Task, ended: float, classes: Sequence[str], packages: Sequence[str], weights: str, **more: Any
) -> None:
    """Writes what a script found.

    Args:
        task: What it was asked.
        ended: When the classifier was there, on the monotonic clock.
        classes: Of `task.test_files()`, in this order.
        packages: Whose versions count.
        weights: `digest_of_weights` in its environment.
        more: What it did, for whoever reads the figures.
    """
    with (task.output / PREDICTIONS).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "class"])
        rows.writerows([path.name, name] for path, name in zip(task.test_files(), classes, strict=True))
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
    seconds = {"fit": ended - task.began, "predict": time.monotonic() - ended}
    about = {"seconds": seconds, "versions": versions, "weights": weights, **more}
    beside = task.output / f"{ABOUT}.{os.getpid()}"
    beside.write_text(json.dumps(about), encoding="utf-8")
    beside.rename(task.output / ABOUT)


def digest_of_weights(arch: str) -> str:
    """Returns SHA-256 of all tensors that this environment's timm loads for a network, without a connection."""
    import timm

    net = timm.create_model(arch, pretrained=True)
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode() + str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def seconds_of_steps(batches: Iterable[Any], step: Callable[[Any], None], warm_up: int = 1, count: int = 3) -> float:
    """Returns the mean seconds of a few training steps, loading included, after a warm-up."""
    began = time.monotonic()
    for number, batch in enumerate(batches):
        step(batch)
        if number + 1 == warm_up:
            began = time.monotonic()
        if number + 1 == warm_up + count:
            break
    return (time.monotonic() - began) / max(1, number + 1 - warm_up)


def steps_of_finder(seconds: float, of_step: float) -> int:
    """Returns over how many steps a learning rate is looked for: 100, or as many as a sixth of the time has."""
    return max(20, min(100, int(seconds / 6 / of_step)))


def epochs_within(seconds: float, of_epoch: float, most: int) -> int:
    """Returns how many epochs there is time for, one at least; a twentieth of the time is kept back."""
    return max(1, min(most, int(0.95 * seconds / of_epoch)))
