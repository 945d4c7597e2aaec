"""The tools that are compared, each in an environment of its own, and how one of them is run."""

import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from json import loads
from pathlib import Path
from typing import Any

from tests.benchmarks.common import ROOT
from tests.benchmarks.peers.contract import ABOUT, PREDICTIONS
from tests.benchmarks.peers.image_sets import SETS, targets_of
from tests.benchmarks.peers.weights import environment

_LOG = "log.txt"
_MOST_OF_ERROR = 300  # characters


@dataclass(frozen=True)
class Tool:
    """A tool.

    Attributes:
        script: Its module in `tests.benchmarks.peers`.
        packages: What pip installs into its environment; nothing for what is in this one.
    """

    script: str
    packages: tuple[str, ...] = ()


OURS = "lit-cnn"
# torch with === : no build of another kind, which torchvision would not go with.
TOOLS = {
    OURS: Tool("lit_cnn_best"),
    "autogluon": Tool(
        "autogluon_multimodal", ("autogluon.multimodal==1.6.3", "torch===2.13.0", "torchvision===0.28.0")
    ),
    "autotimm": Tool("autotimm_trainer", ("autotimm==0.7.37", "timm==1.0.31", "torch===2.15.0", "torchvision==0.29.2")),
    "fastai": Tool("fastai_recipe", ("fastai==2.8.12", "timm==1.0.31", "torch===2.15.0", "torchvision==0.29.2")),
}


@dataclass(frozen=True)
class Job:
    """A tool on a set.

    Attributes:
        tool: Its name.
        subject: That of the set.
        minutes: The budget.
        repeat: Its number, which is the seed.
        cores: How many.
    """

    tool: str
    subject: str
    minutes: float
    repeat: int
    cores: int

    @property
    def name(self) -> str:
        """Its key."""
        return f"{self.subject} {self.minutes:g}m {self.cores}c {self.tool} {self.repeat}"


def python_of(tool: str, environments: Path) -> Path:
    """Returns the Python of a tool's environment, whether it is there or not."""
    return environments / tool / "bin" / "python" if TOOLS[tool].packages else Path(sys.executable)


def make_environment(tool: str, environments: Path) -> None:
    """Makes the environment of a tool with pip, unless it is there.

    Raises:
        subprocess.CalledProcessError: If pip cannot.
    """
    folder = environments / tool
    if python_of(tool, environments).exists():
        return
    beside = folder.with_name(f"{tool}.unfinished")
    venv.create(beside, with_pip=True, clear=True)
    subprocess.run([beside / "bin" / "python", "-m", "pip", "install", "-q", *TOOLS[tool].packages], check=True)
    beside.rename(folder)


class Runner:
    """Runs jobs, each in a folder of its own and a process group of its own.

    Args:
        folder: Where the sets and the weights are, and the folders of the jobs.
        environments: Where the environments are.
    """

    def __init__(self, folder: Path, environments: Path) -> None:
        self.folder, self.environments = folder.resolve(), environments.resolve()
        self._running = set[int]()

    def run(self, job: Job, cores: str) -> dict[str, Any]:
        """Returns what a job came to: its accuracy and the images that it got right, or an error.

        Args:
            job: What.
            cores: The processor's cores that it has, as `taskset -c` takes them.
        """
        place = self.folder / "jobs" / job.name.replace(" ", "_")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        of_set = self.folder / "sets" / job.subject
        python = str(python_of(job.tool, self.environments))
        options = {"pool": of_set / "pool", "test": of_set / "test", "output": place}
        began = time.monotonic()
        command = [
            *("taskset", "-c", cores, python, "-m", f"tests.benchmarks.peers.{TOOLS[job.tool].script}"),
            *(f"--{name}={value}" for name, value in options.items()),
            *(f"--seconds={60 * job.minutes}", f"--seed={job.repeat}", f"--cores={job.cores}"),
            *(f"--began={began}", *(["--mirrored"] if SETS[job.subject].mirrored else [])),
        ]
        with (place / _LOG).open("wb") as log:
            code = self._wait(command, place, log, job)
        found: dict[str, Any] = {"wall_seconds": time.monotonic() - began}
        try:
            found |= _read(place, targets_of(of_set)) if code == 0 else {"error": _error(place / _LOG, code)}
        except (OSError, ValueError, KeyError) as error:
            found["error"] = repr(error)[:_MOST_OF_ERROR]
        _clean(place)
        return found

    def stop(self) -> None:
        """Ends what is running."""
        for group in list(self._running):
            _kill(group)

    def _wait(self, command: list[str], place: Path, log: Any, job: Job) -> int | None:
        """Returns the exit code; None if the job took so long that it was ended."""
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "LIT_CNN_"))},
            **environment(self.folder / "weights"),
            **{name: str(job.cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
            **{
                "PYTHONPATH": str(ROOT),
                "MPLBACKEND": "Agg",
                "CUDA_VISIBLE_DEVICES": "",
                "NO_ALBUMENTATIONS_UPDATE": "1",
                # Nothing is left there for the next job.
                "XDG_CACHE_HOME": str(place / "cache"),
            },
        }
        process = subprocess.Popen(
            command, cwd=place, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        self._running.add(process.pid)
        try:
            return process.wait(timeout=120 * job.minutes + 900)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill(process.pid)
            process.wait()
            self._running.discard(process.pid)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _read(place: Path, targets: Mapping[str, str]) -> dict[str, Any]:
    about = loads((place / ABOUT).read_text(encoding="utf-8"))
    with (place / PREDICTIONS).open(newline="", encoding="utf-8") as file:
        predicted = {row["file"]: row["class"] for row in csv.DictReader(file)}
    right = [predicted[name] == target for name, target in targets.items()]
    # A character for each test image, in the order of their names.
    correct = "".join("01"[each] for each in right)
    return {"accuracy": sum(right) / len(right), "correct": correct, **about}


def _error(log: Path, code: int | None) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = re.sub(r"(/[^/\s:'\"]+){2,}/", ".../", lines[-1])[-_MOST_OF_ERROR:] if lines else "it said nothing"
    return f"took too long: {last}" if code is None else f"exit code {code}: {last}"


def _clean(place: Path) -> None:
    """Leaves of a job's folder what it said."""
    for path in place.iterdir():
        if path.name in (_LOG, PREDICTIONS, ABOUT):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
