"""Outages of the tracking server: `lit-cnn fit` tracked by a real `mlflow server` that is stopped, frozen or broken.

Part of `make faults`. Each try is a run of its own; it survives if it ends with exit code 0, warns within 10 s, and
MLflow then has what the journal has: each metric's history in the same order with the same times, no value twice,
params, status, the checkpoints to the byte, and one run only.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lit_cnn.tracking.journal import JOURNAL, read_header, read_journal
from lit_cnn.tracking.progress import MlflowRun, Progress
from lit_cnn.tracking.store import resolve_store
from tests.tracking_server import TrackingServer, tracking_server

ROOT = Path(__file__).resolve().parent.parent
WARNING = "MLflow takes nothing at present"
LAST_LINE = "not all of this run could be sent to MLflow; it is kept, lit-cnn sync sends it"
_LONGEST_STALL, _LATEST_WARNING = 1.0, 10.0  # seconds
UNNOTICED = 0.1  # seconds that a call may take on a busy machine without having waited for anybody
_CLOCK, _STOP = Path("clock.json"), Path("stop")


@dataclass(frozen=True)
class Fault:
    """Something that happens to a server, and what undoes it.

    Attributes:
        name: What it is called in the table.
        begin: Does it.
        end: Undoes it.
        proxied: Whether the run talks to the proxy.
        ends_in_time: Whether it is undone while the run still trains.
        sent_by: What sends the rest after the run's end: `sync`, or the next `fit`.
    """

    name: str
    begin: Callable[[TrackingServer], None]
    end: Callable[[TrackingServer], None]
    proxied: bool = False
    ends_in_time: bool = True
    sent_by: str = "sync"


def _behave(how: str) -> Callable[[TrackingServer], None]:
    return lambda server: setattr(server, "behaviour", how)


FAULTS = (
    Fault("server stopped, started again", TrackingServer.stop, TrackingServer.start),
    Fault("server frozen, continued", TrackingServer.freeze, TrackingServer.thaw),
    Fault("server answers 500", _behave("refuse"), _behave("pass on"), proxied=True),
    Fault("server obeys, but answers 500", _behave("lose"), _behave("pass on"), proxied=True),
    Fault("server gone, lit-cnn sync later", TrackingServer.stop, TrackingServer.start, ends_in_time=False),
    Fault("server gone, next launch later", TrackingServer.stop, TrackingServer.start, False, False, "fit"),
    Fault("server frozen past the end", TrackingServer.freeze, TrackingServer.thaw, False, False, "fit"),
)
UNDISTURBED = Fault("none, for comparison", lambda _: None, lambda _: None)


class Clock(pl.Callback):
    """Writes `clock.json`: how long calls of the logger stalled training, and the longest time between two steps.

    Ends the run once there is a file `stop`.
    """

    def __init__(self) -> None:
        self._stall = self._longest = 0.0
        self._last_step: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Has every call of the logger clocked."""
        for name in ("log_metrics", "log_params", "log_artifact", "log_text", "set_tags", "flush"):
            setattr(trainer.logger, name, self._clocked(getattr(trainer.logger, name)))

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Looks at the clock."""
        trainer.should_stop = trainer.should_stop or _STOP.exists()
        now = time.perf_counter()
        if self._last_step is not None:
            self._longest = max(self._longest, now - self._last_step)
        self._last_step = now

    def on_train_end(self, *args: Any) -> None:
        """Writes the file."""
        _CLOCK.write_text(json.dumps({"stall": self._stall, "longest_step": self._longest}))

    def _clocked(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._stall += max(0.0, time.perf_counter() - start - UNNOTICED)

        return clocked


@dataclass
class Outcome:
    """What came of a run during an outage.

    Attributes:
        lost: What did not hold, "" if all did.
        stall: Seconds by which calls of the logger took longer than 0.1 s, in all.
        longest_step: Seconds between two steps, at most.
        warned: Seconds from the outage to the warning.
    """

    lost: str
    stall: float
    longest_step: float
    warned: float | None


def go_through(
    fault: Fault, server: TrackingServer, folder: Path, seconds: float, *, at_launch: bool, config: Path
) -> Outcome:
    """Trains while a fault lasts.

    Args:
        fault: Which.
        server: A server that answers.
        folder: An empty folder for the run.
        seconds: How long the fault lasts.
        at_launch: Whether it begins before the run does, else in its midst.
        config: What to train.
    """
    folder.mkdir(parents=True)
    uri = server.proxy_uri if fault.proxied else server.uri
    if at_launch:
        fault.begin(server)
    lost = []
    with _lit_cnn(folder, *_fit_arguments(config, uri)) as process, _killed_on_failure(process):
        run_folder = _wait_for(lambda: next((one.parent for one in folder.glob(f"mlruns/journal/*/{JOURNAL}")), None))
        run_folder = run_folder.with_name(run_folder.name.removeprefix("."))  # hidden while it is made
        if not at_launch:
            _wait_for(lambda: Progress.read(run_folder).offset)
            time.sleep(3)
            lost += ["false alarm"] if WARNING in _log(folder) else []
        began, warned = time.monotonic(), None
        if not at_launch:
            fault.begin(server)
        while fault is not UNDISTURBED and warned is None and time.monotonic() - began < seconds:
            warned = time.monotonic() - began if WARNING in _log(folder) else None
            time.sleep(0.05)
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        if fault.ends_in_time:
            fault.end(server)
            time.sleep(5)
        (folder / _STOP).touch()
        code = process.wait(timeout=180)
    clock = json.loads((folder / _CLOCK).read_text())  # a next launch writes its own
    lost += [f"exit code {code}"] if code else []
    if not fault.ends_in_time:
        if _log(folder).splitlines()[-1] != LAST_LINE:
            lost.append(f"last line {_log(folder).splitlines()[-1]!r}")
        time.sleep(22)  # the time for which the run's own sender goes on trying
        fault.end(server)
        more = ["sync", f"--tracking_uri={uri}"] if fault.sent_by == "sync" else _fit_arguments(config, uri)
        _lit_cnn(folder, *more).wait(timeout=180)
    with contextlib.suppress(TimeoutError):
        _wait_for(lambda: Progress.read(run_folder).is_complete(run_folder), timeout=90)
    lost += differences(server.uri, run_folder)
    if clock["stall"] > _LONGEST_STALL:
        lost.append(f"{clock['stall']:.1f} s of stall")
    if fault is not UNDISTURBED and (warned is None or warned > _LATEST_WARNING):
        lost.append(f"warned after {warned} s")
    return Outcome("; ".join(lost), clock["stall"], clock["longest_step"], warned)


@contextmanager
def _killed_on_failure(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    try:
        yield
    except BaseException:
        process.kill()
        raise


def differences(uri: str, run_folder: Path) -> list[str]:
    """Returns in what a run in MLflow differs from its journal; nothing if in nothing.

    Args:
        uri: The store's address.
        run_folder: The run's folder.
    """
    from lit_cnn.tracking.client import connect

    header, run = read_header(run_folder), MlflowRun.read(run_folder)
    if header is None or run is None:
        return ["never arrived"]
    if not Progress.read(run_folder).is_complete(run_folder):
        return [f"not sent to the end: {Progress.read(run_folder)}"]
    client = connect(resolve_store(uri))
    found = []
    same_key = client.search_runs([run.experiment_id], f"tags.`lit_cnn.key` = '{header.key}'")
    if len(same_key) != 1:
        found.append(f"{len(same_key)} runs of one key")
    logged: dict[str, list[tuple[int, int, str]]] = {}
    params: dict[str, str] = {}
    files: dict[str, str] = {}
    status = "RUNNING"
    for record, _ in read_journal(run_folder):
        match record["kind"]:
            case "metrics":
                for name, value in record["values"].items():
                    logged.setdefault(name, []).append((record["time"], record["step"], repr(value)))
            case "params":
                params = {**record["values"], **params}
            case "artifact":
                files[record["target"]] = record["sha256"]
            case "end":
                status = record["status"]
    stored = client.get_run(run.run_id)
    for name, rows in logged.items():
        history = [(one.timestamp, one.step, repr(one.value)) for one in client.get_metric_history(run.run_id, name)]
        if history != rows:
            found.append(f"{name}: {len(history)} stored, {len(rows)} logged")
    if extra := stored.data.metrics.keys() - logged.keys():
        found.append(f"metrics that nobody logged: {sorted(extra)}")
    if {name: value[:6000] for name, value in params.items()} != stored.data.params:
        found.append("params differ")
    if stored.info.status != status:
        found.append(f"status {stored.info.status}, not {status}")
    for target, sha256 in files.items():
        path = f"{uri}/api/2.0/mlflow-artifacts/artifacts/{run.experiment_id}/{run.run_id}/artifacts/{target}"
        with urllib.request.urlopen(path, timeout=60) as answer:
            if hashlib.sha256(answer.read()).hexdigest() != sha256:
                found.append(f"{target} differs")
    return found


def outages(fault: Fault, tries: int, seconds: float, folder: Path, config: Path) -> Iterator[Outcome]:
    """Yields what came of each try: the first begins in the midst of a run, the next at its launch, and so on."""
    for number in range(tries):
        with tracking_server(folder / f"server{number}") as server:
            place = folder / f"run{number}"
            outcome = go_through(fault, server, place, seconds, at_launch=number % 2 == 1, config=config)
        if outcome.lost:
            print(f"lost in {fault.name}: {outcome.lost}\n{_log(place)[-2000:]}", file=sys.stderr, flush=True)
        yield outcome


def _fit_arguments(config: Path, uri: str) -> list[str]:
    return [
        "fit",
        f"--config={config}",
        f"--tracking_uri={uri}",
        "--trainer.max_epochs=100000",
        "--trainer.log_every_n_steps=1",
        "--trainer.callbacks+=tests.outages.Clock",
        "--data.limit_train=400",
        "--data.batch_size=16",
        "--data.num_workers=0",
    ]


def _lit_cnn(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lit_cnn", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )


def _log(folder: Path) -> str:
    return (folder / "log.txt").read_text(errors="replace")


def _wait_for(wanted: Callable[[], Any], timeout: float = 120) -> Any:
    """Returns what `wanted` returns, as soon as it is something."""
    deadline = time.monotonic() + timeout
    while not (found := wanted()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s in vain")
        time.sleep(0.05)
    return found
