"""`make bench NAME=evaluation`: two trained networks and ten crops: naively, for the first time, from stored logits.

Naively is what one writes by hand: network by network and crop by crop, each time over all images, in eager float32.
The first evaluation cuts all crops at once and stores the logits; the second loads no network. All three end with the
mean of the probabilities and its accuracy, which is compared. Fashion-MNIST (Debian's dataset-fashion-mnist). The start
of the process, reading the data and loading the checkpoints are left out of the first two; the third does without them.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_cnn.cli import main as lit_cnn
from lit_cnn.evaluation.multi_crop import VIEWS, average_probabilities, views_of
from lit_cnn.evaluation.predict import Member, load_member
from lit_cnn.evaluation.view_logits import predict_views
from tests.benchmarks.common import ROOT, in_own_process, interleave, report, save_result, workplace
from tests.runs import tracked_runs

CROPS = 10
ARCHS = ("resnet20", "nin")
STORED = Path("logits")


def train() -> list[Path]:
    """Trains both networks for two short epochs; returns their best checkpoints."""
    for arch in ARCHS:
        config = ROOT / "configs" / "experiment" / f"{arch}_scratch_fashion_mnist_small.yaml"
        if lit_cnn(["fit", f"--config={config}", "--trainer.max_epochs=2", "--test_after_fit=false"]) != 0:
            raise RuntimeError("lit-cnn fit failed")
    keys = [run.tags["lit_cnn.key"] for run in tracked_runs(Path.cwd(), "fit")]
    return [Path("mlruns", "journal", key, "best.ckpt") for key in keys]


def naive(members: list[Member], indices: np.ndarray) -> np.ndarray:
    """Returns the logits `(M * V, N, K)`, a network and a crop at a time."""
    logits = []
    with torch.inference_mode():
        for member in members:
            seen, images = member.record.preprocessing, member.data.image_set.images
            for crop in range(CROPS):
                parts = []
                for batch in np.array_split(indices, -(-len(indices) // 256)):
                    cut = [
                        views_of(images[index], seen["image_size"], CROPS, seen["interpolation"])[crop]
                        for index in batch
                    ]
                    parts.append(member.model(torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).contiguous()))
                logits.append(torch.cat(parts).numpy())
    return np.stack(logits)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns each side's seconds, round by round, and the accuracies that they find."""
    members = [load_member(path) for path in train()]
    indices = members[0].data.splits.test[: options.images]
    labels = members[0].data.image_set.labels[indices]
    accuracies: dict[str, float] = {}

    def clocked(name: str, logits: Callable[[], np.ndarray]) -> float:
        started = time.perf_counter()
        probabilities = average_probabilities(logits())
        seconds = time.perf_counter() - started
        accuracies[name] = float((probabilities.argmax(1) == labels).mean())
        return seconds

    def ours() -> np.ndarray:
        return np.concatenate([predict_views(member, indices, [CROPS], STORED)[CROPS] for member in members])

    def first() -> float:
        shutil.rmtree(STORED, ignore_errors=True)
        STORED.mkdir()
        return clocked("first", ours)

    sides = {
        "naive": lambda: clocked("naive", lambda: naive(members, indices)),
        "first": first,
        "second": lambda: clocked("second", ours),
    }
    return {"seconds": interleave(sides, options.rounds), "accuracies": accuracies}


def main() -> None:
    """Prints the ratios as tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000, help="test images")
    options = parser.parse_args()
    with workplace():
        measured = in_own_process(measure, options)
    ratios = []
    for side, target in (("first", 3.5), ("second", 100.0)):
        title = f"{len(ARCHS)} networks x {CROPS} crops of {options.images} images: naive / {side}"
        ratios.append(report(title, measured["seconds"], "seconds", ("naive", side), target))
    print(f"accuracies: {measured['accuracies']}")
    views = [block.num_views for block in VIEWS[CROPS]]
    save_result("evaluation", {"ratios": ratios, "accuracies": measured["accuracies"], "views": views})


if __name__ == "__main__":
    main()
