"""`make bench NAME=thread_wait`: how long an idle thread of OpenMP waits on its core before it sleeps.

`lit-cnn fit` of LeNet-5, images per second of training, with GOMP_SPINCOUNT of libgomp, which PyTorch computes with: 0
(what OMP_WAIT_POLICY=PASSIVE means), what lit-cnn sets, three times that, and libgomp's own 300000. Small layers follow
one another faster than a sleeping thread wakes; a thread that waits too long keeps its core from the loader processes.
Fashion-MNIST in memory is all small layers; JPEGs of 500 x 375 px at 64 px are nearly all decoding.
"""

import argparse
import os
from functools import partial
from pathlib import Path

from lit_cnn.core.environment import SPIN_COUNT
from tests.benchmarks.augment_jpeg import write_photographs
from tests.benchmarks.common import interleave, report, run_fit, save_result, workplace

COUNTS = ("0", SPIN_COUNT, "30000", "300000")
PHOTOGRAPHS = ("--data.dataset=image_folder", "--data.root=photographs", "--data.image_size=64", "--data.check=off")
LOADS: dict[str, tuple[int, tuple[str, ...]]] = {"memory": (12800, ()), "jpeg": (1792, PHOTOGRAPHS)}  # training images


def run_with(count: str, options: argparse.Namespace, *more: str) -> float:
    """Returns the images per second of `lit-cnn fit` with a spin count."""
    os.environ["GOMP_SPINCOUNT"] = count
    return run_fit(options, *more)


def main() -> None:
    """Prints a table for each load and count; writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS)
    parser.add_argument("--counts", nargs="+", default=COUNTS)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    figures = []
    with workplace():
        write_photographs(Path("photographs"), 2500)
        for load in options.loads:
            options.images, more = LOADS[load]
            sides = {count: partial(run_with, count, options, *more) for count in options.counts}
            measured = interleave(sides, options.rounds)
            for count in options.counts[1:]:
                title = f"{load}, {options.num_workers} workers, by spin count"
                figures.append(report(title, measured, "images per second", (count, options.counts[0]), 1.0))
    save_result("thread_wait", figures)


if __name__ == "__main__":
    main()
