"""`make bench NAME=data_workers`: what worker processes do to draws, memory and open files, and how they end.

The same image 64 times, drawn by any number of workers; 30 epochs of Fashion-MNIST (needs the Debian package
dataset-fashion-mnist) with two that persist; signals to `lit-cnn fit` with two.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations
import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import linregress, t
from torch.utils.data import DataLoader, Dataset

from lit_cnn.data.batches import Batch, TrainImages, pack_batch, start_worker
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.sampling import TrainBatches
from lit_cnn.data.sources import ArrayImages, ImageSet
from lit_cnn.data.transforms import TrainTransform
from tests.benchmarks.common import ROOT, save_result

COPIES, BATCH = 64, 16
TURN: dict[str, Any] = {"rotate": [-30, 30], "scale": [0.8, 1.2], "p": 1.0}
FIRST_EPOCH = 5  # the growth of memory is measured from here on


class PlainCopies(Dataset[torch.Tensor]):
    """An ordinary data set of albumentations: one image an item, drawn from the stream of its process."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.compose = albumentations.Compose([albumentations.Affine(**TURN)])

    def __len__(self) -> int:
        return COPIES

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.compose(image=self.image)["image"])


def our_draws(num_workers: int) -> list[list[bytes]]:
    """Returns what becomes of 64 copies of an image in each of two epochs."""
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    copies = ImageSet(
        name="copies",
        source="made",
        images=ArrayImages(np.stack([image] * COPIES)),
        labels=np.zeros(COPIES, np.int64),
        class_names=("one",),
        paths=[str(index) for index in range(COPIES)],
        hashes=["same"] * COPIES,
        in_channels=3,
    )
    augment = [{"class_path": "albumentations.Affine", "init_args": TURN}]
    images = TrainImages(copies, np.arange(COPIES), TrainTransform(24, augment=augment), seed=0)
    batches = TrainBatches(COPIES, BATCH, 0)
    loader: DataLoader[Batch] = DataLoader(
        images, batch_sampler=batches, num_workers=num_workers, collate_fn=pack_batch, worker_init_fn=start_worker
    )
    drawn = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        drawn.append([view.numpy().tobytes() for views, _ in loader for view in views])
    return drawn


def plain_draws(num_workers: int) -> list[list[bytes]]:
    """Returns the same of the ordinary set-up."""
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    loader = DataLoader(PlainCopies(image), batch_size=BATCH, num_workers=num_workers)
    return [[view.numpy().tobytes() for views in loader for view in views] for _ in range(2)]


def distinct_draws(numbers: Sequence[int]) -> dict[str, Any]:
    """Counts the distinct draws of one epoch of 64 and of two, and compares them between numbers of workers."""
    found: dict[str, Any] = {}
    table = Table(title="Distinct draws of one image: of 64 in an epoch, of 128 in two")
    for column in ("workers", "lit_cnn", "plain albumentations", "lit_cnn: the same as without workers"):
        table.add_column(column)
    for number in numbers:
        ours, plain = our_draws(number), plain_draws(number)
        counts = [(len(set(drawn[0])), len(set(drawn[0] + drawn[1]))) for drawn in (ours, plain)]
        found[str(number)] = {
            "lit_cnn": counts[0],
            "plain": counts[1],
            "digest": hashlib.sha256(b"".join(ours[0] + ours[1])).hexdigest(),
        }
        same = found[str(number)]["digest"] == found[str(numbers[0])]["digest"]
        table.add_row(str(number), *(f"{one}, {two}" for one, two in counts), str(same))
    Console(width=100).print(table)
    return found


