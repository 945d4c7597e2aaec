"""Which store is meant, and whether it can be written."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from lit_cnn.core.errors import UsageError
from lit_cnn.tracking import check_writable, resolve_store
from lit_cnn.tracking.client import connect
from tests.faults import wait_until
from tests.tracking.conftest import run_python


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def everything_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_default_store_is_in_the_working_directory(here: Path) -> None:
    store = resolve_store()
    assert store.tracking_uri == f"sqlite:///{here}/mlruns/mlflow.db"
    assert store.artifact_location == f"{here}/mlruns/artifacts"
    assert store.journal_dir == here / "mlruns" / "journal"
    assert store.database == here / "mlruns" / "mlflow.db"
    assert everything_in(here) == []


def test_argument_wins_over_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org:5000/")
    assert resolve_store().tracking_uri == "http://example.org:5000"
    store = resolve_store("sqlite:///some/../runs.db")
    assert store.tracking_uri == f"sqlite:///{here}/runs.db"
    assert store.journal_dir == here / "journal"


def test_server_stores(here: Path) -> None:
    server = resolve_store("https://ada:secret@example.org/mlflow/")
    assert (server.artifact_location, server.journal_dir) == (None, here / "mlruns" / "journal")
    assert server.label == "https://example.org/mlflow"
    postgres = resolve_store("postgresql+psycopg2://ada:secret@db:5432/runs")
    assert postgres.artifact_location == f"{here}/mlruns/artifacts"
    assert postgres.label == "postgresql+psycopg2://db:5432/runs"


@pytest.mark.parametrize("uri", ["file:./mlruns", "mlruns", "sqlite://", "sqlite:///:memory:", "http:///x", "ftp://h"])
def test_unknown_address_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match=r"sqlite:///PATH\.db") as refused:
        resolve_store(uri)
    assert uri in str(refused.value)
    assert "\n" not in str(refused.value)


def test_label_survives_a_move() -> None:
    assert resolve_store("sqlite:///a/runs.db").label == resolve_store("sqlite:///b/c/runs.db").label


def test_good_places_are_accepted_and_left_alone(here: Path) -> None:
    check_writable(resolve_store())
    check_writable(resolve_store("sqlite:///a/b/c/runs.db"))
    check_writable(resolve_store("http://127.0.0.1:9"))  # nobody there: the run is spooled
    assert everything_in(here) == []
    sqlite3.connect(here / "runs.db").execute("CREATE TABLE t (x)").connection.close()
    check_writable(resolve_store("sqlite:///runs.db"))


def make_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("some text, no database at all")


@pytest.mark.parametrize(
    ("uri", "prepare", "reason"),
    [
        ("sqlite:///file/mlflow.db", lambda: make_file(Path("file")), "Not a directory|is no folder"),
        ("sqlite:///file/deeper/mlflow.db", lambda: make_file(Path("file")), "Not a directory|is no folder"),
        ("sqlite:///folder", lambda: Path("folder").mkdir(), "Is a directory"),
        ("sqlite:///text.db", lambda: make_file(Path("text.db")), "is no sqlite database"),
        ("sqlite:////proc/mlflow.db", lambda: None, "/proc cannot be written"),
        ("sqlite:///a/m.db", lambda: make_file(Path("a/journal")), "journal is no folder"),
        ("sqlite:///a/m.db", lambda: make_file(Path("a/artifacts")), "artifacts is no folder"),
        ("http://127.0.0.1:9", lambda: make_file(Path("mlruns/journal")), "journal is no folder"),
    ],
)
def test_bad_places_are_refused_at_once(here: Path, uri: str, prepare: object, reason: str) -> None:
    prepare()  # type: ignore[operator]
    before = everything_in(here)
    start = time.monotonic()
    with pytest.raises(UsageError, match=reason):
        check_writable(resolve_store(uri))
    assert time.monotonic() - start < 1
    assert everything_in(here) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not stop root")
def test_read_only_folder_is_refused(here: Path) -> None:
    (here / "locked").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        check_writable(resolve_store("sqlite:///locked/mlflow.db"))


def test_importing_tracking_is_light(here: Path) -> None:
    heavy = run_python(
        "import sys, lit_cnn.tracking, lit_cnn.tracking.recorder, lit_cnn.tracking.queries, lit_cnn.tracking.sender\n"
        "print(sorted({'mlflow', 'torch', 'lightning', 'numpy', 'pandas', 'sqlalchemy'} & set(sys.modules)))",
        here,
    )
    assert heavy.strip() == "[]"


MAKING = {"this version": "client.connect(store)", "an earlier one": "MlflowClient(store.tracking_uri)"}


@pytest.mark.parametrize("made_by", MAKING)
def test_a_store_whose_making_was_killed_is_made_anew(made_by: str, tmp_path: Path) -> None:
    store = resolve_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    makes = tmp_path / (".mlflow.db.new" if made_by == "this version" else "mlflow.db")
    code = f"from lit_cnn.tracking import client, resolve_store; store = resolve_store({store.tracking_uri!r}); "
    code += f"from mlflow.tracking import MlflowClient; {MAKING[made_by]}"
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: has_table(makes, "alembic_version"), timeout=100)
    finally:
        child.kill()
        child.wait()
    assert makes.exists()
    assert store.database is not None and not has_table(store.database, "experiments", rows=True)

    experiment = connect(store).create_experiment("digits")
    assert connect(store).get_experiment(experiment).name == "digits"
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", ".init.lock"}


def has_table(database: Path, name: str, rows: bool = False) -> bool:
    """Whether a database has a table, and rows in it where that is asked."""
    if not database.exists():
        return False
    with closing(sqlite3.connect(database)) as connection:
        query = f"SELECT 1 FROM {name} LIMIT 1"
        try:
            return connection.execute(query).fetchone() is not None or not rows
        except sqlite3.OperationalError:
            return False
