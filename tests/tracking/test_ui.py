"""`lit-cnn ui`: the real MLflow server, looked at with the real Chromium."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from PIL import Image

import lit_cnn
from lit_cnn.core.errors import UsageError
from lit_cnn.tracking.store import Store, resolve_store
from lit_cnn.tracking.ui import serve_ui, shared_view, training_view_url

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
CHROMIUM = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs Debian's packages chromium and chromium-driver",
)
COLUMNS = ["arch", "transfer", "data", "best/val/acc", "test/acc"]


def make_run(client: MlflowClient, experiment_id: str, name: str, accuracy: float, parent: str | None = None) -> str:
    tags = {"mlflow.runName": name, "arch": "lenet5", "transfer": "scratch", "data": "digits"}
    run_id = client.create_run(
        experiment_id, tags=tags | ({"mlflow.parentRunId": parent} if parent else {})
    ).info.run_id
    client.log_batch(run_id, [Metric("best/val/acc", accuracy, 0, 0), Metric("test/acc", accuracy - 0.125, 0, 0)])
    client.set_terminated(run_id)
    return str(run_id)


def make_store(folder: Path) -> Store:
    """A sqlite store with an experiment `digits`: one run, and one with a child and a table."""
    store = resolve_store(f"sqlite:///{folder}/mlflow.db")
    client = MlflowClient(store.tracking_uri)
    experiment_id = client.create_experiment("digits", artifact_location=store.artifact_location)
    make_run(client, experiment_id, "lenet5_scratch_digits", 0.75)
    parent = make_run(client, experiment_id, "ensemble_digits", 0.625)
    make_run(client, experiment_id, "child_digits", 0.875, parent)
    client.log_image(parent, Image.new("RGB", (61, 40), "red"), "evaluation/accuracy.png")
    client.log_text(parent, "model,test_acc\nmean of 2,0.9375\n", "evaluation/table.csv")
    return store


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"))


@contextmanager
def running_ui(store: Store, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs `lit-cnn ui`; yields the process and the first line that it prints."""
    command = [sys.executable, "-m", "lit_cnn", "ui", f"--tracking_uri={store.tracking_uri}", f"--port={port}"]
    home = Path(lit_cnn.__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=home) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def link(store: Store) -> Iterator[str]:
    """The link to `digits` that a running server printed."""
    with running_ui(store, free_port()) as (_, line):
        yield line.removeprefix("digits: ")


