"""`make bench NAME=fit_overhead`: lit-cnn fit, tracked and with its bar, against a plain PyTorch loop, same loader.

LeNet-5, batch 128, Fashion-MNIST; images per second of training, interleaved rounds.
"""

import argparse
import time

import torch.nn.functional as F

from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.classifier import LitClassifier
from tests.benchmarks.common import (
    BATCH_SIZE,
    WARM_UP,
    images_clocked,
    in_own_process,
    interleave,
    options_of,
    report,
    run_fit,
    save_result,
    workplace,
)

FLIP = [{"class_path": "albumentations.HorizontalFlip"}]


def run_plain(options: argparse.Namespace) -> float:
    """Returns the images per second of the plainest loop over the same loader: no logging, no checks."""
    data = ImageDataModule(
        "fashion_mnist",
        image_size=28,
        batch_size=BATCH_SIZE,
        num_workers=options.num_workers,
        augment=FLIP,
        limit_train=options.images,
    )
    model = LitClassifier(num_classes=10, in_channels=1, image_size=28, mean=data.mean, std=data.std)
    optimizer = model.build_optimizer()
    loader = data.train_dataloader()
    step = 0
    for epoch in range(options.epochs):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for images, targets in loader:
            loss = F.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step == WARM_UP:
                started = time.perf_counter()
    return images_clocked(options) / (time.perf_counter() - started)


def main() -> None:
    """Prints the table and writes the figures."""
    options = options_of(__doc__)
    with workplace():
        sides = {"lit-cnn fit": lambda: run_fit(options), "plain loop": lambda: in_own_process(run_plain, options)}
        measured = interleave(sides, options.rounds)
    title = __doc__.splitlines()[0]
    save_result("fit_overhead", report(title, measured, "images per second", ("lit-cnn fit", "plain loop"), 0.90))


if __name__ == "__main__":
    main()
