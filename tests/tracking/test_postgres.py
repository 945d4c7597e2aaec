"""A team's store: PostgreSQL, which the test starts itself; directly, and behind a server that has the files too."""

import contextlib
import os
import re
import shlex
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_cnn.cli import main
from lit_cnn.tracking.progress import Progress
from lit_cnn.tracking.queries import download_artifact, find_runs, search_runs
from lit_cnn.tracking.sender import sync
from lit_cnn.tracking.store import check_writable, resolve_store
from tests.faults import wait_until
from tests.outages import differences
from tests.postgresql import PROGRAMS, postgresql
from tests.runs import ROOT, fit
from tests.tracking.conftest import start_python
from tests.tracking_server import TrackingServer, tracking_server

pytestmark = [pytest.mark.debian, pytest.mark.slow]

LAUNCH = """
from lit_cnn.tracking.recorder import Recorder
recorder = Recorder("digits")
recorder.begin(run_name="lenet5", params={"lr": 0.1}, tags={"arch": "lenet5"})
recorder.log_text("a,b\\n", "evaluation/table.csv")
for step in range(20):
    recorder.log_metrics({"a": step, "b": float("nan"), "c": step / 7}, step)
recorder.end("FINISHED")
print(recorder.key, recorder.wait_until_sent(200))
"""


@pytest.fixture
def postgres() -> Iterator[str]:
    """A fresh database on loopback; its address."""
    if not PROGRAMS:
        pytest.skip("Debian's package postgresql is not installed")
    with postgresql() as address:
        yield address


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


@pytest.fixture
def team_server(postgres: str, tmp_path: Path) -> Iterator[TrackingServer]:
    """An MLflow server as docs/server.md sets it up for a team: the options of its command, but for the places."""
    readme = (ROOT / "docs/server.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^mlflow server (.+)$", readme, re.MULTILINE)
    places = {"postgresql:///mlflow": postgres, "/srv/mlflow": str(tmp_path / "files"), "localhost:5000": "127.0.0.1:*"}
    for place, here in places.items():
        assert place in line
        line = line.replace(place, here)
    options = shlex.split(line)
    host = options.index("--host")
    with tracking_server(tmp_path / "server", *options[:host], *options[host + 4 :]) as server:  # has its own port
        yield server


def test_eight_first_launches_at_once_on_a_fresh_server(team_server: TrackingServer, tmp_path: Path) -> None:
    """Each from a folder of its own, as on eight machines."""
    machines = [tmp_path / f"machine{number}" for number in range(8)]
    for folder in machines:
        folder.mkdir()
    launched = [start_python(LAUNCH, folder, MLFLOW_TRACKING_URI=team_server.uri) for folder in machines]
    said = [process.communicate(timeout=240) for process in launched]
    assert [process.returncode for process in launched] == [0] * 8, said
    for folder, (out, err) in zip(machines, said, strict=True):
        key, sent = out.split()
        assert (sent, err) == ("True", "")
        run_folder = folder / "mlruns" / "journal" / key
        wait_until(lambda at=run_folder: Progress.read(at).is_complete(at))  # type: ignore[misc]
        assert differences(team_server.uri, run_folder) == []


def test_the_others_may_name_the_server_and_click_in_its_pages(team_server: TrackingServer) -> None:
    address = f"{team_server.uri}/ajax-api/2.0/mlflow/experiments/search"
    for name, status in (("SERVER", 200), ("elsewhere", 403)):
        headers = {"Host": f"{name}:5000", "Origin": f"http://{name}:5000", "Content-Type": "application/json"}
        request = urllib.request.Request(address, b'{"max_results": 5}', headers)
        with contextlib.ExitStack() as stack:
            try:
                answer = stack.enter_context(urllib.request.urlopen(request, timeout=60))
            except urllib.error.HTTPError as error:
                answer = stack.enter_context(error)
            assert answer.status == status


def test_a_teams_run_is_trained_stopped_resumed_tested_and_combined(
    team_server: TrackingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team_server.uri)
    longer = ("--trainer.max_epochs=12", "--checkpoint_seconds=0.02")

    def stop_soon() -> None:
        wait_until(lambda: any(tmp_path.glob("mlruns/journal/*/last.ckpt")))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop_soon)
    thread.start()
    assert fit(*longer) == 128 + signal.SIGINT
    thread.join()
    assert fit(*longer, "--resume=auto") == 0
    assert fit("--seed_everything=1") == 0
    store = resolve_store()
    assert sync(store, show_progress=False).failed == {}
    runs = search_runs(store, "digits")
    assert [run.status for run in runs] == ["FINISHED"] * 2  # the resumed one is one run
    for run in runs:
        assert differences(team_server.uri, store.journal_dir / run.tags["lit_cnn.key"]) == []
    # As from another machine, which has nothing of the runs but the server's address.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["test", f"--ckpt_path=runs:/{runs[0].run_id}"]) == 0
    assert main(["ensemble", "--experiment", "digits", "--views", "1", "2", "--num_workers", "0"]) == 0
    assert "ensemble of 2" in capsys.readouterr().out
    assert {run.tags["kind"] for run in search_runs(store, "digits")} == {"fit", "ensemble"}
