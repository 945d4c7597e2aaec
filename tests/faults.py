"""Fault injection: `make faults` kills training runs and takes their tracking server away; compares what comes out.

Each try is a real process that gets a real SIGKILL, started by tests/forks.py.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lit_cnn.core.errors import UsageError
from lit_cnn.tracking.journal import read_journal
from lit_cnn.training.checkpoints import load_checkpoint
from tests import forks
from tests.hosts import ON_TWO_HOSTS, Host, two_hosts
from tests.outages import FAULTS, UNDISTURBED, outages

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "experiment" / "lenet5_scratch_digits.yaml"
# What happens to which of two hosts, and whether they share a folder.
HOST_FAULTS: dict[str, tuple[Callable[[Host], None], int, bool]] = {
    "kill -9 of the second host": (Host.kill, 1, False),
    "the same, shared folder": (Host.kill, 1, True),
    "kill -9 of the first host": (Host.kill, 0, False),
    "the second host is cut off": (Host.unplug, 1, False),
}


@dataclass
class Outcome:
    """What a run left behind.

    Attributes:
        weights: The final state dict.
        metrics: Every logged value by (name, step); clocks left out.
        duplicates: How many (name, step) pairs were logged more than once.
    """

    weights: dict[str, torch.Tensor]
    metrics: dict[tuple[str, int], float]
    duplicates: int


def fit_arguments(num_workers: int, epochs: int, images: int) -> list[str]:
    """Returns the arguments of a short run with several steps per epoch and a checkpoint every 50 ms."""
    return [
        "fit",
        f"--config={CONFIG}",
        f"--data.num_workers={num_workers}",
        f"--trainer.max_epochs={epochs}",
        f"--data.limit_train={images}",
        "--data.batch_size=16",
        "--checkpoint_seconds=0.05",
        "--trainer.log_every_n_steps=1",
        "--test_after_fit=false",
        "--resume=auto",
    ]


def start(arguments: list[str], folder: Path) -> forks.Forked:
    """Starts `lit-cnn` in a folder, which gets a `log.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        return forks.start(*arguments, cwd=folder, log=log.fileno())


def kill_at_random(arguments: list[str], folder: Path, rng: random.Random, longest: float) -> None:
    """Runs until a random moment after the run's first checkpoint, then kills."""
    process = start(arguments, folder)
    wait_until(lambda: has_checkpoint(folder))
    time.sleep(rng.uniform(0, longest))
    process.kill()
    process.wait()


def has_checkpoint(folder: Path) -> bool:
    """Whether the run in a folder has written its first `last.ckpt`."""
    return any(folder.glob("mlruns/journal/*/last.ckpt"))


def is_unfinished(folder: Path) -> bool:
    """Whether the run in a folder has not come to its end."""
    return any(folder.glob("mlruns/journal/*/unfinished.json"))


def wait_until(holds: Callable[[], object], timeout: float = 120) -> None:
    """Returns as soon as a condition holds.

    Raises:
        TimeoutError: If it does not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s in vain")
        time.sleep(0.005)


def outcome(folder: Path) -> Outcome:
    """Reads the final weights and all logged values of the one run in a folder."""
    (run_folder,) = [path.parent for path in folder.glob("mlruns/journal/*/last.ckpt")]
    metrics: dict[tuple[str, int], float] = {}
    duplicates = 0
    for record, _ in read_journal(run_folder):
        if record["kind"] != "metrics":
            continue
        for name, value in record["values"].items():
            duplicates += (name, record["step"]) in metrics
            if not name.startswith(("time/", "data/")):
                metrics[name, record["step"]] = value
    return Outcome(load_checkpoint(run_folder / "last.ckpt")["state_dict"], metrics, duplicates)


def same(one: Outcome, other: Outcome) -> bool:
    """Whether weights and logged values are identical, bit for bit, and none was logged twice."""
    weights = one.weights.keys() == other.weights.keys() and all(
        torch.equal(one.weights[name], other.weights[name]) for name in one.weights
    )
    return weights and one.metrics == other.metrics and one.duplicates == other.duplicates == 0


def why_lost(reference: Outcome, place: Path, code: int) -> str:
    """Returns in what a resumed run differs from the uninterrupted one; empty if in nothing."""
    if code != 0:
        return f"exit code {code}"
    try:
        found = outcome(place)
    except (UsageError, ValueError) as error:
        return str(error)
    if same(reference, found):
        return ""
    keys = reference.metrics.keys() | found.metrics.keys()
    other = sorted(key for key in keys if reference.metrics.get(key) != found.metrics.get(key))
    return f"{found.duplicates} values logged twice, {len(other)} values differ, the first of them {other[:5]}"


def uninterrupted(arguments: list[str], place: Path) -> float:
    """Runs to the end; returns the seconds from the run's first checkpoint to its end."""
    process = start(arguments, place)
    wait_until(lambda: has_checkpoint(place))
    began = time.monotonic()
    wait_until(lambda: not is_unfinished(place))
    seconds = time.monotonic() - began
    if (code := process.wait()) != 0:
        raise RuntimeError(f"the uninterrupted run ended with {code}: see {place / 'log.txt'}")
    return seconds


def kills(
    tries: int, num_workers: int, folder: Path, seed: int = 0, epochs: int = 4, images: int = 400
) -> Iterator[bool]:
    """Yields for each try whether a run that was killed once or twice came out as the uninterrupted one did."""
    arguments = fit_arguments(num_workers, epochs, images)
    longest = uninterrupted(arguments, folder / "reference")
    reference = outcome(folder / "reference")
    rng = random.Random(seed)
    done = attempts = 0
    while done < tries:
        attempts += 1
        place = folder / f"try{attempts}"
        for _ in range(rng.choice((1, 1, 2))):
            kill_at_random(arguments, place, rng, longest)
            if not is_unfinished(place):
                break
        if not is_unfinished(place):
            continue  # came to its end before a kill: the next launch would rightly start anew
        code = start(arguments, place).wait()
        done += 1
        reason = why_lost(reference, place, code)
        if reason:
            log = (place / "log.txt").read_text(errors="replace")[-2000:]
            print(f"lost in {place.name}: {reason}\n{log}", file=sys.stderr, flush=True)
        yield not reason


def host_faults(fault: Callable[[Host], None], rank: int, shares: bool, tries: int, folder: Path) -> Iterator[bool]:
    """Yields for each try whether a run on two hosts came out as an undisturbed one after one of them was gone.

    Args:
        fault: What happens to the host.
        rank: Which.
        shares: Whether both have the same folder.
        tries: How often.
        folder: For the runs.
    """
    common = [*fit_arguments(0, 4, 400), *ON_TWO_HOSTS]
    rng = random.Random(rank)
    with two_hosts() as hosts:

        def both(place: Path) -> list[forks.Forked]:
            places = [place / "shared"] * 2 if shares else [place / "first", place / "second"]
            for each in places:
                each.mkdir(parents=True, exist_ok=True)
            return [host.start(*common, cwd=each) for host, each in zip(hosts, places, strict=True)]

        first = "shared" if shares else "first"
        if [each.wait() for each in both(folder / "reference")] != [0, 0]:
            raise RuntimeError(f"the undisturbed run failed: see {folder}")
        reference = outcome(folder / "reference" / first)
        done = attempts = 0
        while done < tries:
            attempts += 1
            place = folder / f"try{attempts}"
            running = both(place)
            wait_until(partial(has_checkpoint, place / first))
            time.sleep(rng.uniform(0, 0.5))
            fault(hosts[rank])
            began = time.monotonic()
            code, seconds = running[1 - rank].wait(), time.monotonic() - began
            running[rank].wait()
            hosts[rank].plug_in()
            if not is_unfinished(place / first):
                continue  # it came to its end before
            codes = [each.wait() for each in both(place)]
            done += 1
            reason = why_lost(reference, place / first, max(codes))
            if reason or code != 1 or seconds > 30:
                print(f"lost in {place.name}: {code} after {seconds:.0f} s; {reason}", file=sys.stderr, flush=True)
            yield not reason and code == 1 and seconds <= 30


def main() -> int:
    """Prints one table: fault, tries, survived, lost; of outages the worst stall and the latest warning, in seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=20, help="kills per number of workers")
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--outages", type=int, default=2, help="tries of each outage of the tracking server")
    parser.add_argument("--outage_seconds", type=float, default=60)
    parser.add_argument("--hosts", type=int, default=2, help="tries of each fault of one of two hosts")
    options = parser.parse_args()

    print(f"{'fault':40} {'tries':>6} {'survived':>9} {'lost':>6} {'stall':>6} {'warned':>7}")
    lost = 0
    for num_workers in options.num_workers if options.tries else ():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            survived = sum(kills(options.tries, num_workers, Path(folder)))
        lost += _print_row(f"kill -9, {num_workers} workers, resume", options.tries, survived)
    for name, (happens, rank, shares) in HOST_FAULTS.items() if options.hosts else ():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                survived = sum(host_faults(happens, rank, shares, options.hosts, Path(folder)))
            except PermissionError as error:
                print(f"{name:40} not tried: {error}", flush=True)
                continue
        lost += _print_row(name, options.hosts, survived)
    for fault in (UNDISTURBED, *FAULTS) if options.outages else ():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            came_of = list(outages(fault, options.outages, options.outage_seconds, Path(folder), CONFIG))
        survived = sum(not one.lost for one in came_of)
        warned = max((one.warned for one in came_of if one.warned is not None), default=None)
        lost += _print_row(fault.name, options.outages, survived, max(one.stall for one in came_of), warned)
    return 1 if lost else 0


def _print_row(fault: str, tries: int, survived: int, stall: float | None = None, warned: float | None = None) -> int:
    """Prints a row of the table; returns how many tries were lost."""
    seconds = ["-" if value is None else f"{value:.1f}" for value in (stall, warned)]
    print(f"{fault:40} {tries:6} {survived:9} {tries - survived:6} {seconds[0]:>6} {seconds[1]:>7}", flush=True)
    return tries - survived


if __name__ == "__main__":
    sys.exit(main())
