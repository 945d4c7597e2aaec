"""`make bench NAME=tracking_overhead`: five metrics at every step, tracked in MLflow, against logging nothing.

LeNet-5, batch 128, the same loader; images per second of training, interleaved rounds in one process.
"""

import argparse
import os
import tempfile

from tests.benchmarks.common import interleave, report
from tests.benchmarks.fit_overhead import run_fit


def main() -> None:
    """Prints the table and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=25600)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--num_workers", type=int, default=2)
    options = parser.parse_args()
    sizes = (options.images, options.epochs, options.num_workers)
    logging = ("--trainer.callbacks+=tests.benchmarks.common.LogFive", "--trainer.log_every_n_steps=1000000")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        sides = {
            "5 metrics a step": lambda: run_fit(*sizes, *logging),
            "no logging": lambda: run_fit(*sizes, "--track=false"),
        }
        measured = interleave(sides, options.rounds)
    report(__doc__.splitlines()[0], measured, "images per second", ("5 metrics a step", "no logging"), 0.93)


if __name__ == "__main__":
    main()
