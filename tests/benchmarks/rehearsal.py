"""`make bench NAME=rehearsal`: what the rehearsal before a run costs, in training steps of that run.

Each round of each side is a `lit-cnn fit` of its own, without tracking: with the rehearsal, and with a stand-in that
does nothing. The clock runs from the making of the Trainer to the end of the first step, since what a first step has to
set up is set up by whichever comes first. The unit is the median of the steps from the fourth on.
"""

import argparse
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.benchmarks.common import interleave, report_costs, save_result, workplace

_NUM_STEPS = 12
_NETWORKS = {
    "lenet5, digits, 64 images": ["--config=lenet5_scratch_digits"],
    "resnet18 at 64 px, 32 images": [
        *("--config=lenet5_scratch_digits", "--model.arch=resnet18", "--data.image_size=64", "--data.batch_size=32"),
        "--data.in_channels=3",
    ],
    "resnet50 at 128 px, 16 images": [
        *("--config=lenet5_scratch_digits", "--model.arch=resnet50", "--data.image_size=128", "--data.batch_size=16"),
        "--data.in_channels=3",
    ],
}
_TIMES = Path("times.txt")
_PROGRAM = """
import sys, time
import lightning.pytorch as pl
from lit_cnn.cli import main
from lit_cnn.training import run

class Clock(pl.Callback):
    def __init__(self):
        self.times = []

    def on_train_batch_start(self, *_):
        self.began = time.perf_counter()

    def on_train_batch_end(self, *_):
        self.times.append(time.perf_counter())
        self.steps = getattr(self, "steps", []) + [self.times[-1] - self.began]

    def on_train_end(self, *_):
        with open("times.txt", "w") as file:
            file.write(" ".join(map(str, [self.times[0] - started, *self.steps])))

clock, build = Clock(), run.build_trainer

def build_trainer(*args):
    global started
    started = time.perf_counter()
    parts = build(*args)
    parts.trainer.callbacks.append(clock)
    return parts

run.build_trainer = build_trainer
if sys.argv[1] == "without":
    run.rehearse = lambda *args, **kwargs: None
sys.exit(main(sys.argv[2:]))
"""


def steps_to_first(side: str, options: list[str]) -> float:
    """Returns the time to the end of the first step, in steps."""
    limits = ["--track=false", f"--trainer.max_steps={_NUM_STEPS}", "--trainer.limit_val_batches=0"]
    program = [sys.executable, "program.py", side, "fit", *options, *limits, "--trainer.enable_progress_bar=false"]
    subprocess.run(program, check=True, capture_output=True)
    first, *steps = map(float, _TIMES.read_text().split())
    return first / statistics.median(steps[3:])


def main() -> None:
    """Prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    figures = []
    with workplace():
        Path("program.py").write_text(_PROGRAM, encoding="utf-8")
        for name, options in _NETWORKS.items():
            sides = {side: partial(steps_to_first, side, options) for side in ("with", "without")}
            measured = interleave(sides, rounds)
            pairs = zip(measured["with"], measured["without"], strict=True)
            measured["rehearsal"] = [one - other for one, other in pairs]
            figures.append(report_costs(f"{name}: to the end of the first step", measured, "steps", 2.0))
    save_result("rehearsal", figures)


if __name__ == "__main__":
    main()