def growth(image_size: int, epochs: int) -> dict[str, Any]:
    """Returns the growth of memory of this process and two workers in MiB per epoch, and its open files.

    The slope is of least squares from the fifth epoch on, with its 95 % interval.
    """
    pad = {"class_path": "albumentations.Pad", "init_args": {"padding": 4}}
    crop = {"class_path": "albumentations.RandomCrop", "init_args": {"height": image_size, "width": image_size}}
    data = ImageDataModule(
        "fashion_mnist", image_size=image_size, batch_size=128, num_workers=2, augment=[pad, crop], limit_train=12800
    )
    loader = data.train_dataloader()
    memory, files = [], []
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for _ in loader:
            pass
        # Not every child: what else this process has started may be ending just now.
        workers = loader._iterator._workers  # type: ignore[union-attr]
        processes = [psutil.Process(), *(psutil.Process(worker.pid) for worker in workers)]
        memory.append(sum(map(_memory, processes)))
        files.append(sum(process.num_fds() for process in processes))
    fit = linregress(np.arange(FIRST_EPOCH, epochs), memory[FIRST_EPOCH:])
    margin = t.ppf(0.975, epochs - FIRST_EPOCH - 2) * fit.stderr
    loader._iterator = None  # persistent workers end with their iterator
    return {"image_size": image_size, "slope": fit.slope, "margin": margin, "memory": memory, "files": files}


def _memory(process: psutil.Process) -> float:
    """The proportional set size in MiB: what processes share counts once.

    Without that of files: other programs share torch's libraries, and what is theirs becomes ours when they end.
    """
    rows = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith(("Pss_Anon", "Pss_Shmem"))) / 1024


def left_after(
    number: signal.Signals, experiment: str, seconds: float = 10.0, to_group: bool = False
) -> dict[str, Any]:
    """Sends a signal to `lit-cnn fit` with two workers; returns what of it is there so long after its end.

    With `to_group` the workers get the signal too, as from a terminal or a batch system.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        arguments = [
            f"--config={ROOT / 'configs' / 'experiment' / experiment}",
            "--data.batch_size=128",  # more than a pipe holds: a worker waits for its reader in the midst of a batch
            "--data.num_workers=2",
            "--trainer.max_epochs=1000",
            "--checkpoint_seconds=0.5",
        ]
        run = subprocess.Popen(
            [sys.executable, "-m", "lit_cnn", "fit", *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not list(Path(folder).rglob("last.ckpt")):
            if run.poll() is not None:
                raise RuntimeError(f"lit-cnn fit ended with {run.returncode}")
            time.sleep(0.2)
        children = psutil.Process(run.pid).children(recursive=True)
        workers = [child for child in children if "lit_cnn.tracking.sender" not in child.cmdline()]
        (os.killpg if to_group else os.kill)(run.pid, number)
        code = run.wait(60)
        _, alive = psutil.wait_procs(children, seconds)
        # A dead process whose adopter has not asked after it is none.
        alive = [child for child in alive if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        left = {"exit_code": code, "workers": len(workers), "workers_left": sum(child in workers for child in alive)}
        left["sender_left"] = len(alive) - left["workers_left"]
        for child in alive:
            child.kill()
        return left


def main() -> None:
    """Prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create 4 worker processes")
        draws = distinct_draws([0, 2, 4])
    growths = [growth(28, options.epochs), growth(64, options.epochs)]  # through the pipe, and in shared memory
    for found in growths:
        print(
            f"{found['image_size']} px, {options.epochs} epochs: memory grows by {found['slope']:+.3f} ± "
            f"{found['margin']:.3f} MiB an epoch (target: 0.2 at most), from {found['memory'][FIRST_EPOCH]:.0f} MiB; "
            f"open files {min(found['files'][1:])} to {max(found['files'][1:])}"
        )
    endings = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
        endings[number.name] = left = left_after(number, "lenet5_scratch_fashion_mnist.yaml")
        print(
            f"{number.name}: exit code {left['exit_code']}; 10 s later {left['workers_left']} of {left['workers']} "
            f"workers alive, {left['sender_left']} sender (which brings to MLflow what a killed run left)"
        )
    save_result("data_workers", {"draws": draws, "growth": growths, "signals": endings})


if __name__ == "__main__":
    main()
