"""What the tests of training share: a short run of `lit-cnn fit`, and a look into MLflow's own tables."""

import contextlib
import functools
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_cnn.cli import main
from lit_cnn.tracking import resolve_store
from lit_cnn.tracking.client import connect
from lit_cnn.training.checkpoints import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
DIGITS = CONFIGS / "experiment" / "lenet5_scratch_digits.yaml"
# Two epochs of eight steps, over in a second.
SHORT_OPTIONS = {
    "trainer.max_epochs": 2,
    "data.limit_train": 128,
    "data.batch_size": 16,
    "data.num_workers": 0,
    "trainer.log_every_n_steps": 2,
}
SHORT = (f"--config={DIGITS}", *(f"--{name}={value}" for name, value in SHORT_OPTIONS.items()))


def fit(*arguments: str | Path) -> int:
    """Runs the short `lit-cnn fit` in this process and returns its exit code; later arguments win."""
    return main(["fit", *SHORT, *map(str, arguments)])


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """Works in a folder, as `own_folder` does, for fixtures that live longer than a test."""
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / ".cache"))
        for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING")]:
            patch.delenv(name)
        yield folder


@dataclass(frozen=True)
class TrackedRun:
    """A run as it stands in MLflow's tables.

    Attributes:
        run_id: MLflow's id.
        name: The run's name.
        status: RUNNING, FINISHED, FAILED or KILLED.
        tags: Name -> value.
        params: Name -> value.
        history: Metric -> all rows (step, value) in the order of steps, duplicates included.
        artifacts: Where its files are.
    """

    run_id: str
    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    history: dict[str, list[tuple[int, float]]]
    artifacts: Path

    @property
    def metrics(self) -> dict[str, float]:
        """Metric -> its last value."""
        return {name: rows[-1][1] for name, rows in self.history.items()}


def tracked_runs(folder: Path, kind: str | None = None) -> list[TrackedRun]:
    """Reads all runs out of `folder/mlruns/mlflow.db`, the oldest first; of one kind, if it is given."""
    return runs_in(folder / "mlruns" / "mlflow.db", kind)


def runs_in(database: Path, kind: str | None = None) -> list[TrackedRun]:
    """Reads all runs out of a sqlite store, the oldest first."""
    with closing(sqlite3.connect(database)) as connection:
        columns = "run_uuid, name, status, artifact_uri"
        rows = connection.execute(f"SELECT {columns} FROM runs ORDER BY start_time").fetchall()
        runs = [_read(connection, *row) for row in rows]
    return [run for run in runs if kind in (None, run.tags.get("kind"))]


def _read(connection: sqlite3.Connection, run_id: str, name: str, status: str, artifact_uri: str) -> TrackedRun:
    def pairs(table: str) -> dict[str, str]:
        return dict(connection.execute(f"SELECT key, value FROM {table} WHERE run_uuid = ?", (run_id,)).fetchall())

    history: dict[str, list[tuple[int, float]]] = {}
    query = "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step"
    for key, step, value in connection.execute(query, (run_id,)):
        history.setdefault(key, []).append((step, value))
    artifacts = Path(artifact_uri.removeprefix("file://"))
    return TrackedRun(run_id, name, status, pairs("tags"), pairs("params"), history, artifacts)


@functools.cache
def three_seeds(base: Path) -> Path:
    """Trains the short run with seeds 0, 1 and 2, once per session, and returns its folder: to be read, not changed.

    Args:
        base: pytest's own folder of this session.
    """
    with inside(base / "three_seeds") as folder:
        copy_empty_store(base, folder)
        assert fit("--seeds", "0", "1", "2") == 0
    return folder


def run_of_its_own(factory: pytest.TempPathFactory, name: str, *arguments: str) -> TrackedRun:
    """Runs the short fit in a folder and a store of its own, for the tests of a module to compare with."""
    folder = factory.mktemp(name)
    copy_empty_store(factory.getbasetemp(), folder)
    with inside(folder):
        assert fit(*arguments) == 0
    (run,) = tracked_runs(folder)
    return run


def copy_empty_store(base: Path, folder: Path) -> None:
    """Puts an MLflow database without runs into `folder/mlruns`: making its tables takes seconds, a copy does not."""
    (folder / "mlruns").mkdir()
    shutil.copyfile(_empty_database(base), folder / "mlruns" / "mlflow.db")


@functools.cache
def _empty_database(base: Path) -> Path:
    database = base / "empty_store" / "mlflow.db"
    database.parent.mkdir()
    connect(resolve_store(f"sqlite:///{database}"))
    return database


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same weights, bit for bit."""
    first, second = (load_checkpoint(path)["state_dict"] for path in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def image_folder(folder: Path, classes: Sequence[str], per_class: int, size: int = 40, seed: int = 0) -> Path:
    """Writes `per_class` PNG images a class, brighter from class to class, with noise; returns the folder."""
    generator = np.random.default_rng(seed)
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            brightness = 40 + 150 * place // max(1, len(classes) - 1)
            pixels = generator.integers(brightness - 40, brightness + 60, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


@functools.cache
def fold_sets(base: Path) -> Path:
    """Trains the short run on three folds, on two folds cut twice, and without folds; returns its folder.

    Once per session: to be read, not changed. Test is the same in all three, and so are the images of the folds.

    Args:
        base: pytest's own folder of this session.
    """
    with inside(base / "fold_sets") as folder:
        copy_empty_store(base, folder)
        assert fit("--folds", "3") == 0
        assert fit("--folds", "2", "--split_seeds", "3", "4", "--recipe=twice", "--report=false") == 0
        assert fit("--recipe=plain", "--report=false") == 0
    return folder
