"""A tracking server that stops, freezes, answers 500 or is late: what was logged is stored, once, and nobody waits.

The long form, with training, is `make faults`.
"""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_cnn.tracking.delivery import Courier
from lit_cnn.tracking.journal import Journal, RunHeader
from lit_cnn.tracking.progress import MlflowRun, Progress
from lit_cnn.tracking.sender import sync
from lit_cnn.tracking.store import Store, resolve_store
from tests.faults import wait_until
from tests.outages import FAULTS, WARNING, Fault, differences
from tests.tracking.conftest import start_python
from tests.tracking_server import TrackingServer, tracking_server

pytestmark = pytest.mark.slow

# A run without torch: it logs every 10 ms until there is a file `stop`, and says how long that took.
LOGGING = """
import json, os, time
from lit_cnn.tracking.recorder import Recorder
recorder = Recorder("digits")
recorder.begin(run_name="lenet5", params={"lr": 0.1}, tags={"arch": "lenet5"})
(recorder.run_folder / "best.ckpt").write_bytes(os.urandom(100_000))
recorder.log_artifact(recorder.run_folder / "best.ckpt", "checkpoints")
print(recorder.key, flush=True)
step, stall = 0, 0.0
while not os.path.exists("stop"):
    start = time.perf_counter()
    recorder.log_metrics({"train/loss": step / 7, "lr": 0.1}, step)
    if step % 100 == 0:
        recorder.log_text(str(step), "notes/step.txt")
    stall += max(0.0, time.perf_counter() - start - 0.1)
    step += 1
    time.sleep(0.01)
recorder.end("FINISHED")
print(json.dumps({"stall": stall, "sent": recorder.wait_until_sent(60)}))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, fresh_database: Path) -> Iterator[TrackingServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(fresh_database, folder / "mlflow.db")
    with tracking_server(folder) as server:
        yield server


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.ends_in_time], ids=lambda fault: fault.name)
def test_an_outage_costs_nothing(server: TrackingServer, fault: Fault, tmp_path: Path) -> None:
    uri = server.proxy_uri if fault.proxied else server.uri
    process = start_python(LOGGING, tmp_path, MLFLOW_TRACKING_URI=uri)
    assert process.stdout is not None
    assert process.stderr is not None
    folder = tmp_path / "mlruns" / "journal" / process.stdout.readline().strip()
    wait_until(lambda: Progress.read(folder).offset)
    fault.begin(server)
    start = time.monotonic()
    warning = process.stderr.readline()
    warned_after = time.monotonic() - start
    before = Progress.read(folder).offset
    fault.end(server)
    wait_until(lambda: Progress.read(folder).offset > before)
    time.sleep(2)
    (tmp_path / "stop").touch()
    out, err = process.communicate(timeout=120)
    assert WARNING in warning
    assert warned_after < 10
    assert err == "MLflow takes again what the run logs.\n"
    said = json.loads(out)
    assert said["sent"]
    assert said["stall"] < 1
    wait_until(lambda: Progress.read(folder).is_complete(folder))  # the sender looks once more, after all is sent
    assert differences(server.uri, folder) == []


def test_a_server_gone_to_the_end_has_all_after_a_sync(server: TrackingServer, tmp_path: Path) -> None:
    process = start_python(LOGGING, tmp_path, MLFLOW_TRACKING_URI=server.proxy_uri)
    assert process.stdout is not None
    folder = tmp_path / "mlruns" / "journal" / process.stdout.readline().strip()
    wait_until(lambda: Progress.read(folder).offset)
    server.behaviour = "refuse"
    try:
        time.sleep(2)
        (tmp_path / "stop").touch()
        out, _ = process.communicate(timeout=120)
        assert not json.loads(out)["sent"]
        assert differences(server.uri, folder) != []
    finally:
        server.behaviour = "pass on"
    sync(resolve_store(server.proxy_uri), show_progress=False)
    wait_until(lambda: Progress.read(folder).is_complete(folder))  # if its own sender, which goes on, is quicker
    assert differences(server.uri, folder) == []


def test_what_a_server_does_too_late_is_undone(server: TrackingServer, tmp_path: Path) -> None:
    """Each write is answered 500 at once and done a second later, as by a server that was frozen meanwhile."""
    store = Store(server.proxy_uri, None, tmp_path / "journal")
    journal = Journal.create(store.journal_dir, RunHeader.new("digits", "lenet5", store.label, None, "ada"))
    courier = Courier(store)
    Courier(store)._experiment("digits")
    server.behaviour = "late"
    try:
        with pytest.raises(Exception, match="500"):
            courier.deliver(journal.folder)
        assert MlflowRun.read(journal.folder) is None
    finally:
        server.behaviour = "pass on"
    journal.log_metrics({"a": 1.0}, 1)
    courier.deliver(journal.folder)
    time.sleep(2)
    run = MlflowRun.read(journal.folder)
    assert run is not None
    assert len(courier._runs_of(run.experiment_id, journal.header.key)) == 2
    courier._client.update_run(run.run_id, status="FAILED")
    journal.append({"kind": "end", "status": "FINISHED", "time": 1})
    journal.close()
    courier.deliver(journal.folder)
    assert differences(server.uri, journal.folder) == []


def test_a_frozen_server_is_asked_once_for_many_runs(server: TrackingServer, tmp_path: Path) -> None:
    store = resolve_store(server.uri)
    for _ in range(3):
        Journal.create(store.journal_dir, RunHeader.new("digits", "lenet5", store.label, None, "ada")).close()
    server.freeze()
    try:
        start = time.monotonic()
        summary = sync(store, show_progress=False)
        assert time.monotonic() - start < 20
    finally:
        server.thaw()
    assert len(summary.failed) == 3
    assert all("does not answer" in reason for reason in summary.failed.values())
    assert len(sync(store, show_progress=False).sent) == 3
