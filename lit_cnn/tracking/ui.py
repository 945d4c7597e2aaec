"""`lit-cnn ui`: MLflow's pages on this machine only, with links that open on the runs and the columns that matter.

MLflow 3.17 opens on its "GenAI" pages and shows neither metrics nor tags in the table of runs. A link can change that:
- `workflowType=machine_learning` in the address chooses the "Model training" pages;
- `viewStateShareKey=KEY` makes the page read its state (columns, their order and widths, filter, sorting, charts) from
  the experiment's tag `mlflow.sharedViewState.KEY`. The tag's value is what MLflow's own menu of saved views writes, so
  the menu offers ours too.
Children stand below their parent only where the table is sorted by "Created", so there is a view for that and one for
the best on val first, which is flat. A parent is unfolded at first where its children have the tag that
`tracking/delivery.py` sets. Runs that failed or were stopped cannot come last in a table sorted by anything else: the
filter, which the page's search field shows, leaves them out, with trials, comparisons and exports; a third view has
everything.
What no link can carry: a run opened from the table has the GenAI menu at its left until "Model training" is clicked
there, once in that browser; the Assistant panel is open at the first visit; a banner says that the view is shared; the
charts on a run's own page are sorted by name; metrics have all their digits.
"""

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_cnn.core.errors import UsageError
from lit_cnn.core.signals import handled
from lit_cnn.tracking.client import connect, unreachable
from lit_cnn.tracking.store import Store, check_writable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

HOST = "127.0.0.1"
_START_LIMIT_S = 120  # a cold start took 6 s on 2 cores; a loaded machine may need many times that
_STOP_LIMIT_S = 10

_COLUMNS = {  # px: up to test/acc fits a window of 1280 whose Assistant is closed
    "attributes.`Run Name`": 160,
    "runDateAndNestInfo": 140,  # the column "Created", with the status as a sign
    "tags.`label`": 390,
    "metrics.`best/val/acc`": 100,
    "metrics.`test/acc`": 80,
    "tags.`test_interval`": 150,
    "duration": 80,
    "tags.`transfer`": 95,
    "tags.`image_size`": 90,
    "tags.`seed`": 60,
    "tags.`arch`": 170,
    "tags.`val_interval`": 150,
    "attributes.`Description`": 300,
}
_CHARTS = ("val/acc", "val/loss", "train/loss")
_SECTION = "lit_cnn"
_ASIDE = ("advice", "compare", "export")
"""Kinds of runs that are not in the table at first; an ensemble and a soup are results."""


def serve_ui(store: Store, experiment: str | None = None, port: int = 5000) -> None:
    """Serves MLflow's pages on 127.0.0.1 until Ctrl-C, after printing one link per experiment.

    A store behind an MLflow server has its pages already: then only the links are printed.

    Args:
        store: Where the runs are.
        experiment: Print the link of this one only; None means every experiment that has a run.
        port: Where to listen.

    Raises:
        UsageError: If there is no usable store, no run or no such experiment, if the port cannot be used, or if the
            server ends by itself.
    """
    if store.database is not None:
        if not store.database.exists():
            raise _no_runs(store)
        check_writable(store)  # the view is kept in the store
    if not store.is_http:
        _check_port(port)
    urls = _view_urls(store, experiment, store.label if store.is_http else f"http://{HOST}:{port}")
    links = [f"{name}: {url}" for name, url in urls.items()]
    if store.is_http:
        print(*links, sep="\n")
        return
    with _server(store, port) as process:
        _wait_until_ready(process, port)
        print(*links, "Ctrl-C stops the server.", sep="\n", flush=True)
        process.wait()
        raise UsageError(None, None, f"the MLflow server {_ended(process)}", "see its messages above")


def training_view_url(store: Store, experiment: str, host: str = HOST, port: int = 5000) -> str:
    """Returns the link to the experiment's runs in the first of `saved_views` that shows one.

    Sets a tag on the experiment for each view; nothing is changed where the tag is there already.

    Raises:
        UsageError: If the store cannot be read or has no such experiment.
    """
    return _view_urls(store, experiment, f"http://{host}:{port}")[experiment]


@dataclass(frozen=True)
class View:
    """What the page of runs shows, as MLflow 3.17 reads it.

    Attributes:
        name: Its name in the page's menu of saved views.
        search: Which runs, in MLflow's search syntax; "" means all.
        state: JSON: columns, order, filter, charts.
    """

    name: str
    search: str
    state: str

    @property
    def key(self) -> str:
        """Made from the state: a later lit_cnn with other columns writes another view and leaves this one alone."""
        return f"lit_cnn-{hashlib.sha256(self.state.encode()).hexdigest()[:8]}"


def saved_views() -> tuple[View, ...]:
    """Returns the views that the page's menu offers; the first that shows a run is the one that is opened."""
    wanted = ["attributes.status != 'FAILED'", "attributes.status != 'KILLED'", "tags.trial IS NULL"]
    results = " AND ".join([*wanted, *(f"tags.kind != '{kind}'" for kind in _ASIDE)])
    return (
        # No other order shows children below their parents.
        _view("lit_cnn: runs, newest first", "attributes.start_time", results),
        _view("lit_cnn: best on val first", "metrics.`best/val/acc`", results),
        _view("lit_cnn: everything", "attributes.start_time", ""),
    )


