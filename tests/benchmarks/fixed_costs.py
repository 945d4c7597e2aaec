"""`make bench NAME=fixed_costs`: seconds around training, from Enter to the first step and from the last to the prompt.

    python -m tests.benchmarks.fixed_costs --timm TRAIN_PY

ResNet-18 at 64 px, two epochs over 2,560 PNGs cut out of scikit-learn's photographs, bfloat16, two workers: `lit-cnn
fit`, tracked, with test, report and sending, and timm's own train.py (of its repository, not in its package) with its
fastest options, which writes checkpoints and neither tests nor tracks; whole commands in turn. A step counts when it
is made. `--other CHECKOUT` measures another checkout of lit_cnn too.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.benchmarks.common import ROOT, interleave, report, save_result, workplace

SPLITS = {"train": 2560, "val": 500, "test": 500}
SIZE, BATCH_SIZE, EPOCHS = 64, 64, 2
START, MIDDLE, END, WHOLE = "to the first step", "steps", "from the last step", "whole command"
_FILE = Path("steps.txt")
# A module of its own in the working directory, so that it imports nothing that the command would not.
_CLOCK = """
import time
from torch.optim.optimizer import register_optimizer_step_post_hook

times = []

def note(*_):
    times.append(time.time())
    with open("steps.txt", "w") as file:
        file.write(" ".join(map(str, times)))

register_optimizer_step_post_hook(note)
"""
_CALLBACK = "import steps_clock\nimport lightning.pytorch as pl\n\nclass Clock(pl.Callback):\n    pass\n"
_TIMM = "import steps_clock, runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def clocked(command: Sequence[str], checkout: Path, parts: dict[str, list[float]]) -> float:
    """Runs a command; adds the seconds of its parts, and returns those around its steps."""
    _FILE.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(checkout)])}
    began = time.time()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ended = time.time()
    times = [float(each) for each in _FILE.read_text().split()]
    # lit-cnn rehearses a step before the first; that belongs to its start.
    first, *_, last = times[-EPOCHS * SPLITS["train"] // BATCH_SIZE :]
    seconds = {START: first - began, MIDDLE: last - first, END: ended - last, WHOLE: ended - began}
    for name, value in seconds.items():
        parts.setdefault(name, []).append(value)
    return seconds[START] + seconds[END]


def lit_cnn_command(root: Path) -> list[str]:
    """Returns `lit-cnn fit`."""
    options = {
        "--data.dataset": "image_folder",
        "--data.root": root,
        "--model.arch": "resnet18",
        "--data.image_size": SIZE,
        "--data.batch_size": BATCH_SIZE,
        "--data.num_workers": 2,
        "--data.augment": '[{"class_path": "albumentations.HorizontalFlip"}]',
        "--trainer.max_epochs": EPOCHS,
        "--trainer.precision": "bf16-mixed",
    }
    given = [f"{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "lit_cnn", "fit", *given, "--trainer.callbacks+=clock_callback.Clock"]


def timm_command(train_py: Path, root: Path) -> list[str]:
    """Returns timm's train.py with its fastest options."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = f"""--data-dir {root} --val-split val --model resnet18 --num-classes 10 --input-size 3 {SIZE} {SIZE}
        -b {BATCH_SIZE} -j 2 --epochs {EPOCHS} --sched cosine --warmup-epochs 0 --opt adamw --lr 1e-3 --no-aug
        --hflip 0.5 --amp --amp-dtype bfloat16 --channels-last --device {device} --output output"""
    return [sys.executable, "-c", _TIMM, str(train_py), *options.split()]


def write_images(root: Path) -> None:
    """Writes the three splits as PNGs in a folder for each of ten classes: which is a part of a photograph."""
    photographs, drawn = load_sample_images().images, np.random.default_rng(0)  # (427, 640, 3) each
    for split, count in SPLITS.items():
        for number in range(count):
            label = number % 10
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True, exist_ok=True)
            top, left = drawn.integers(0, 427 - SIZE + 1), label // 2 * 120 + drawn.integers(0, 120 - SIZE + 1)
            square = photographs[label % 2][top : top + SIZE, left : left + SIZE]
            Image.fromarray(np.ascontiguousarray(square)).save(folder / f"{number:05}.png")


def main() -> None:
    """Prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timm", type=Path, required=True, help="timm's train.py")
    parser.add_argument("--other", type=Path, help="another checkout of lit_cnn")
    options = parser.parse_args()
    train_py = options.timm.resolve()
    checkouts = {"lit-cnn fit": ROOT, **({"other": options.other.resolve()} if options.other else {})}
    parts: dict[str, dict[str, list[float]]] = {}
    with workplace():
        Path("steps_clock.py").write_text(_CLOCK, encoding="utf-8")
        Path("clock_callback.py").write_text(_CALLBACK, encoding="utf-8")
        root = Path("images").absolute()
        write_images(root)
        commands = {name: (lit_cnn_command(root), checkout) for name, checkout in checkouts.items()}
        commands["timm"] = (timm_command(train_py, root), ROOT)
        sides = {}
        for name, (command, checkout) in commands.items():
            sides[name] = partial(clocked, command, checkout, parts.setdefault(name, {}))
        measured = interleave(sides, options.rounds)
    figures = report(__doc__.splitlines()[0], measured, "seconds around the steps", ("timm", "lit-cnn fit"), 1.0)
    of_parts = {f"{name}, {part}": values[1:] for name, of in parts.items() for part, values in of.items()}
    for name, values in of_parts.items():
        print(f"{name}: {sorted(values)[len(values) // 2]:.2f} [{min(values):.2f}, {max(values):.2f}]")
    save_result("fixed_costs", {**figures, "parts": of_parts})


if __name__ == "__main__":
    main()
