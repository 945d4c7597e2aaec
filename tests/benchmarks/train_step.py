"""`make bench NAME=train_step`: a training step in bfloat16 and channels last against the same net in plain float32.

Forward, loss, backward and optimizer step on random images; images per second, interleaved rounds in one process.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch

from lit_cnn.classifier import LitClassifier
from tests.benchmarks.common import interleave, report

# Name, image size, batch size, least ratio.
NETS = [
    ("resnet18", 32, 128, 3.0),
    ("resnet50", 224, 16, 2.4),
    ("vgg16", 224, 8, 3.8),
    ("googlenet", 224, 16, 2.2),
    ("lenet5", 28, 128, 1.0),
]


def train_steps(arch: str, image_size: int, batch_size: int, bf16: bool, device: str) -> Callable[[int], float]:
    """Returns a function that makes that many training steps and returns the images per second."""
    model = LitClassifier(arch=arch, num_classes=10, in_channels=3, image_size=image_size).to(device).train()
    if bf16:
        model.use_channels_last()
    optimizer = model.build_optimizer()
    images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8, device=device)
    targets = torch.arange(batch_size, device=device) % 10

    def run(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                loss, _ = model.losses(images, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return steps * batch_size / (time.perf_counter() - started)

    return run


def main() -> None:
    """Prints a table and the figures as JSON for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="about that long for each side of a round")
    parser.add_argument("--nets", nargs="+", default=[arch for arch, *_ in NETS])
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for arch, image_size, batch_size, target in NETS:
        if arch not in options.nets:
            continue
        sides = {}
        for name in ("bf16", "fp32"):
            run = train_steps(arch, image_size, batch_size, name == "bf16", device)
            sides[name] = partial(run, max(1, round(run(2) * options.seconds / batch_size)))
        title = f"{arch}, {image_size} px, batch {batch_size}, {device}"
        report(title, interleave(sides, options.rounds), "images per second", ("bf16", "fp32"), target)


if __name__ == "__main__":
    main()