def port_of(link: str) -> int:
    found = re.match(r"http://127\.0\.0\.1:(\d+)/", link)
    assert found, link
    return int(found[1])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]  # selenium is not everywhere
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    quiet = ["quic", "background-networking", "component-update", "sync", "gpu"]
    for switch in ["headless=new", "no-sandbox", "no-first-run", *(f"disable-{name}" for name in quiet)]:
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    size = {"width": 1600, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield driver
    driver.quit()


def wait(browser, condition: Callable[[], bool], complaint: Callable[[], str]) -> None:  # type: ignore[no-untyped-def]
    from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
    from selenium.webdriver.support.wait import WebDriverWait

    try:
        WebDriverWait(browser, 60, ignored_exceptions=[StaleElementReferenceException]).until(lambda _: condition())
    except TimeoutException:
        pytest.fail(complaint())


def visible_texts(browser, selector: str, at_least: set[str]) -> list[str]:  # type: ignore[no-untyped-def]
    """The displayed texts, from the top down and left to right, as soon as all of `at_least` are among them."""
    seen: list[str] = []

    def all_there() -> bool:
        found = [e for e in browser.find_elements("css selector", selector) if e.is_displayed() and e.text]
        seen[:] = [e.text for e in sorted(found, key=lambda e: (e.location["y"], e.location["x"]))]
        return at_least <= set(seen)

    wait(browser, all_there, lambda: f"{at_least - set(seen)} not among the visible {seen}")
    return seen


@pytest.mark.debian
@CHROMIUM
def test_link_shows_columns_in_order_and_best_run_first(link: str, browser) -> None:  # type: ignore[no-untyped-def]
    browser.get(link)
    headers = visible_texts(browser, ".ag-header-cell-text, .ag-header-cell", set(COLUMNS))
    assert [text for text in dict.fromkeys(headers) if text in COLUMNS] == COLUMNS
    names = {"lenet5_scratch_digits", "ensemble_digits", "child_digits"}
    links = visible_texts(browser, ".ag-row a", names)
    assert [text for text in links if text in names] == ["child_digits", "lenet5_scratch_digits", "ensemble_digits"]
    values = visible_texts(browser, ".ag-cell", {"lenet5", "scratch", "digits", "0.875", "0.75", "0.625", "0.5"})
    assert values.count("lenet5") == 3


@pytest.mark.debian
@CHROMIUM
def test_run_opened_from_the_table_shows_its_table_and_plot(link: str, browser) -> None:  # type: ignore[no-untyped-def]
    def click(text: str) -> None:
        def clicked() -> bool:
            shown = [e for e in browser.find_elements("xpath", f"//*[text()='{text}']") if e.is_displayed()]
            for element in shown[:1]:
                element.click()
            return bool(shown)

        wait(browser, clicked, lambda: f"{text} is not shown")

    browser.get("about:blank")  # a change of the fragment alone would not load the page again
    browser.get(link)
    for text in ("ensemble_digits", "Artifacts", "evaluation", "table.csv"):
        click(text)
    visible_texts(browser, "th", {"model", "test_acc"})
    visible_texts(browser, "td", {"mean of 2", "0.9375"})
    click("accuracy.png")
    plots = "return [...document.images].some(image => image.naturalWidth == 61 && image.checkVisibility())"
    wait(browser, lambda: browser.execute_script(plots), lambda: "the plot is not shown")


@pytest.mark.parametrize("path", ["/", "/ajax-api/2.0/mlflow/experiments/get?experiment_id=1", "/get-artifact"])
def test_foreign_host_header_is_refused(link: str, path: str) -> None:
    def status(host: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port_of(link), timeout=30)
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse().status
        connection.close()
        return answer

    assert status(f"127.0.0.1:{port_of(link)}") != 403
    for host in ("evil.example", f"evil.example:{port_of(link)}", "127.0.0.1.evil.example"):
        assert status(host) == 403


def test_only_loopback_listens(link: str) -> None:
    socket.create_connection(("127.0.0.1", port_of(link)), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):  # a server on all addresses would answer here
        socket.create_connection(("127.0.0.2", port_of(link)), timeout=5).close()
    listening = [each for each in psutil.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert {each.laddr.ip for each in listening if each.laddr.port == port_of(link)} == {"127.0.0.1"}


def test_store_behind_a_server_gets_its_links_and_no_second_server(
    link: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"http://127.0.0.1:{port_of(link)}"
    serve_ui(Store(base, None, tmp_path))
    assert capsys.readouterr().out == f"digits: {link}\n"


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [each for child in children for each in descendants(child)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_few_processes_and_none_left_after(store: Store, number: signal.Signals, code: int) -> None:
    port = free_port()
    with running_ui(store, port) as (process, line):
        assert line.startswith("digits: http://127.0.0.1")
        started = descendants(process.pid)
        assert 1 <= len(started) <= 2
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == code, output
    deadline = time.monotonic() + 5
    while any(map(is_alive, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in started if is_alive(pid)]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_port_taken_is_said_before_anything_starts(store: Store) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^port={port}: Address already in use .*; give another.*$"):
            serve_ui(store, "digits", port)


def test_impossible_port(store: Store) -> None:
    with pytest.raises(UsageError, match=r"^port=70000: no such port"):
        serve_ui(store, "digits", 70000)


def test_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mlflow\.db: no runs there yet; make some with `make quickstart`"):
        serve_ui(resolve_store(f"sqlite:///{tmp_path}/mlflow.db"), None, free_port())
    assert os.listdir(tmp_path) == []


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database")
    with pytest.raises(UsageError, match=r"^tracking_uri=[^\n]*notes\.db: is there and is no sqlite database"):
        serve_ui(resolve_store(f"sqlite:///{tmp_path}/notes.db"), None, free_port())


def test_store_of_another_mlflow_is_refused_in_one_line(store: Store, tmp_path: Path) -> None:
    shutil.copy(str(store.database), tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(UsageError, match=r"^tracking_uri=[^\n]*mlflow\.db: [^\n]*out-of-date[^\n]*$"):
        serve_ui(resolve_store(f"sqlite:///{tmp_path}/mlflow.db"), "digits", free_port())


def test_store_without_runs_says_how_to_make_some(tmp_path: Path) -> None:
    empty = resolve_store(f"sqlite:///{tmp_path}/mlflow.db")
    MlflowClient(empty.tracking_uri).create_experiment("digits")
    with pytest.raises(UsageError, match="no runs there yet"):
        serve_ui(empty, None, free_port())


def test_unknown_experiment_names_the_known_ones(store: Store) -> None:
    with pytest.raises(UsageError, match=r"^experiment=digit: not in the store; give one of Default, digits$"):
        serve_ui(store, "digit", free_port())


def test_server_that_is_down_is_said_in_one_line_and_soon(tmp_path: Path) -> None:
    started = time.monotonic()
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UsageError, match=rf"^tracking_uri={address}: [^\n]*$"):
        serve_ui(Store(address, None, tmp_path))
    assert time.monotonic() - started < 30


def test_view_is_written_once_and_the_users_changes_to_it_stay(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    client = MlflowClient(store.tracking_uri)
    tag = f"mlflow.sharedViewState.{shared_view()[0]}"

    first = training_view_url(store, "digits", port=5055)
    assert (
        first
        == f"http://127.0.0.1:5055/#/experiments/1/runs?viewStateShareKey={shared_view()[0]}&workflowType=machine_learning"
    )
    written = json.loads(client.get_experiment("1").tags[tag])
    assert json.loads(written["state"])["orderByKey"] == "metrics.`best/val/acc`"

    client.set_experiment_tag("1", tag, json.dumps(written | {"name": "mine"}))
    assert training_view_url(store, "digits", port=5055) == first
    assert json.loads(client.get_experiment("1").tags[tag])["name"] == "mine"
