"""`make determinism`: the same run several times with one seed; prints which came out alike, bit for bit.

Digits, cropped at random and mirrored, with dropout drawn from the step: with 0, 1, 2 and 4 workers, in float32
and in bfloat16, each against the run without workers, which is made twice. On a GPU PyTorch names the operations that
have no deterministic kernel; they are listed.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lit_cnn.training.checkpoints import digest_of_weights
from tests.faults import CONFIG, outcome, start

PRECISIONS = ("32-true", "bf16-mixed")
_NO_KERNEL = re.compile(r"(\S+) does not have a deterministic implementation")


@dataclass
class Compared:
    """A run beside the first of its precision.

    Attributes:
        precision: Lightning's word for it.
        num_workers: Worker processes.
        digest: SHA-256 of the final weights.
        is_same: Whether weights and all logged values are those of the first, bit for bit.
        operations: Those that PyTorch says have no deterministic kernel.
    """

    precision: str
    num_workers: int
    digest: str
    is_same: bool
    operations: tuple[str, ...]


def compare(precision: str, workers: tuple[int, ...], folder: Path, epochs: int = 2) -> Iterator[Compared]:
    """Yields each run but the first, which has no worker processes."""
    reference = None
    for number, num_workers in enumerate((0, *workers)):
        place = folder / f"{precision}_{number}"
        code = start(arguments(precision, num_workers, epochs), place).wait()
        log = (place / "log.txt").read_text(errors="replace")
        if code != 0:
            raise RuntimeError(f"the run with {num_workers} workers ended with {code}: {log[-2000:]}")
        found = outcome(place)
        if reference is None:
            reference = found
            continue
        is_same = found.metrics == reference.metrics and all(
            torch.equal(reference.weights[name], tensor) for name, tensor in found.weights.items()
        )
        operations = tuple(sorted(set(_NO_KERNEL.findall(log))))
        yield Compared(precision, num_workers, digest_of_weights(found.weights)[:16], is_same, operations)


def arguments(precision: str, num_workers: int, epochs: int) -> list[str]:
    """Returns the arguments of one run."""
    return [
        "fit",
        f"--config={CONFIG}",
        f"--trainer.precision={precision}",
        f"--data.num_workers={num_workers}",
        f"--trainer.max_epochs={epochs}",
        "--trainer.deterministic=warn",
        "--data.train_crop=random",
        "--data.augment=[{class_path: albumentations.HorizontalFlip}]",
        "--model.arch=alexnet",
        "--data.image_size=67",
        "--model.arch_options={width: 0.25}",
        "--data.limit_train=300",
        "--data.batch_size=32",
        "--test_after_fit=false",
    ]


def main() -> int:
    """Prints a line for each run, and what is not deterministic; exit code 1 if a run differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS))
    options = parser.parse_args()

    print(f"{'precision':12} {'workers':>7}  {'weights':16}  as without workers")
    differ, operations = 0, set()
    for precision in options.precision:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            for run in compare(precision, tuple(options.num_workers), Path(folder)):
                verdict = "yes, bit for bit" if run.is_same else "NO"
                print(f"{precision:12} {run.num_workers:7}  {run.digest:16}  {verdict}", flush=True)
                differ += not run.is_same
                operations |= set(run.operations)
    # Asked only now: CUDA does not outlive a fork.
    print("on", torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU")
    if operations:
        print("without a deterministic kernel:", ", ".join(sorted(operations)))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
