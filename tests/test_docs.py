"""The documentation as a site: it builds without a warning, fetches nothing, and is searched as it lies on the disk."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from lit_cnn import __all__ as public_names
from lit_cnn.models import create_model
from lit_cnn.models.describe import describe

pytestmark = [pytest.mark.slow, pytest.mark.debian]
PAGES = ("docs/index", "docs/networks", "docs/results", "notebooks/your_own_photographs")


@pytest.fixture(scope="module")
def site(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make docs` would write, built anew."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(folder)]
    built = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for switch in ("headless=new", "no-sandbox", "no-first-run", "disable-background-networking", "hide-scrollbars"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield started
    started.quit()


def test_nothing_is_fetched(site: Path) -> None:
    pages = [*site.rglob("*.html")]
    assert len(pages) > 25
    for page in pages:
        text = page.read_text("utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]*\shref="([^"]+)"', text)
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//|@import", sheet.read_text("utf-8")), sheet


def test_what_is_public_is_in_the_api(site: Path) -> None:
    described = set(re.findall(r'id="lit_cnn\.(\w+)"', (site / "docs" / "api.html").read_text("utf-8")))
    assert set(public_names) <= described


def test_the_first_page_is_found_from_the_folder(site: Path, browser: webdriver.Chrome) -> None:
    browser.get((site / "index.html").as_uri())
    WebDriverWait(browser, 30).until(lambda page: page.current_url.endswith("docs/index.html"))
    assert browser.find_element(By.TAG_NAME, "h1").text.startswith("lit_cnn")


@pytest.mark.parametrize("word", ["McNemar", "greedy soup", "--on_full_disk"])
def test_a_search_from_disk_has_results(word: str, site: Path, browser: webdriver.Chrome) -> None:
    browser.get((site / "docs" / "index.html").as_uri())
    field = browser.find_element(By.CSS_SELECTOR, "form.sidebar-search-container input")
    field.send_keys(word)
    field.submit()
    # Its results have no excerpts: a browser lets no page read another from the disk.
    found = WebDriverWait(browser, 30).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#search-results li a"))
    found[0].click()
    assert browser.current_url.startswith(site.as_uri())
    assert not browser.current_url.endswith("search.html")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [1280, 400])
def test_a_page_is_no_wider_than_its_window(page: str, width: int, site: Path, browser: webdriver.Chrome) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")  # what earlier pages said
    browser.get((site / f"{page}.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    pictures = browser.execute_script("return [...document.images].map(each => each.naturalWidth)")
    assert all(pictures), "a picture is missing"
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_networks_are_as_described(repo_root: Path) -> None:
    """The table of docs/networks.md: parameters of all networks, multiply-adds of one or two a paper, for the time."""
    lines = re.findall(r"^\| `.*$", (repo_root / "docs" / "networks.md").read_text("utf-8"), re.MULTILINE)
    rows = {cells[0]: cells[2:6] for cells in ([cell.strip(" `") for cell in line.split("|")][1:] for line in lines)}
    assert len(rows) >= 21
    for name, (pixels, parameters, _, multiply_adds) in rows.items():
        arch = name.partition("`")[0]
        channels, classes = (1 if arch.startswith("lenet") else 3), (1000 if int(pixels) > 100 else 10)
        with torch.device("meta"):
            net = create_model(arch, num_classes=classes, in_channels=channels, image_size=int(pixels))
        assert f"{sum(each.numel() for each in net.parameters()):,}" == parameters, arch
        if arch in ("lenet5", "alexnet", "nin", "googlenet", "resnet20", "residual18", "vgg16"):
            assert f"{describe(arch).totals['multiply_adds']:,}" == multiply_adds, arch
