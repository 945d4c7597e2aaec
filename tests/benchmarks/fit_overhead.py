"""`make bench NAME=fit_overhead`: lit-cnn fit, tracked and with its bar, against a plain PyTorch loop, same loader.

LeNet-5, batch 128, Fashion-MNIST; images per second of training, interleaved rounds in one process.
"""

import argparse
import os
import tempfile
import time

import torch
import torch.nn.functional as F

from lit_cnn.classifier import LitClassifier
from lit_cnn.cli import main as lit_cnn
from lit_cnn.datamodule import ImageDataModule
from tests.benchmarks.common import Stopwatch, interleave, report, terminal
from tests.faults import ROOT

CONFIG = ROOT / "configs" / "experiment" / "lenet5_scratch_fashion_mnist.yaml"
FLIP = [{"class_path": "albumentations.HorizontalFlip"}]


def run_fit(images: int, epochs: int, num_workers: int, *more: str) -> float:
    """Returns the images per second of a tracked `lit-cnn fit` with its progress bar."""
    arguments = [
        "fit",
        f"--config={CONFIG}",
        f"--data.limit_train={images}",
        f"--data.num_workers={num_workers}",
        f"--trainer.max_epochs={epochs}",
        "--trainer.limit_val_batches=0",
        "--test_after_fit=false",
        "--trainer.callbacks+=tests.benchmarks.common.Stopwatch",
        *more,
    ]
    with terminal():
        assert lit_cnn(arguments) == 0
    return images * epochs / Stopwatch.seconds


def run_plain(images: int, epochs: int, num_workers: int) -> float:
    """Returns the images per second of the plainest loop over the same loader: no logging, no checks."""
    data = ImageDataModule("fashion_mnist", image_size=28, num_workers=num_workers, augment=FLIP, limit_train=images)
    model = LitClassifier(num_classes=10, in_channels=1, image_size=28, mean=data.mean, std=data.std)
    optimizer = model.build_optimizer()
    loader = data.train_dataloader()
    batches = iter(loader)  # starts the workers; the Trainer's clock does not count that either
    started = time.perf_counter()
    for epoch in range(epochs):
        if epoch > 0:
            loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
            batches = iter(loader)
        for batch_images, targets in batches:
            loss = F.cross_entropy(model(batch_images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return images * epochs / (time.perf_counter() - started)


def main() -> None:
    """Prints the table and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=25600)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--num_workers", type=int, default=2)
    options = parser.parse_args()
    sizes = (options.images, options.epochs, options.num_workers)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        sides = {"lit-cnn fit": lambda: run_fit(*sizes), "plain loop": lambda: run_plain(*sizes)}
        measured = interleave(sides, options.rounds)
    torch.set_grad_enabled(True)
    report(__doc__.splitlines()[0], measured, "images per second", ("lit-cnn fit", "plain loop"), 0.90)


if __name__ == "__main__":
    main()
