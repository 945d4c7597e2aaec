"""`lit-cnn tune --engine ray`: the trials of the local engine, on a real cluster of two hosts, whatever is lost."""

import importlib.util
import json
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import psutil
import pytest

from lit_cnn.cli import main
from lit_cnn.core import ray_cluster
from lit_cnn.tracking.journal import read_journal
from lit_cnn.training.callbacks import RunCheckpoints
from tests import forks
from tests.faults import wait_until
from tests.ray_cluster import Cluster, server_on, two_nodes
from tests.runs import DIGITS, TrackedRun, copy_empty_store, inside, runs_in, tracked_runs

EPOCHS = 4
SEARCH = (
    *("tune", f"--config={DIGITS}", "--data.limit_train=128", "--data.batch_size=16", "--data.num_workers=0"),
    *(f"--trainer.max_epochs={EPOCHS}", "--search=s.yaml", "--trials=4", "--sampler=random", "--pruner=none"),
    *("--final_seeds=1", "--format=json"),
)
# Each epoch long enough for something to be lost in it.
UNHURRIED = "--trainer.callbacks+=tests.cli.test_resume.Unhurried"
GATE = "--trainer.callbacks+=tests.cli.test_tune_ray.Gate"
VALUES = ("trial", "seed", "state", "model.lr", "value", "test_acc", "is_best")


