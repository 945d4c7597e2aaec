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
from lit_cnn.tracking.ui import saved_views, serve_ui, training_view_url

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
CHROMIUM = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs Debian's packages chromium and chromium-driver",
)
COLUMNS = ["Run Name", "Created", "label", "best/val/acc", "test/acc", "test_interval", "Duration", "transfer"]
COLUMNS += ["image_size", "seed", "arch", "val_interval", "Description"]


def make_run(
    client: MlflowClient, experiment_id: str, name: str, accuracy: float, status: str = "FINISHED", **tags: str
) -> str:
    of_run = {"mlflow.runName": name, "label": f"label of {name}", "test_interval": f"[0, 1] of {name}", "kind": "fit"}
    of_run |= {"arch": "lit/lenet5", "transfer": "scratch", "image_size": "32", "seed": "0", "val_interval": "[0, 1]"}
    of_run |= {"mlflow.note.content": "7 of 8 right."} | {key.replace("__", "."): tag for key, tag in tags.items()}
    run_id = client.create_run(experiment_id, tags=of_run).info.run_id
    logged = {"best/val/acc": accuracy, "test/acc": accuracy - 0.125, "data/wait": 0.5}
    steps = [Metric(metric, value, 0, 0) for metric, value in logged.items()]
    steps += [Metric(metric, 1 / (1 + step), 0, step) for metric in CURVES for step in range(3)]
    client.log_batch(run_id, steps)
    client.set_terminated(run_id, status)
    return str(run_id)


CURVES = ["val/acc", "val/loss", "train/loss"]


def make_store(folder: Path) -> Store:
    """A sqlite store with an experiment `digits`: a run with two children and a table; a run; and what is aside."""
    store = resolve_store(f"sqlite:///{folder}/mlflow.db")
    client = MlflowClient(store.tracking_uri)
    experiment_id = client.create_experiment("digits", artifact_location=store.artifact_location)
    parent = make_run(client, experiment_id, "three_seeds", 0.625, kind="seeds")
    of_child = {"mlflow__parentRunId": parent, "mlflow__runType": "evaluation"}
    make_run(client, experiment_id, "child_0", 0.5, **of_child)
    make_run(client, experiment_id, "child_1", 0.875, **of_child)
    make_run(client, experiment_id, "alone", 0.75)
    for kind in ("advice", "compare", "export"):
        make_run(client, experiment_id, f"aside_{kind}", 0.25, kind=kind)
    make_run(client, experiment_id, "aside_trial", 1, trial="advice")
    for status in ("FAILED", "KILLED"):
        make_run(client, experiment_id, f"aside_{status}", 1, status)
    client.log_image(parent, Image.new("RGB", (61, 40), "red"), "evaluation/accuracy.png")
    client.log_text(parent, "model,test_acc\nmean of 2,0.9375\n", "evaluation/table.csv")
    client.log_text(parent, "<h1>7 of 8 right</h1>", "report/report.html")
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
    size = {"width": 2900, "height": 900, "deviceScaleFactor": 1, "mobile": False}
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


def open_page(browser, link: str) -> None:  # type: ignore[no-untyped-def]
    browser.get("about:blank")  # a change of the fragment alone would not load the page again
    browser.get(link)


def click(browser, text: str) -> None:  # type: ignore[no-untyped-def]
    def clicked() -> bool:
        shown = [e for e in browser.find_elements("xpath", f"//*[text()='{text}']") if e.is_displayed()]
        for element in shown[:1]:
            element.click()
        return bool(shown)

    wait(browser, clicked, lambda: f"{text} is not shown")


def names_shown(browser, at_least: set[str]) -> list[str]:  # type: ignore[no-untyped-def]
    return [text for text in visible_texts(browser, ".ag-row a", at_least) if text in NAMES or "aside" in text]


NAMES = ("three_seeds", "child_0", "child_1", "alone")


