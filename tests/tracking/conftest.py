"""Real sqlite stores and real processes for the tests of tracking."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lit_cnn.tracking.client import connect
from lit_cnn.tracking.journal import Journal, RunHeader
from lit_cnn.tracking.store import Store, resolve_store
from tests.forks import posix_spawn

REPO = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def real_senders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts each sender as a process of its own, and not as the fork that it is in other tests."""
    monkeypatch.setattr(os, "posix_spawn", posix_spawn)


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making its tables takes seconds, copying it does not."""
    store = resolve_store(f"sqlite:///{tmp_path_factory.mktemp('fresh')}/mlflow.db")
    connect(store)
    assert store.database is not None
    return store.database


@pytest.fixture
def store(tmp_path: Path, fresh_database: Path) -> Store:
    (tmp_path / "mlruns").mkdir()
    shutil.copyfile(fresh_database, tmp_path / "mlruns" / "mlflow.db")
    return resolve_store(f"sqlite:///{tmp_path}/mlruns/mlflow.db")


@pytest.fixture
def new_journal(store: Store) -> Iterator[Callable[..., Journal]]:
    """Makes journals of runs of the store."""
    made = []

    def make(experiment: str = "digits", run_name: str = "lenet5", parent_key: str | None = None) -> Journal:
        header = RunHeader.new(experiment, run_name, store.label, parent_key, "ada")
        made.append(Journal.create(store.journal_dir, header))
        return made[-1]

    yield make
    for journal in made:
        journal.close()


Row = tuple[str, int, float, bool, int]


def stored_metrics(database: Path | None, key: str) -> list[Row]:
    """Returns all rows that the store has of a run: (metric, step, value, is NaN, time), sorted."""
    assert database is not None
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT m.key, m.step, m.value, m.is_nan, m.timestamp FROM metrics m JOIN tags t USING (run_uuid) "
            "WHERE t.key = 'lit_cnn.key' AND t.value = ? ORDER BY m.key, m.step, m.timestamp",
            (key,),
        )
        return [(name, step, value, bool(nan), at) for name, step, value, nan, at in rows]


def start_python(code: str, cwd: Path, **environment: str) -> "subprocess.Popen[str]":
    """Starts a Python process of its own that runs `code`, with lit_cnn importable."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPO), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(code: str, cwd: Path, timeout: float = 120, **environment: str) -> str:
    """Runs `code` in a Python process of its own; returns what it printed."""
    process = start_python(code, cwd, **environment)
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out