class Gate(pl.Callback):
    """Waits in the second epoch until there is a file `go` in the working directory, or a signal stops the run."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes the first epoch long enough for a checkpoint."""
        if trainer.current_epoch == 0:
            time.sleep(1.1)

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Waits."""
        checkpoints = trainer.checkpoint_callback
        assert isinstance(checkpoints, RunCheckpoints)
        while trainer.current_epoch == 1 and checkpoints.signal_number is None and not Path("go").exists():
            time.sleep(0.1)


def put_space(folder: Path) -> None:
    (folder / "s.yaml").write_text("model.lr: {low: 1e-4, high: 0.1, log: true}", encoding="utf-8")


@pytest.fixture(autouse=True)
def space(tmp_path: Path) -> None:
    put_space(tmp_path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What the search comes to with one worker of this machine."""
    with inside(tmp_path_factory.mktemp("local")) as folder:
        copy_empty_store(tmp_path_factory.getbasetemp(), folder)
        put_space(folder)
        assert main([*SEARCH]) == 0
        return values_of(folder)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes, where this machine lets us make them."""
    try:
        with two_nodes() as cluster:
            yield cluster
    except PermissionError as error:
        pytest.skip(str(error))


def values_of(folder: Path) -> list[list[Any]]:
    rows = json.loads((folder / "search" / "trials.json").read_text("utf-8"))["trials"]
    return [[row[name] for name in VALUES] for row in rows]


def check_each_once(folder: Path, runs: list[TrackedRun]) -> None:
    """Every trial is one run below one parent, with each epoch once, and the study says the same."""
    (search,) = [run for run in runs if run.tags["kind"] == "search"]
    children = [run for run in runs if run.tags.get("mlflow.parentRunId") == search.run_id]
    counted = [run for run in children if "superseded_by" not in run.tags]
    assert len(runs) == 1 + len(children)
    assert sorted(run.tags.get("trial_number", "") for run in counted) == ["", *"1234"]
    document = json.loads((folder / "search" / "trials.json").read_text("utf-8"))
    assert document["run"] == search.run_id
    assert {row["run"] for row in document["trials"]} == {run.run_id for run in counted}
    for run in counted:
        assert run.status == "FINISHED"
        assert [step for step, _ in run.history["val/acc"]] == [8 * (epoch + 1) - 1 for epoch in range(EPOCHS)]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("empty_store")
def test_a_cluster_of_this_machine_alone_gives_the_same_trials_and_leaves_nothing_behind(
    reference: list[list[Any]], tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def started(*arguments: str) -> forks.Forked:
        with log.open("a") as file:
            return forks.start(*SEARCH, *arguments, cwd=tmp_path, log=file.fileno(), environment={"RAY_ADDRESS": ""})

    command = started("--engine=ray", UNHURRIED, "--parallel=1")
    wait_until(lambda: "trial 1 of 4" in log.read_text("utf-8"), timeout=120)
    below = psutil.Process(command.pid).children(recursive=True)
    begun = [each for each in below if "sender" not in " ".join(each.cmdline())]
    command.send_signal(signal.SIGINT)
    assert command.wait(120) == 128 + signal.SIGINT
    said = log.read_text("utf-8").splitlines()
    assert said[-1] == "lit-cnn: stopped by SIGINT; the same command with --resume auto goes on"
    assert not [line for line in said if "ray" in line.lower()]  # nothing of Ray's own
    wait_until(lambda: not any(map(is_alive, begun)), timeout=30)

    command = started("--engine=ray", "--parallel=1", "--resume=auto", UNHURRIED)
    assert command.wait(200) == 0, log.read_text("utf-8")
    assert values_of(tmp_path) == reference
    check_each_once(tmp_path, tracked_runs(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("empty_store")
def test_the_search_killed_and_a_node_lost_cost_no_trial_where_the_folder_is_shared(
    reference: list[list[Any]], cluster: Cluster, tmp_path: Path
) -> None:
    log = cluster.hosts[0].log(tmp_path)
    gated = (*SEARCH, "--engine=ray", GATE, "--address", cluster.address)
    command = cluster.start(*gated, cwd=tmp_path)
    wait_until(lambda: len(list(tmp_path.glob("mlruns/journal/*/last.ckpt"))) == 2, timeout=200)
    command.kill()
    command.wait()
    command = cluster.start(*gated, "--resume=auto", cwd=tmp_path)
    running = [checkpoint.parent for checkpoint in tmp_path.glob("mlruns/journal/*/last.ckpt")]
    wait_until(lambda: min(map(begun_at, running)) == 2, timeout=200)
    cluster.hosts[1].kill()
    (tmp_path / "go").touch()
    assert command.wait(200) == 0, log.read_text("utf-8")
    assert "its process was lost with node" in log.read_text("utf-8")
    assert values_of(tmp_path) == reference
    check_each_once(tmp_path, tracked_runs(tmp_path))
    assert sorted(map(begun_at, running)) == [2, 3]  # one of them was on the lost node


def begun_at(folder: Path) -> int:
    """How often a trial was trained, resumes included."""
    return sum(record["kind"] == "params" for record, _ in read_journal(folder))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_a_shared_folder_the_trial_of_a_lost_node_is_begun_anew(
    reference: list[list[Any]], cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.renew_node(hidden=tmp_path)
    log = cluster.hosts[0].log(tmp_path)
    at = ("--address", cluster.address)

    def refused(*arguments: str) -> str:
        log.write_text("")
        assert cluster.start(*SEARCH, "--engine=ray", *at, *arguments, cwd=tmp_path).wait(120) == 2
        assert not list(tmp_path.glob("mlruns/journal/*/"))
        return log.read_text("utf-8").splitlines()[-1]

    node = cluster.hosts[1].address
    says = f"lit-cnn: error: --tracking_uri sqlite:mlflow.db: node {node} does not see the folder of the runs"
    assert refused().startswith(says)
    room = ", ".join(f"{host.address} has 1 CPU" for host in cluster.hosts)
    says = f"--parallel 3: the cluster has no such room: {room}; give 2 or fewer"
    assert says in refused("--parallel=3")
    says = f"--tracking_uri http://127.0.0.1:9: from node {node}: http://127.0.0.1:9 does not answer"
    assert says in refused("--tracking_uri=http://127.0.0.1:9")

    with server_on(cluster.hosts[0], tmp_path / "server") as uri:
        database = tmp_path / "server" / "mlflow.db"
        gated = ("--engine=ray", GATE, f"--tracking_uri={uri}")
        command = cluster.start(*SEARCH, *gated, *at, cwd=tmp_path)
        wait_until(lambda: sum("val/acc" in run.history for run in runs_in(database)) == 2, timeout=200)
        cluster.hosts[1].kill()
        (tmp_path / "go").touch()
        assert command.wait(200) == 0, log.read_text("utf-8")
        assert "its process was lost with node" in log.read_text("utf-8")
        assert values_of(tmp_path) == reference
        runs = runs_in(database)
        check_each_once(tmp_path, runs)
        (lost,) = [run for run in runs if "superseded_by" in run.tags]
        assert lost.status == "KILLED" and lost.tags["trial"] == "superseded"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--address=auto"], "--address auto: is that of a Ray cluster; give --engine ray too"),
        (["--engine=spark"], "argument --engine: invalid choice"),
        (["--engine=ray", "--address=127.0.0.1:9"], "--address 127.0.0.1:9: nobody answers there"),
        (["--engine=ray", "--address=head"], "--address head: is not HOST:PORT"),
        (["--engine=ray", "--address=ray://head:10001"], "--address ray://head:10001: a client outside"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert main([*SEARCH, *words]) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert time.monotonic() - began < 10 and not (tmp_path / "mlruns").exists()


def test_another_server_is_no_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert main([*SEARCH, "--engine=ray", f"--address=127.0.0.1:{server.server_port}"]) == 2
    finally:
        server.shutdown()
        server.server_close()
    says = f"--address 127.0.0.1:{server.server_port}: is no head of a Ray cluster; give HOST:PORT"
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_ray_that_is_missing_or_too_old_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_cluster, "LEAST", (99, 0))
    assert main([*SEARCH, "--engine=ray"]) == 2
    says = "is older than 99.0; pip install -U 'lit-cnn[ray]'"
    assert capsys.readouterr().err.splitlines()[-1].endswith(says)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    assert main([*SEARCH, "--engine=ray"]) == 2
    assert "--engine ray: Ray is not installed; pip install" in capsys.readouterr().err.splitlines()[-1]
