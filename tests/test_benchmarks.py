"""What a benchmark leaves: a file of figures a machine, which says what was measured, where and at which commit."""

import datetime
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lit_cnn.search import candidates
from tests.benchmarks import gpu
from tests.benchmarks.common import RESULTS, Parts, as_json, commit, machine, machine_slug, report, save_result
from tests.benchmarks.peers import lit_cnn_best
from tests.benchmarks.peers.image_sets import num_images, targets_of, write_set
from tests.benchmarks.peers.tools import TOOLS, Job, Runner, Tool

FIELDS = {"name", "arguments", "commit", "date", "machine", "load_before", "versions", "figures"}
BENCHMARKS = sorted(path.stem for path in RESULTS.parent.glob("[a-z]*.py") if path.stem != "common")
EPYC: dict[str, Any] = {"processor": "AMD EPYC (Zen 4)", "cores": 2, "instructions": ["avx2", "bf16"], "gpu": None}


def check_result(file: Path) -> None:
    """Asserts that a file is a result, and named for what is in it."""
    result = json.loads(file.read_text("utf-8"))
    assert result.keys() == FIELDS
    assert result["name"] in BENCHMARKS
    assert file.name == f"{result['name']}.{machine_slug(result['machine'])}.json"
    assert datetime.date.fromisoformat(result["date"])
    assert result["commit"] is None or re.fullmatch(r"[0-9a-f]{12,40}\+?", result["commit"])
    assert result["machine"].keys() == {"processor", "cores", "instructions", "gpu"}
    assert {"python", "lit-cnn", "torch", "lightning", "mlflow"} <= result["versions"].keys()
    assert result["load_before"] >= 0 and result["figures"]


def test_a_result_says_what_was_measured_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = report("speeds", {"ours": [4.0, 6.0], "plain": [2.0, 2.0]}, "images per second", ("ours", "plain"), 2.0)
    file = save_result("train_step", figures, tmp_path / "results")
    check_result(file)
    assert json.loads(file.read_text())["figures"] == {
        "title": "speeds",
        "unit": "images per second",
        "measured": {"ours": [4.0, 6.0], "plain": [2.0, 2.0]},
        "ratio": "ours / plain",
        "ratios": [2.0, 3.0],
        "median_ratio": 2.5,
        "target": 2.0,
    }
    printed = capsys.readouterr().out
    assert re.search(r"ours / plain +│ 2\.500 +│ 2\.000 +│ 3\.000 +│ 2", printed)
    assert printed.endswith(f"written to results/{file.name}\n")


def test_what_make_gpu_runs_is_there_and_takes_these_options() -> None:
    for line in gpu.jobs(Path("train.py")).values():
        module, *arguments = line.split()
        folder = RESULTS.parent.parent if module == "determinism" else RESULTS.parent
        takes = (folder / f"{module}.py").read_text("utf-8")
        assert all(f'"{word}"' in takes for word in arguments if word.startswith("--")), line


def test_another_run_on_the_same_machine_takes_the_place_of_the_first(tmp_path: Path) -> None:
    files = [save_result("soak", {"seconds": seconds}, tmp_path) for seconds in (1.0, 2.0)]
    assert files[0] == files[1]
    assert json.loads(files[0].read_text())["figures"] == {"seconds": 2.0}


def test_a_measurement_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    file = tmp_path / "build" / "parts.jsonl"
    parts = Parts(file)
    parts.add("a 0", seconds=1.0)
    parts.add("a 1", error="exit code 1")
    with file.open("a") as cut_short:
        cut_short.write('\n{"part": "a 2", "sec')
    parts = Parts(file)
    assert {name: part.get("seconds") for name, part in parts.found.items()} == {"a 0": 1.0, "a 1": None}
    parts.add("a 1", seconds=2.0)
    assert {name: part["seconds"] for name, part in Parts(file).found.items()} == {"a 0": 1.0, "a 1": 2.0}


def test_a_tool_that_fails_is_told_and_gets_no_test_image_s_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_set("digits", tmp_path / "sets" / "digits")
    assert num_images(folder) == {"pool": 1347, "test": 450, "classes": 10}
    assert sorted(path.name for path in (folder / "test").iterdir()) == list(targets_of(folder))
    assert len({path.read_bytes() for path in folder.glob("*/**/*.png")}) == 1347 + 450
    monkeypatch.setitem(TOOLS, "fastai", Tool("fastai_recipe"))  # in this environment, which has none
    job = Job("fastai", "digits", minutes=0.1, repeat=0, cores=1)
    found = Runner(tmp_path, tmp_path).run(job, cores=str(min(os.sched_getaffinity(0))))
    assert found["error"] == "exit code 1: ModuleNotFoundError: No module named 'fastai'"
    assert [path.name for path in (tmp_path / "jobs" / "digits_0.1m_1c_fastai_0").iterdir()] == ["log.txt"]


def test_lit_cnn_is_given_the_networks_that_it_tries_by_itself() -> None:
    assert lit_cnn_best._OF_SMALL_IMAGES == candidates._SMALL_ARCHS


def test_the_machine_is_this_one() -> None:
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    here = machine()
    assert ("avx2" in here["instructions"]) == ("avx2" in flags)
    assert ("avx512" in here["instructions"]) == ("avx512f" in flags)
    assert ("bf16" in here["instructions"]) == ("avx512_bf16" in flags)
    assert here["cores"] >= 1 and here["processor"]


def test_a_machine_s_name_is_a_file_s() -> None:
    assert machine_slug(EPYC) == "amd-epyc-zen-4-2-cores-avx2-bf16"
    assert machine_slug({**EPYC, "gpu": "NVIDIA H200"}) == "amd-epyc-zen-4-2-cores-avx2-bf16-nvidia-h200"


def test_json_has_a_line_for_each_entry() -> None:
    assert as_json({"name": "soak", "figures": [1, 2]}) == '{\n  "name": "soak",\n  "figures": [1, 2]\n}\n'


def test_the_commit_is_that_of_the_checkout(repo_root: Path) -> None:
    if not (repo_root / ".git").exists():
        assert commit() is None
        return
    command = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True).stdout.strip()
    found = commit()
    assert found is not None and head.startswith(found.removesuffix("+"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_writes_its_result(name: str) -> None:
    source = (RESULTS.parent / f"{name}.py").read_text("utf-8")
    assert len(re.findall(rf'save_result\(\s*"{name}", ', source)) == 1
    assert "json.dumps" not in source or name == "fast_net"  # its callback hands seconds over in a file
    assert f"make bench NAME={name}" in source


def test_the_results_that_are_kept_are_whole() -> None:
    kept = sorted(RESULTS.glob("*.json"))
    assert kept
    for file in kept:
        check_result(file)