def _view(name: str, order: str, search: str) -> View:
    """Returns a view of the runs that match, in descending order."""
    state = {
        "selectedColumns": [column for column in _COLUMNS if column.startswith(("attributes.", "tags.", "metrics."))],
        "columnOrder": list(_COLUMNS),
        "columnWidths": _COLUMNS,
        "orderByKey": order,
        "orderByAsc": False,
        "searchFilter": search,
        **_charts(),
    }
    return View(name, search, json.dumps(state))


def _charts() -> dict[str, Any]:
    """Returns the charts above those that the page makes for every other metric by itself."""
    shared = {"type": "LINE", "metricSectionId": _SECTION, "deleted": False, "isGenerated": False}
    axes = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "range": {}, "lineSmoothness": 0}
    shared |= {**axes, "runsCountToCompare": 10, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    charts = [
        shared | {"uuid": metric, "metricKey": metric, "selectedMetricKeys": [metric], "displayName": metric}
        for metric in _CHARTS
    ]
    section = {"uuid": _SECTION, "name": "Curves", "display": True, "isReordered": False, "deleted": False}
    return {"compareRunCharts": charts, "compareRunSections": [section], "isAccordionReordered": True}


def _view_urls(store: Store, experiment: str | None, base: str) -> dict[str, str]:
    """Returns a link under `base` for the named experiment, or for each that has a run; sets their views."""
    try:
        client = connect(store)
        found = _with_runs(client, store) if experiment is None else [_find(client, experiment)]
        return {each.name: _prepare_view(client, each, base) for each in found}
    except ConnectionError as error:
        raise unreachable(store, error) from error
    except Exception as error:
        from mlflow.exceptions import MlflowException  # 2 s: not before it is needed

        if not isinstance(error, MlflowException):
            raise
        raise UsageError("tracking_uri", _place(store), str(error).splitlines()[0]) from error


def _with_runs(client: "MlflowClient", store: Store) -> "list[Experiment]":
    found = [each for each in client.search_experiments() if _has_run(client, each)]
    if not found:
        raise _no_runs(store)
    return found


def _has_run(client: "MlflowClient", experiment: "Experiment", search: str = "") -> bool:
    return bool(client.search_runs([experiment.experiment_id], search, max_results=1))


def _no_runs(store: Store) -> UsageError:
    remedy = "make some with `make quickstart` or `lit-cnn fit`"
    return UsageError("tracking_uri", _place(store), "no runs there yet", remedy)


def _place(store: Store) -> str:
    return str(store.database or store.label)


def _find(client: "MlflowClient", name: str) -> "Experiment":
    experiments = {each.name: each for each in client.search_experiments()}
    if name not in experiments:
        raise UsageError("experiment", name, "not in the store", f"give one of {', '.join(sorted(experiments))}")
    return experiments[name]


def _prepare_view(client: "MlflowClient", experiment: "Experiment", base: str) -> str:
    """Returns the link under `base`, after writing the views to the experiment if they are not there."""
    views = saved_views()
    opened = next(view for view in views if not view.search or _has_run(client, experiment, view.search))
    for place, view in enumerate(views):
        tag = f"mlflow.sharedViewState.{view.key}"
        if tag not in experiment.tags:  # one that is there may have been changed by the user on the page: theirs
            now = int(time.time() * 1000) - place  # the menu has the latest first
            value = {"name": view.name, "createdAt": now, "updatedAt": now, "state": view.state}
            client.set_experiment_tag(experiment.experiment_id, tag, json.dumps(value))
    query = f"viewStateShareKey={opened.key}&workflowType=machine_learning"
    return f"{base}/#/experiments/{experiment.experiment_id}/runs?{query}"


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is free, as it is to the server
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such port"
            raise UsageError("port", port, f"{reason} on {HOST}", "give another, for example `port=5050`") from error


@contextmanager
def _server(store: Store, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Runs MLflow's server as a process group of its own, of which nothing is left afterwards."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_SERVER_")}
    environment |= {
        "MLFLOW_BACKEND_STORE_URI": store.tracking_uri,  # not as an argument: it may hold a password
        "MLFLOW_REGISTRY_STORE_URI": store.tracking_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its runners for GenAI jobs are 10 processes
        "PYTHONWARNINGS": "ignore",
    }
    options = ["--host", HOST, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    options += ["--allowed-hosts", f"{HOST}:{port},localhost:{port}", "--no-serve-artifacts"]
    if store.artifact_location is not None:
        options += ["--default-artifact-root", store.artifact_location]
    with _signals_as_exit():
        command = [sys.executable, "-m", "mlflow", "server", *options]
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            with suppress(KeyboardInterrupt):  # the ordinary end
                yield process
        finally:
            _stop(process)


@contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Lets SIGTERM and a closed terminal unwind the stack as Ctrl-C does, so that the server is stopped."""

    def leave(number: int, _frame: Any) -> None:
        sys.exit(128 + number)

    with handled(leave, (signal.SIGTERM, signal.SIGHUP)):
        yield


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the whole group: politely, and by force whatever is left after that or at a second Ctrl-C."""
    try:
        process.terminate()  # MLflow passes it on to its server
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_LIMIT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        if _is_healthy(port):
            return
        time.sleep(0.1)
    state = "did not answer" if process.poll() is None else _ended(process)
    raise UsageError("port", port, f"the MLflow server {state}", "see its messages above")


def _ended(process: subprocess.Popen[bytes]) -> str:
    return f"ended with exit code {process.returncode}"


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)  # urllib would go through a proxy
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
