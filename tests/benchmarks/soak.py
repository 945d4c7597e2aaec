"""`make bench NAME=soak`: what a long run does to memory, open files and threads, looked at from outside.

`lit-cnn fit` trains LeNet-5 on digits, 500 epochs of 40 steps with two workers, validated every epoch and tracked. At
the end of each epoch the memory of all its processes is taken, worker processes and the sender included. What starts up
in the first quarter is no growth: the slope is that of the rest. Samples that follow each other are alike (the
allocator gives some MiB back to the system at once, and takes them again much later), so the slope's 95 % interval is
of a covariance that allows for that (Newey and West 1987, with a tenth of the samples as lags).
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import statsmodels.api as sm

from tests.benchmarks.common import ROOT, processor, save_result, workplace

STEPS, BATCH_SIZE = 40, 24
LARGEST_GROWTH = 0.05  # over the whole run, as a share of the memory: less is called flat


@dataclass(frozen=True)
class Sample:
    """The processes of the run at the end of an epoch.

    Attributes:
        epoch: Counted from 1.
        memory: MiB of each part: `fit`, `workers`, `sender`.
        files: Open files, of all parts together.
        threads: Likewise.
    """

    epoch: int
    memory: dict[str, float]
    files: int
    threads: int

    @property
    def total(self) -> float:
        """MiB of all parts."""
        return sum(self.memory.values())


def soak(epochs: int, num_workers: int) -> list[Sample]:
    """Trains, and returns a sample for each epoch but the last, at whose end processes begin to leave.

    Raises:
        RuntimeError: If the run fails.
    """
    arguments = [
        f"--config={ROOT / 'configs' / 'experiment' / 'lenet5_scratch_digits.yaml'}",
        f"--data.limit_train={STEPS * BATCH_SIZE}",
        f"--data.batch_size={BATCH_SIZE}",
        f"--data.num_workers={num_workers}",
        f"--trainer.max_epochs={epochs}",
    ]
    command = [sys.executable, "-m", "lit_cnn", "fit", *arguments]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert run.stderr is not None
    samples, last_lines = [], deque[str](maxlen=20)
    for line in run.stderr:
        last_lines.append(line)
        epoch = re.match(r"epoch (\d+)/", line)
        if epoch and int(epoch[1]) < epochs:
            samples.append(_sample(int(epoch[1]), psutil.Process(run.pid)))
        if epoch and int(epoch[1]) % 25 == 0:
            print(f"{line.rstrip()}  {samples[-1].total:.1f} MiB", file=sys.stderr, flush=True)
    if run.wait() != 0:
        raise RuntimeError(f"lit-cnn fit ended with {run.returncode}:\n{''.join(last_lines)}")
    return samples


def slope(epochs: Sequence[int], values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the least squares' slope per epoch and its 95 % interval, by Newey and West's covariance."""
    lags = max(1, len(values) // 10)
    fit = sm.OLS(np.asarray(values), sm.add_constant(np.asarray(epochs, float))).fit(
        cov_type="HAC", cov_kwds={"maxlags": lags, "use_correction": True}, use_t=True
    )
    low, high = fit.conf_int()[1]
    return float(fit.params[1]), float(low), float(high)


def main() -> int:
    """Prints the slopes, open files and threads, and whether it is flat; writes all samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--num_workers", type=int, default=2)
    options = parser.parse_args()
    with workplace():
        samples = soak(options.epochs, options.num_workers)
    settled = samples[len(samples) // 4 :]
    series = {part: [sample.memory[part] for sample in settled] for part in settled[0].memory}
    series["all"] = [sample.total for sample in settled]
    slopes = {name: slope([sample.epoch for sample in settled], values) for name, values in series.items()}
    print(f"{options.epochs} epochs of {STEPS} steps, {options.num_workers} workers; {processor()}")
    for name, (value, low, high) in slopes.items():
        print(
            f"{name:8} memory {series[name][0]:8.1f} MiB at epoch {settled[0].epoch}, {series[name][-1]:8.1f} at "
            f"{settled[-1].epoch}; slope {value:+.4f} [{low:+.4f}, {high:+.4f}] MiB an epoch"
        )
    # The sender opens and closes files as it works: the middle of ten epochs at either end.
    files, threads = (
        [statistics.median(getattr(sample, name) for sample in end) for end in (settled[:10], settled[-10:])]
        for name in ("files", "threads")
    )
    print(f"open files {files[0]:g} -> {files[1]:g}, threads {threads[0]:g} -> {threads[1]:g}")
    growth = slopes["all"][2] * options.epochs / series["all"][0]
    is_flat = growth <= LARGEST_GROWTH and files[1] <= files[0] and threads[1] <= threads[0]
    print(
        f"{'flat' if is_flat else 'NOT flat'}: at the interval's upper end {growth:.1%} of the memory in "
        f"{options.epochs} epochs; flat is at most {LARGEST_GROWTH:.0%}, and no more open files or threads"
    )
    save_result("soak", {"unit": "MiB", "slopes": slopes, "samples": [vars(sample) for sample in samples]})
    return 0 if is_flat else 1


def _sample(epoch: int, fit: psutil.Process) -> Sample:
    parts: dict[str, list[psutil.Process]] = {"fit": [fit], "workers": [], "sender": []}
    for child in fit.children(recursive=True):
        parts["sender" if "lit_cnn.tracking.sender" in child.cmdline() else "workers"].append(child)
    memory = {part: sum(map(_memory, processes)) for part, processes in parts.items()}
    everyone = [process for processes in parts.values() for process in processes]
    files, threads = (sum(getattr(one, name)() for one in everyone) for name in ("num_fds", "num_threads"))
    return Sample(epoch, memory, files, threads)


def _memory(process: psutil.Process) -> float:
    """The proportional set size in MiB, without that of files; see tests/benchmarks/data_workers.py."""
    rows = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith(("Pss_Anon", "Pss_Shmem"))) / 1024


if __name__ == "__main__":
    sys.exit(main())
