"""`make bench NAME=search`: trials an hour of `lit-cnn tune`, and of Optuna with a process a trial.

LeNet-5 on digits, random draws, nothing pruned, the same number of trials and epochs; each side alone, in turn. Both
train by lit_cnn and track in MLflow: what differs is that a worker of `tune` imports once. `--parallel` is for both.
"""

import argparse
import itertools
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna

from tests.benchmarks.common import ROOT, interleave, report, save_result, workplace

AIM = 1.5
_SPACE = "model.lr: {low: 0.0001, high: 0.1, log: true}\nmodel.weight_decay: {low: 0.0001, high: 0.3, log: true}\n"
_CONFIG = f"--config={ROOT / 'configs' / 'experiment' / 'lenet5_scratch_digits.yaml'}"


def _run(*command: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "lit_cnn", *command], env=environment, check=True, capture_output=True)


def tune(options: argparse.Namespace, seed: int) -> float:
    """Returns the trials an hour of the command as a whole, its start and its report included."""
    began = time.monotonic()
    how = [f"--trials={options.trials}", f"--parallel={options.parallel}", "--sampler=random", "--pruner=none"]
    run = [f"--trainer.max_epochs={options.epochs}", "--data.num_workers=0"]
    _run("tune", _CONFIG, "--search=space.yaml", *how, *run, f"--seed={seed}", "--final_seeds=0")
    return 3600 * options.trials / (time.monotonic() - began)


def process_a_trial(options: argparse.Namespace, seed: int) -> float:
    """Returns the trials an hour of a study by hand, each trial a `lit-cnn fit` of its own."""
    began = time.monotonic()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))

    def trial(number: int) -> None:
        """Trains one."""
        drawn = study.ask()
        lr = drawn.suggest_float("model.lr", 1e-4, 0.1, log=True)
        decay = drawn.suggest_float("model.weight_decay", 1e-4, 0.3, log=True)
        values = [f"--model.lr={lr}", f"--model.weight_decay={decay}", f"--recipe=trial_{seed}_{number}"]
        run = [f"--trainer.max_epochs={options.epochs}", "--data.num_workers=0"]
        _run("fit", _CONFIG, *values, *run, "--test_after_fit=false", "--report=false")

    with ThreadPoolExecutor(options.parallel) as pool:
        list(pool.map(trial, range(options.trials)))
    return 3600 * options.trials / (time.monotonic() - began)


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=1)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seeds = itertools.count()
    with workplace():
        Path("space.yaml").write_text(_SPACE, encoding="utf-8")
        sides = {
            "lit-cnn tune": lambda: tune(options, next(seeds)),
            "a process a trial": lambda: process_a_trial(options, next(seeds)),
        }
        measured = interleave(sides, options.rounds)
    title = f"trials an hour, {options.trials} of {options.epochs} epochs, {options.parallel} at once"
    save_result("search", report(title, measured, "trials per hour", ("lit-cnn tune", "a process a trial"), AIM))


if __name__ == "__main__":
    main()
