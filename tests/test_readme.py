"""The README and docs/ do what they say: each command is run, in their order, in one folder, and so is the Python."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

# Training is cut to one epoch, the advice to one size of training set; all else is as printed.
SHORTER = ["--trainer.max_epochs=1"]
# In the order in which a reader follows them.
DOCUMENTS = (
    "README.md",
    "docs/index.md",
    "docs/your_images.md",
    "docs/predict.md",
    "docs/transfer.md",
    "docs/augmentation.md",
    "docs/best.md",
    "docs/search.md",
    "docs/data.md",
    "docs/remote.md",
    "docs/training.md",
    "docs/networks.md",
    "docs/seeds.md",
    "docs/ensembles.md",
    "docs/comparing.md",
    "docs/python.md",
    "docs/export.md",
    "docs/tracking.md",
    "docs/server.md",
    "docs/clusters.md",
    "docs/resume.md",
    "docs/faults.md",
    "docs/results.md",
    "docs/experiments.md",
    "docs/notebooks.md",
    "docs/commands.md",
    "docs/api.md",
    "docs/api_rooms.md",
    "docs/glossary.md",
)


def text_of(repo_root: Path) -> str:
    """Returns the README and all of docs/, one after the other."""
    return "\n".join((repo_root / name).read_text("utf-8") for name in DOCUMENTS)


def code_blocks(text: str, language: str) -> list[str]:
    """Returns what stands in the code blocks of a language, `python` or none."""
    blocks = re.findall(r"^```([^`\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for of, content in blocks if of == language]


def commands(text: str) -> list[str]:
    """Returns the lines of the code blocks that call lit-cnn, each once."""
    lines = [line.removeprefix("$ ") for block in code_blocks(text, "") for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith("lit-cnn ")))


def headings(text: str) -> set[str]:
    """Returns the anchors of a document's headings, as GitHub makes them."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def make_folder(folder: Path) -> None:
    """Writes 20 images of each of two classes that a network can tell apart."""
    generator = np.random.default_rng(0)
    for name, brightness in (("tigga", 60), ("misty", 180)):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = generator.normal(brightness, 30, (48, 64, 3)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{number}.png"), pixels)


def test_every_document_is_looked_at(repo_root: Path) -> None:
    assert {f"docs/{path.name}" for path in (repo_root / "docs").glob("*.md")} == set(DOCUMENTS) - {"README.md"}
    assert len((repo_root / "README.md").read_text("utf-8").splitlines()) <= 200


def test_every_command_is_in_the_reference(repo_root: Path) -> None:
    from lit_cnn.cli import HELP

    reference = (repo_root / "docs" / "commands.md").read_text("utf-8")
    assert set(re.findall(r"^```{command-help} (\S+)$", reference, re.MULTILINE)) | {"validate"} == set(
        re.findall(r"^  ([a-z]\S+) +\S", HELP, re.MULTILINE)
    )


@pytest.mark.parametrize("name", [*DOCUMENTS, "CONTRIBUTING.md", "CHANGELOG.md", "tests/benchmarks/results/README.md"])
def test_links_lead_somewhere(name: str, repo_root: Path) -> None:
    document = repo_root / name
    text = document.read_text("utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), link
            assert not anchor or anchor in headings(target.read_text("utf-8")), link


def test_every_make_target_that_is_named_exists(repo_root: Path) -> None:
    named = set(re.findall(r"(?:^|`|\$ )make ([a-z-]+)", text_of(repo_root), re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (repo_root / "Makefile").read_text(), re.MULTILINE))
    assert {"quickstart", "test", "test-full", "ui"} <= named <= targets


def test_every_benchmark_that_is_named_exists(repo_root: Path) -> None:
    named = set(re.findall(r"make bench NAME=([a-z_]+)|-m tests\.benchmarks\.([a-z_]+)", text_of(repo_root)))
    files = {"".join(names) for names in named}
    assert len(files) > 10
    assert files <= {path.stem for path in (repo_root / "tests" / "benchmarks").glob("*.py")}


def test_the_options_that_are_named_are_known(repo_root: Path) -> None:
    from lit_cnn.cli.precheck import known_options

    named = set(re.findall(r"`--([a-z0-9_.]+)", text_of(repo_root)))
    commands = "".join(path.read_text() for path in sorted((repo_root / "lit_cnn" / "cli").glob("*.py")))
    of_other_commands = set(re.findall(r'add_argument\(\s*"--([a-z0-9_]+)"', commands))
    of_other_commands |= {"seeds", "folds", "split_seeds", "config", "print_config"}
    unknown = {name for name in named - of_other_commands if name not in known_options()}
    assert len(named) > 60
    unknown = {name for name in unknown if not name.startswith("model.arch_options.")}
    assert unknown <= {"trainer.callbacks"}, unknown


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands(repo_root: Path, tmp_path: Path, lit_cnn_cli: Callable[..., Any]) -> None:
    make_folder(tmp_path / "images")
    printed = commands(text_of(repo_root))
    assert len(printed) >= 25
    run_id, started = "", set()
    for line in printed:
        given = shlex.split(line)[1:]
        if "fashion" in line:
            continue  # minutes each; tests/cli runs the same configuration in small
        given = [word.replace("FOLDER", "images") for word in given]
        if given[0] == "ui":
            continue  # serves until it is stopped; tests/tracking/test_ui.py
        if given[0] in ("ensemble", "compare", "distill"):
            place = iter(runs_of(tmp_path))
            given = [next(place) if word == "RUN_ID" else word for word in given]
        given = [word.replace("RUN_ID", run_id) for word in given]
        shorter = SHORTER if given[0] in ("fit", "advise", "distill") else []
        if given[0] == "advise":
            shorter = [*shorter, "--sizes", "24"]
        if given[0] == "tune":
            shorter = [*SHORTER, "--trials=2", "--final_seeds=1", *(["--folds=2"] if "--folds" in given else [])]
        if given[0] == "best":
            shorter = ["--budget=15s"]
        if given[:2] == ["fit", "--ckpt_path"]:
            shorter = ["--trainer.max_epochs=2"]  # in all
        finished = lit_cnn_cli(*given, *shorter, fresh=given[0] not in started)  # its own imports, in their own order
        started.add(given[0])
        expected = 2 if "resnet81" in line else 0
        assert finished.returncode == expected, (line, finished.stderr[-2000:])
        if given[0] == "fit" and expected == 0 and not {"--seeds", "--folds"}.intersection(given):
            run_id = re.findall(r"run ([0-9a-f]{32})", finished.stdout)[-1]
    assert (tmp_path / "predictions.csv").read_text().startswith("file,class,probability,error\n")
    assert (tmp_path / "sure.csv").read_text().startswith("file,class,probability,best_class,error\n")
    assert (tmp_path / "report" / "accuracy.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_readmes_python(repo_root: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "photos")
    photograph = cv2.imread(str(tmp_path / "photos" / "tigga" / "0.png"))
    assert photograph is not None
    cv2.imwrite(str(tmp_path / "tigga.jpg"), photograph)
    short, code = code_blocks(text_of(repo_root), "python")
    in_both = [re.sub(r" +#.*", "", text).replace("lit_cnn.load(run).", "cat.").splitlines() for text in (short, code)]
    assert set(in_both[0]) <= set(in_both[1])
    checked = code.replace("max_epochs=10", "max_epochs=1") + (
        "assert run.id and run.checkpoint.is_file() and run.metrics['test/acc'] >= 0\n"
        "assert len(lit_cnn.runs('photos')) >= 2\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", checked],
        env=os.environ | {"PYTHONPATH": str(repo_root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout == ""


def runs_of(folder: Path) -> list[str]:
    """Returns the ids of the digits runs, best on val first."""
    from lit_cnn.tracking import queries, resolve_store

    store = resolve_store(f"sqlite:///{folder}/mlruns/mlflow.db")
    return [run.run_id for run in queries.search_runs(store, "digits", "tags.kind = 'fit'")]
