"""`make bench NAME=paired`: two ways of training, seed by seed in turn: val, test and seconds, paired.

By itself ResNet-18 on 10,000 images of Fashion-MNIST at 64 px, through growing sizes and at the last one alone. Others:

    python -m tests.benchmarks.paired --name kept --one "" --other "--data.prepared off" --set photographs --large

What follows `--` are options of `lit-cnn fit` for both sides; those of `--one` and `--other` are for one of them. A
first pair, with the seed after the last, is a warm-up and does not count. Differences are those of one less the other,
with Student's 95 % interval over seeds; seconds are of training, from the first step to its end. What a training came
to is a line in `build/paired/NAME.jsonl`: the same command goes on where it was stopped. `--set photographs` is the set
of `best_against_peers`; `--large` makes photographs of 4000 x 3000 px of them.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from lit_cnn.evaluation.statistics import mean_std, paired_difference
from tests.benchmarks.common import ROOT, Parts, save_result, workplace
from tests.benchmarks.peers.image_sets import write_set

SIDES = ("one", "other")
LARGE = (4000, 3000)
FIT = ["--config", "data/fashion_mnist_10k", "--model.arch", "resnet18", "--data.image_size", "64"]


def main() -> None:
    """Trains what is missing, prints a table, writes the figures."""
    options = _options()
    parts = Parts(ROOT / "build" / "paired" / f"{options.name}.jsonl")
    given = {side: shlex.split(getattr(options, side)) for side in SIDES}
    photographs = _photographs(options.large) if options.set == "photographs" else []
    seeds = range(options.seeds + 1)
    with workplace():
        os.environ["XDG_CACHE_HOME"] = str(Path.cwd())
        for seed in [seeds[-1], *seeds[:-1]]:
            # Who begins changes: what the first leaves in the machine's caches helps the second.
            for side in SIDES if seed % 2 else SIDES[::-1]:
                name = f"{side} {seed}"
                if name not in parts.found:
                    found = _train([*photographs, *options.fit, *given[side]], seed)
                    parts.add(name, **found)
                    print(name, found, flush=True)
    runs = {side: [parts.found[f"{side} {seed}"] for seed in seeds[:-1]] for side in SIDES}
    figures = _print(options, runs)
    save_result("paired", {"options": vars(options) | {"fit": options.fit}, "runs": runs, **figures})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="image_sizes")
    parser.add_argument("--one", default="--data.image_sizes [32,48,64]")
    parser.add_argument("--other", default="")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", choices=["photographs"])
    parser.add_argument("--large", action="store_true")
    parser.add_argument("fit", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    options.fit = [text for text in options.fit if text != "--"] or ([] if options.set else FIT)
    return options


def _photographs(are_large: bool) -> list[str]:
    """Returns the options of `fit` for a set of photographs, written where it is not there."""
    root = write_set("photographs", ROOT / "build" / "best_against_peers" / "sets" / "photographs")
    pool = next(folder for folder in root.iterdir() if folder.is_dir() and folder.name != "test")
    if are_large:
        large = ROOT / "build" / "paired" / "photographs"
        for file in [] if large.exists() else pool.rglob("*.jpg"):
            place = large.with_suffix(".part") / file.relative_to(pool)
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.open(file).convert("RGB").resize(LARGE, Image.Resampling.BICUBIC).save(place, quality=90)
        if not large.exists():
            large.with_suffix(".part").rename(large)
        pool = large
    return [str(pool)]


def _train(arguments: Sequence[str], seed: int) -> dict[str, Any]:
    """Returns val and test accuracy of a run, and its seconds of training, and its curve."""
    clock = "--trainer.callbacks+=tests.benchmarks.fast_net.Clock"
    command = [sys.executable, "-m", "lit_cnn", "fit", *arguments, f"--seed_everything={seed}", clock]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    (run_id,) = re.findall(r"run ([0-9a-f]{32})", said)
    command = [sys.executable, "-m", "lit_cnn", "report", run_id, "--format", "json"]
    document = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    of_splits = {row["split"]: row["acc"] for row in document["rows"]}
    clocked = json.loads(Path("curve.json").read_text(encoding="utf-8"))
    return {**of_splits, **clocked}


def _print(options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    table = Table(title=f"{options.name}: {options.one or 'plain'} less {options.other or 'plain'}")
    for column in ("", *SIDES, "difference [95 %]"):
        table.add_column(column)
    figures: dict[str, Any] = {}
    for name, scale in (("val", 100.0), ("test", 100.0), ("seconds", 1.0)):
        values = {side: [scale * run[name] for run in runs[side]] for side in SIDES}
        difference = paired_difference(values["one"], values["other"])
        figures[name] = {"difference": list(difference), **values}
        means = [f"{mean_std(values[side]).mean:.2f} ± {mean_std(values[side]).std:.2f}" for side in SIDES]
        table.add_row(name, *means, f"{difference[0]:+.2f} [{difference[1]:+.2f}, {difference[2]:+.2f}]")
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(runs["one"], runs["other"], strict=True)]
    Console(width=120).print(table)
    print(f"seconds, one / other: {sorted(ratios)[len(ratios) // 2]:.3f} [{min(ratios):.3f}, {max(ratios):.3f}]")
    return {**figures, "ratios": ratios}


if __name__ == "__main__":
    main()
