"""Worker processes over many epochs, and when their run is killed. Their batches: test_datamodule.py."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lit_cnn.cli.spelling import spelling_of
from lit_cnn.core.errors import UsageError
from lit_cnn.data.batches import Batches
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.evaluation.predict import Loading, ViewImages, forward_batches
from tests.benchmarks.data_workers import left_after
from tests.data.test_datamodule import epochs_of
from tests.runs import ROOT


@pytest.mark.parametrize("image_size", [16, 128], ids=["pipe", "shared memory"])
def test_epochs_leave_no_file_open(image_size: int) -> None:
    data = ImageDataModule(image_size=image_size, batch_size=64, num_workers=2, limit_train=256)
    loader = data.train_dataloader()
    before = set(psutil.Process().children())
    counts = []
    for epoch in range(4):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for _ in loader:
            pass
        workers = sorted(set(psutil.Process().children()) - before, key=lambda process: process.pid)
        counts.append([process.num_fds() for process in (psutil.Process(), *workers)])
    loader._iterator = None  # persistent workers end with their iterator
    assert len(counts[0]) == 3 and counts[1:] == counts[1:2] * 3


def test_workers_end_with_their_iterator() -> None:
    before = set(psutil.Process().children())
    epochs_of(ImageDataModule(image_size=16, num_workers=2, limit_train=256).train_dataloader(), 1)
    _, alive = psutil.wait_procs(set(psutil.Process().children()) - before, 10)
    assert not alive


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_mistake_in_a_worker_is_spelt_as_any_other(num_workers: int, tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number % 2}").mkdir(exist_ok=True)
        Image.new("L", (30, 30 + number)).save(tmp_path / f"{number % 2}" / f"{number}.png")
    data = ImageDataModule("image_folder", str(tmp_path), num_workers=num_workers, batch_size=1, max_pixels=899)
    seen = {"image_size": 8, "interpolation": "area", "crop_pct": 1.0}
    views = ViewImages(data.image_set.images, np.arange(12), seen)
    for read in (
        lambda: list(data.train_dataloader()),
        lambda: list(data.test_dataloader()),
        lambda: list(forward_batches(lambda batch: batch.float(), views, Loading(1, num_workers))),
    ):
        with pytest.raises(UsageError) as raised:
            read()
        line = raised.value.in_words(spelling_of("fit"))
        assert line.startswith(str(tmp_path)) and "\n" not in line
        assert "(it has more pixels than --data.max_pixels 899)" in line


class ThreadsOfOpenCV(Dataset[torch.Tensor]):
    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(cv2.getNumThreads())


def test_opencv_has_one_thread_in_a_worker() -> None:
    start = ImageDataModule(num_workers=2).train_dataloader().worker_init_fn
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)  # what a worker would have from its parent
    try:
        loader = DataLoader(ThreadsOfOpenCV(), sampler=range(4), num_workers=2, worker_init_fn=start)
        assert [int(threads) for threads in loader] == [1] * 4
    finally:
        cv2.setNumThreads(before)


def test_a_worker_ends_at_its_readers_word_and_at_no_other() -> None:
    start = ImageDataModule(num_workers=2).train_dataloader().worker_init_fn
    images: Any = ThreadsOfOpenCV()
    batches: Any = iter(Batches(images, sampler=range(4), num_workers=1, worker_init_fn=start))
    next(batches)
    (worker,) = batches._workers
    for name in ("TERM", "INT", "HUP", "USR1"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    time.sleep(1.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


STUCK = """
import ctypes
import time
from torch.utils.data import Dataset
from lit_cnn.data.batches import Batches, start_worker

class Stuck(Dataset):
    def __getitem__(self, index):
        if index:
            time.sleep(1)  # the first is sent by another thread
            ctypes.PyDLL(None).pause()  # keeps the interpreter's lock
        return index

batches = iter(Batches(Stuck(), sampler=range(9), num_workers=1, worker_init_fn=start_worker, prefetch_factor=2))
print(int(next(batches)), batches._workers[0].pid, flush=True)
time.sleep(2)
"""


def test_a_worker_that_is_stuck_in_native_code_does_not_keep_its_run_from_ending() -> None:
    done = subprocess.run([sys.executable, "-c", STUCK], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert has_ended(int(done.stdout.split()[1]))


def has_ended(pid: int, seconds: float = 5.0) -> bool:
    """Whether it ends within seconds. One that no init process reaps, as in a plain container, stays as a zombie."""
    for _ in range(int(seconds * 20)):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


HELD = """
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.evaluation.predict import Loading, ViewImages, forward_batches

loader = ImageDataModule(image_size=16, num_workers=2, limit_train=256).train_dataloader()
for _ in loader:
    pass
"""


def test_a_script_that_keeps_its_loader_ends_without_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1], ids=lambda one: one.name
)
@pytest.mark.parametrize("to_group", [False, True], ids=["to the process", "to its group"])
def test_no_worker_is_left_ten_seconds_after_a_run(number: signal.Signals, to_group: bool) -> None:
    left = left_after(number, "lenet5_scratch_digits.yaml", to_group=to_group)
    assert left["workers"] == 2 and left["workers_left"] == 0
    assert left["exit_code"] == (-number if number == signal.SIGKILL else 128 + number)


GROWTH = """
import json
from tests.benchmarks.data_workers import growth

print(json.dumps(growth(28, 12)["memory"]))
"""


@pytest.mark.slow
@pytest.mark.debian
def test_memory_stays_as_it_is_over_epochs() -> None:
    # In a process of its own. One full of other tests' objects shares them with the workers it forks, and a collection
    # of garbage in the midst of the epochs writes to them: each page of them is there twice from then on.
    done = subprocess.run([sys.executable, "-c", GROWTH], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    memory = json.loads(done.stdout)
    assert memory[-1] - memory[5] < 2  # MiB; an epoch of images is 10
