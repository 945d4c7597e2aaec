"""`make bench NAME=start`: processor seconds of `lit-cnn fit` from Enter to the first training step.

LeNet-5 on digits, tracked, without workers; `--other CHECKOUT` measures another checkout in turn, with the same
environment.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.common import ROOT, interleave, report_costs, save_result, workplace

AIM = 3.0
_FILE = Path("first_step.txt")
# A module of its own in the working directory: it imports nothing that the run would not, in either checkout.
_CALLBACK = """
import os, time
import lightning.pytorch as pl

class FirstStep(pl.Callback):
    def on_train_batch_start(self, *_):
        if not os.path.exists("first_step.txt"):
            used = os.times()
            with open("first_step.txt", "w") as file:
                file.write(f"{used.user + used.system} {time.time()}")
"""


def start(checkout: Path, seconds: list[float]) -> float:
    """Starts a run; returns the processor seconds to its first step, and adds those on the clock to `seconds`."""
    _FILE.unlink(missing_ok=True)
    config = checkout / "configs" / "experiment" / "lenet5_scratch_digits.yaml"
    short = ["--trainer.max_epochs=1", "--data.limit_train=64", "--data.num_workers=0", "--test_after_fit=false"]
    callback = "--trainer.callbacks+=first_step.FirstStep"
    command = [sys.executable, "-m", "lit_cnn", "fit", f"--config={config}", *short, callback]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    began = time.time()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    used, at = map(float, _FILE.read_text().split())
    seconds.append(at - began)
    return used


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--other", type=Path, help="another checkout")
    options = parser.parse_args()
    checkouts = {"lit-cnn fit": ROOT, **({"other": options.other.resolve()} if options.other else {})}
    clock: dict[str, list[float]] = {name: [] for name in checkouts}
    with workplace():
        Path("first_step.py").write_text(_CALLBACK, encoding="utf-8")
        sides = {name: lambda name=name, place=place: start(place, clock[name]) for name, place in checkouts.items()}
        measured = interleave(sides, options.rounds)
    on_clock = {f"{name}, on the clock": seconds[1:] for name, seconds in clock.items()}  # the first is the warm-up
    title = __doc__.splitlines()[0]
    save_result("start", report_costs(title, {**measured, **on_clock}, "seconds", AIM))


if __name__ == "__main__":
    main()
