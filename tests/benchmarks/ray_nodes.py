"""`make bench NAME=ray_nodes`: trials an hour of a search on two nodes of a Ray cluster, and on one of them.

Each node is a network namespace of this machine with one CPU, pinned to a core of its own; the search's process runs on
the first. LeNet-5 on digits, random draws, nothing pruned, each side the same number of trials; the time is that of the
trials, from when the first worker is at work, as a search of a cluster runs for hours. Needs root and two cores.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.common import ROOT, interleave, report, save_result, workplace
from tests.ray_cluster import ENVIRONMENT, Cluster, two_nodes

AIM = 1.7
_SPACE = "model.lr: {low: 0.0001, high: 0.1, log: true}\nmodel.weight_decay: {low: 0.0001, high: 0.3, log: true}\n"
_CONFIG = f"--config={ROOT / 'configs' / 'experiment' / 'lenet5_scratch_digits.yaml'}"


def on_nodes(cluster: Cluster, number: int, options: argparse.Namespace, seed: int) -> float:
    """Returns the trials an hour on one node, or on both."""
    how = [f"--trials={options.trials}", f"--parallel={number}", "--sampler=random", "--pruner=none"]
    run = [f"--trainer.max_epochs={options.epochs}", "--data.num_workers=0", "--final_seeds=0", "--format=json"]
    engine = ["--engine=ray", f"--address={cluster.address}", "--trainer.accelerator=cpu", f"--seed={seed}"]
    command = ["taskset", "-c", "0", sys.executable, "-m", "lit_cnn", "tune", _CONFIG, "--search=space.yaml"]
    inside = ["ip", "netns", "exec", cluster.hosts[0].name]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*inside, *command, *how, *run, *engine], env=environment, check=True, capture_output=True, text=True
    )
    trials = json.loads(done.stdout)["trials"]
    return 3600 * options.trials / max(trial["elapsed"] for trial in trials)


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    seeds = itertools.count()
    with workplace(), two_nodes(pinned=True) as cluster:
        Path("space.yaml").write_text(_SPACE, encoding="utf-8")
        sides = {
            "two nodes": lambda: on_nodes(cluster, 2, options, next(seeds)),
            "one node": lambda: on_nodes(cluster, 1, options, next(seeds)),
        }
        measured = interleave(sides, options.rounds)
    title = f"trials an hour, {options.trials} of {options.epochs} epochs, a core a node"
    save_result("ray_nodes", report(title, measured, "trials per hour", ("two nodes", "one node"), AIM))


if __name__ == "__main__":
    main()