@pytest.mark.debian
@CHROMIUM
def test_link_shows_columns_and_children_below_their_parent(link: str, browser) -> None:  # type: ignore[no-untyped-def]
    open_page(browser, link)
    headers = visible_texts(browser, ".ag-header-cell-text, .ag-header-cell", set(COLUMNS))
    assert [text for text in dict.fromkeys(headers) if text in COLUMNS] == COLUMNS
    assert names_shown(browser, set(NAMES)) == ["alone", "three_seeds", "child_1", "child_0"]  # newest first
    values = {"label of child_1", "0.875", "0.75", "[0, 1] of child_1", "scratch", "32", "lit/lenet5", "7 of 8 right."}
    visible_texts(browser, ".ag-cell", values)


@pytest.mark.debian
@CHROMIUM
def test_menu_has_the_best_first_and_everything(link: str, browser) -> None:  # type: ignore[no-untyped-def]
    open_page(browser, link)
    names_shown(browser, set(NAMES))
    click(browser, "lit_cnn: runs, newest first")
    click(browser, "lit_cnn: best on val first")
    best_first = ["child_1", "alone", "three_seeds", "child_0"]
    wait(browser, lambda: names_shown(browser, set(NAMES)) == best_first, lambda: str(names_shown(browser, set())))
    click(browser, "lit_cnn: best on val first")
    click(browser, "lit_cnn: everything")
    aside = {f"aside_{what}" for what in ("advice", "compare", "export", "trial", "FAILED", "KILLED")}
    names_shown(browser, aside)


@pytest.mark.debian
@CHROMIUM
def test_charts_begin_with_the_curves(link: str, browser) -> None:  # type: ignore[no-untyped-def]
    open_page(browser, f"{link}&compareRunsMode=CHART")
    assert visible_texts(browser, "h4", set(CURVES))[:3] == CURVES


@pytest.mark.debian
@CHROMIUM
def test_run_opened_from_the_table_shows_its_table_and_plot(link: str, browser) -> None:  # type: ignore[no-untyped-def]
    open_page(browser, link)
    for text in ("three_seeds", "Artifacts", "evaluation", "table.csv"):
        click(browser, text)
    visible_texts(browser, "th", {"model", "test_acc"})
    visible_texts(browser, "td", {"mean of 2", "0.9375"})
    click(browser, "accuracy.png")
    plots = "return [...document.images].some(image => image.naturalWidth == 61 && image.checkVisibility())"
    wait(browser, lambda: browser.execute_script(plots), lambda: "the plot is not shown")
    for text in ("report", "report.html"):
        click(browser, text)
    wait(browser, lambda: bool(browser.find_elements("css selector", "iframe")), lambda: "the report is not shown")
    browser.switch_to.frame(browser.find_element("css selector", "iframe"))
    visible_texts(browser, "h1", {"7 of 8 right"})
    browser.switch_to.default_content()


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


def test_views_are_written_once_and_the_users_changes_to_them_stay(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    client = MlflowClient(store.tracking_uri)
    runs, best, everything = saved_views()
    tags = [f"mlflow.sharedViewState.{view.key}" for view in (runs, best, everything)]

    def link_to(key: str, experiment: str = "1") -> str:
        query = f"viewStateShareKey={key}&workflowType=machine_learning"
        return f"http://127.0.0.1:5055/#/experiments/{experiment}/runs?{query}"

    assert training_view_url(store, "digits", port=5055) == link_to(runs.key)
    written = [json.loads(client.get_experiment("1").tags[tag]) for tag in tags]
    assert [each["name"] for each in written] == [view.name for view in (runs, best, everything)]
    assert json.loads(written[1]["state"])["orderByKey"] == "metrics.`best/val/acc`"

    client.set_experiment_tag("1", tags[0], json.dumps(written[0] | {"name": "mine"}))
    assert training_view_url(store, "digits", port=5055) == link_to(runs.key)
    assert json.loads(client.get_experiment("1").tags[tags[0]])["name"] == "mine"

    # Runs that another program made, or none but failed ones, are not behind an empty table.
    client.create_run(client.create_experiment("others"))
    assert training_view_url(store, "others", port=5055) == link_to(everything.key, "2")
