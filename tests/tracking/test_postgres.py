"""A team's store: PostgreSQL, which the test starts itself."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_cnn.tracking.queries import download_artifact, find_runs
from lit_cnn.tracking.store import check_writable, resolve_store
from tests.tracking.conftest import start_python

pytestmark = [pytest.mark.debian, pytest.mark.slow]

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
LAUNCH = """
from lit_cnn.tracking.recorder import Recorder
recorder = Recorder("digits")
recorder.begin(run_name="lenet5", params={"lr": 0.1}, tags={"arch": "lenet5"})
recorder.log_text("a,b\\n", "evaluation/table.csv")
for step in range(20):
    recorder.log_metrics({"a": step, "b": float("nan")}, step)
recorder.end("FINISHED")
print(recorder.key, recorder.wait_until_sent(200))
"""


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """A fresh database on loopback; its address."""
    if not PROGRAMS:
        pytest.skip("Debian's package postgresql is not installed")
    # PostgreSQL refuses to run as root.
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    folder = Path("/var/tmp") / f"lit_cnn-postgres-{os.getpid()}"
    folder.mkdir()
    if user:
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [*user, str(PROGRAMS[-1] / program), *arguments], check=True, cwd=folder, stdout=subprocess.DEVNULL
        )

    try:
        run("initdb", "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
        run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "mlflow")
            yield f"postgresql://postgres@127.0.0.1:{port}/mlflow"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def test_four_first_launches_at_once_on_postgresql(postgres: str, tmp_path: Path) -> None:
    launched = [start_python(LAUNCH, tmp_path, MLFLOW_TRACKING_URI=postgres) for _ in range(4)]
    said = [process.communicate(timeout=240) for process in launched]
    assert [process.returncode for process in launched] == [0] * 4, said
    keys, sent = zip(*(out.split() for out, _ in said), strict=True)
    assert set(sent) == {"True"}, (tmp_path / "mlruns" / "journal" / "sender.log").read_text()
    store = resolve_store(postgres)
    check_writable(store)
    for run in find_runs(store, list(keys)):
        assert (run.status, run.params["lr"], run.metrics["a"]) == ("FINISHED", "0.1", 19.0)
        assert download_artifact(store, run, "evaluation/table.csv").read_text() == "a,b\n"
