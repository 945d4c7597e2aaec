"""`make bench NAME=gpu`, or `make gpu`: what there is to measure on a GPU, in eight minutes at the most.

A training step against a plain one, loaders of photographs that feed it, whole commands against timm's train.py (where
`--timm` says where that is), the same run again bit for bit, and with Fashion-MNIST (Debian's dataset-fashion-mnist)
the fast net and evaluation with many crops. One after the other, each a benchmark that writes its own result; what
there is no time for is named. On a machine without a GPU it says so and ends.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lit_cnn.core.errors import UsageError
from lit_cnn.data.sources import load_fashion_mnist
from tests.benchmarks.common import ROOT, save_result

SECONDS = 480.0


def jobs(timm: Path | None) -> dict[str, str]:
    """Returns what to run, the most telling first: name -> module and arguments."""
    found = {
        "training step": "train_step --rounds 3 --seconds 1 --nets resnet18 resnet50 lenet5",
        "photographs": "prepared --images 96 --arch resnet50 --size 224 --batch_size 64 --num_workers 8 --rounds 3",
        "determinism": "determinism --num_workers 0 4 --precision bf16-mixed",
    }
    if timm is not None:
        found["whole commands"] = f"fixed_costs --timm {shlex.quote(str(timm.resolve()))} --rounds 3"
    try:
        load_fashion_mnist()
    except UsageError as error:
        print(f"left out: fast net, evaluation; {error.reason}")
    else:
        found |= {"fast net": "fast_net --seeds 2", "evaluation": "evaluation --rounds 3"}
    return found


def main() -> int:
    """Runs them, prints what each prints, writes how each ended; exit code 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timm", type=Path, help="timm's train.py, of its repository")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it")
    parser.add_argument("--on_cpu", action="store_true", help="to try the script itself")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.on_cpu:
        print("no GPU on this machine; --on_cpu runs the same here", file=sys.stderr)
        return 2
    ends, ended = time.monotonic() + options.seconds, dict[str, dict[str, Any]]()
    for name, line in jobs(options.timm).items():
        began = time.monotonic()
        module = f"tests.{line}" if name == "determinism" else f"tests.benchmarks.{line}"
        print(f"\n== {name}: python -m {module}", flush=True)
        command = [sys.executable, "-m", *shlex.split(module)]
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        try:
            code = process.wait(max(1, ends - began))
            how = "done" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            how = "no time left"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with those that it has started
            process.wait()
        ended[name] = {"how": how, "seconds": round(time.monotonic() - began, 1)}
        print(f"== {name}: {how}, {ended[name]['seconds']} s", flush=True)
    save_result("gpu", ended)
    return int(any(each["how"].startswith("exit") for each in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
