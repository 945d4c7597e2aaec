"""`make bench NAME=train_step`: a training step as `lit-cnn fit` makes it, and one of the same net in plain float32.

Ours: bfloat16 (depthwise convolutions float32), channels last, the fused optimizer step, freed memory kept. Forward,
loss, backward and optimizer step on random images; images per second, in interleaved rounds of two processes.
"""

import argparse
import contextlib
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch

from lit_cnn.core.environment import set_environment
from lit_cnn.core.memory import keep_freed_memory
from lit_cnn.core.precision import train_depthwise_in_float32
from lit_cnn.training.classifier import LitClassifier
from tests.benchmarks.common import interleave, report, save_result

# Name, image size, batch size, least ratio.
NETS: list[tuple[str, int, int, float]] = [
    ("resnet18", 32, 128, 3.0),
    ("resnet50", 224, 16, 2.4),
    ("vgg16", 224, 8, 3.8),
    ("googlenet", 224, 16, 2.2),
    ("tf_efficientnet_lite0", 112, 32, 1.0),
    ("lenet5", 28, 128, 1.0),
]


class TrainSteps:
    """A network with its optimizer and a batch of random images, in a process of its own.

    Args:
        arch: As `--model.arch`.
        image_size: Pixels of the square.
        batch_size: Images of a step.
        ours: Whether as `lit-cnn fit` trains: bfloat16, channels last, the fused optimizer step, freed memory kept.
    """

    def __init__(self, arch: str, image_size: int, batch_size: int, ours: bool) -> None:
        if ours:
            keep_freed_memory()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.bf16 = ours
        options = None if ours else {"fused": False}
        model = LitClassifier(
            arch=arch, num_classes=10, in_channels=3, image_size=image_size, optimizer_options=options
        )
        self.model = model.to(self.device).train()
        if ours:
            model.use_channels_last()
            train_depthwise_in_float32(model.net)
        self.optimizer = model.build_optimizer()
        shape = (batch_size, 3, image_size, image_size)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        self.targets = torch.arange(batch_size, device=self.device) % 10

    def run(self, steps: int) -> float:
        """Makes that many training steps; returns the images per second."""
        started = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
                loss, _ = self.model.losses(self.images, self.targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return steps * len(self.images) / (time.perf_counter() - started)


_SIDES: list[TrainSteps] = []  # the one of this process


def _prepare(*arguments: Any) -> None:
    _SIDES.append(TrainSteps(*arguments))


def _run(steps: int) -> float:
    return _SIDES[0].run(steps)


def measure(net: tuple[str, int, int], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Returns the images per second of both sides, round by round; each is a process, which waits for its turn."""
    with contextlib.ExitStack() as stack:
        sides = {}
        for name in ("lit_cnn", "plain"):
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(1, context, _prepare, (*net, name == "lit_cnn"))
            stack.enter_context(pool)
            steps = max(1, round(pool.submit(_run, 2).result() * seconds / net[2]))
            sides[name] = partial(lambda pool, steps: pool.submit(_run, steps).result(), pool, steps)
        return interleave(sides, rounds)


def main() -> None:
    """Prints a table for each network; writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="about that long for each side of a round")
    parser.add_argument("--nets", nargs="+", default=[arch for arch, *_ in NETS])
    options = parser.parse_args()
    set_environment()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    figures = []
    for arch, image_size, batch_size, target in NETS:
        if arch in options.nets:
            title = f"{arch}, {image_size} px, batch {batch_size}, {device}"
            measured = measure((arch, image_size, batch_size), options.rounds, options.seconds)
            figures.append(report(title, measured, "images per second", ("lit_cnn", "plain"), target))
    save_result("train_step", figures)


if __name__ == "__main__":
    main()
