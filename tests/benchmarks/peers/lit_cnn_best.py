"""`lit-cnn best POOL` within the budget, then `lit-cnn predict TEST` with the exported model.

As it comes, but for one thing: of the networks that it would try by itself it is given those that start from the
weights of all tools, or from none. Its own val and test are parts of the pool.
"""

import csv
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.peers.contract import digest_of_weights, finish, read_task
from tests.benchmarks.peers.weights import ARCH

_OF_SMALL_IMAGES = ("airbench", "resnet20")  # those of `lit_cnn.search.candidates`


def main() -> None:
    """Does it."""
    task = read_task()
    archs = [ARCH, *(_OF_SMALL_IMAGES if task.is_small() else ())]
    best = ["best", str(task.pool), f"--budget={task.left():.0f}s", "--archs", *archs, "--output=best"]
    _run(*best, f"--data.split_seed={task.seed}")
    ended = time.monotonic()
    _run("predict", str(task.test), "--model=best/model", "--num_workers=0", "--output=all.csv")
    with Path("all.csv").open(newline="", encoding="utf-8") as file:
        predicted = {Path(row["file"]).name: row["class"] for row in csv.DictReader(file)}
    classes = [predicted[path.name] for path in task.test_files()]
    # It imports torch, for which the budget need not wait.
    from tests.benchmarks.common import commit

    packages = ["torch", "timm", "lightning"]
    finish(task, ended, classes, packages, digest_of_weights(ARCH), commit=commit())
    shutil.rmtree("mlruns")


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "lit_cnn", *arguments], check=True)


if __name__ == "__main__":
    main()
