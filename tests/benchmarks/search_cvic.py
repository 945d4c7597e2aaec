"""`make bench NAME=search_cvic`: trials an hour of `lit-cnn tune`, and of cvic's `tunic`, which has a process a trial.

ResNet-10-t from random weights on the digits at 32 px, batches of 64, random draws of learning rate, weight decay and
label smoothing, nothing pruned, two trials at once, a core each. cvic (Ray Tune, Optuna, timm) takes timm's networks
alone, so this is not the LeNet-5 of `search`; its other options are held where they do nothing. The commands as a whole
are clocked, without a training of the winner; rounds alternate. It needs Python 3.12:

    python3.12 -m venv build/search_cvic/cvic && build/search_cvic/cvic/bin/pip install cvic==1.2.4

What a round came to is a line in `build/search_cvic/parts.jsonl`; the same command goes on where it was stopped.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lit_cnn.data.datamodule import ImageDataModule
from tests.benchmarks.common import ROOT, Parts, report, save_result

AIM = 1.5
ARCH, BATCH_SIZE, SIDE = "resnet10t", 64, 32
_SPACE = """\
model.lr: {low: 0.0001, high: 0.1, log: true}
model.weight_decay: {low: 0.0001, high: 0.3, log: true}
model.label_smoothing: {low: 0.0, high: 0.2}
"""
_SPACE_OF_CVIC = """\
{lr_min: 0.0001, lr_max: 0.1, wd_min: 0.0001, wd_max: 0.3, ls_min: 0.0, ls_max: 0.2, dr_min: 0.0, dr_max: 0.0001,
 ra_mag_min: 0, ra_mag_max: 0, ra_ops_min: 1, ra_ops_max: 1, mixup_min: 0.0, mixup_max: 0.0001, cutmix_min: 0.0,
 cutmix_max: 0.0001, optimizers: [AdamW]}
"""


def main() -> None:
    """Runs what is missing, prints a table, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "search_cvic")
    parser.add_argument("--tunic", type=Path, help="the program; default: cvic/bin/tunic in the folder")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    options.tunic = (options.tunic or options.folder / "cvic" / "bin" / "tunic").absolute()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    os.environ["PYTHONPATH"] = str(ROOT)
    Path("space.yaml").write_text(_SPACE, encoding="utf-8")
    Path("space_of_cvic.yaml").write_text(_SPACE_OF_CVIC, encoding="utf-8")
    if not Path("digits").exists():
        _write_digits(Path("digits"))
    parts, sides = Parts(Path("parts.jsonl")), {"lit-cnn tune": tune, "cvic": cvic}
    measured: dict[str, list[float]] = {name: [] for name in sides}
    best: dict[str, list[float]] = {name: [] for name in sides}
    for seed in range(options.rounds):
        for name, run in sides.items():
            part = f"{options.trials}x{options.epochs} {seed} {name}"
            found = parts.found.get(part) or parts.add(part, **run(options, seed))
            print(f"{part}: {found['seconds']:.0f} s, best {100 * found['best']:.2f} %", flush=True)
            measured[name].append(3600 * options.trials / found["seconds"])
            best[name].append(found["best"])
    title = f"trials an hour, {options.trials} of {options.epochs} epochs, two at once"
    figures = report(title, measured, "trials per hour", ("lit-cnn tune", "cvic"), AIM)
    save_result("search_cvic", {**figures, "best": best})


def tune(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Returns the seconds of `lit-cnn tune`, and the best accuracy on val."""
    run = {"model.arch": ARCH, "model.schedule": "one_cycle", "data.image_size": SIDE, "data.batch_size": BATCH_SIZE}
    run |= {"data.augment": "[]", "trainer.max_epochs": options.epochs, "data.num_workers": 0}
    how = [f"--trials={options.trials}", "--parallel=2", "--sampler=random", "--pruner=none", f"--seed={seed}"]
    command = ["tune", "--config=lenet5_scratch_digits", "--search=space.yaml", "--final_seeds=0", *how]
    began = time.monotonic()
    _run([sys.executable, "-m", "lit_cnn", *command, *(f"--{name}={value}" for name, value in run.items())])
    seconds = time.monotonic() - began
    rows = json.loads(Path("search/trials.json").read_text(encoding="utf-8"))["trials"]
    return {"seconds": seconds, "best": max(row["value"] for row in rows if row["value"] is not None)}


def cvic(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Returns the seconds of `tunic`, and the best accuracy on val."""
    run = {"data": "digits", "model": ARCH, "img-size": SIDE, "batch-size": BATCH_SIZE, "workers": 1, "prefix": "tunic"}
    run |= {"n-trials": options.trials, "epochs": options.epochs, "sampler": "random", "scheduler": "none"}
    run |= {"seed": seed, "search-space": "space_of_cvic.yaml", "tune-metric": "val_acc"}
    command = [str(options.tunic), "--cpu", "--no-pretrained", "--no-final"]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        # A Ray of its own, not one that happens to run on this machine.
        variables = {"RAY_ADDRESS": "local", "RAY_TMPDIR": folder}
        _run([*command, *(f"--{name}={value}" for name, value in run.items())], **variables)
    seconds = time.monotonic() - began
    found = json.loads(Path("tunic.json").read_text(encoding="utf-8"))
    assert found["completed_trials"] == options.trials, found
    return {"seconds": seconds, "best": found["best_val_acc"]}


def _run(command: list[str], **variables: str) -> None:
    try:
        subprocess.run(command, env={**os.environ, **variables}, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        print(error.stderr[-3000:], file=sys.stderr)
        raise


def _write_digits(folder: Path) -> None:
    """Writes train and val of the split that `lit-cnn tune` has, in folders of classes."""
    data = ImageDataModule("digits")
    for split in ("train", "val"):
        for place in getattr(data.splits, split):
            name = data.image_set.class_names[data.image_set.labels[place]]
            file = folder / split / name / f"{place:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.squeeze(data.image_set.images[int(place)])).convert("RGB").save(file)


if __name__ == "__main__":
    main()
