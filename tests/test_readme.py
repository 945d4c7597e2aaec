"""The README's commands do what it says: each is run, in its order, in one folder."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

# Its training is cut to one epoch; all else is as printed.
SHORTER = ["--trainer.max_epochs=1"]


def commands(readme: str) -> list[str]:
    """Returns the lines of the README's code blocks that call lit-cnn."""
    blocks = re.findall(r"^```\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("lit-cnn ")]


def make_folder(folder: Path) -> None:
    """Writes 20 images of each of two classes that a network can tell apart."""
    generator = np.random.default_rng(0)
    for name, brightness in (("tigga", 60), ("misty", 180)):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = generator.normal(brightness, 30, (48, 64, 3)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{number}.png"), pixels)


def test_every_make_target_that_the_readme_names_exists(repo_root: Path) -> None:
    named = set(re.findall(r"\bmake ([a-z-]+)", (repo_root / "README.md").read_text()))
    targets = set(re.findall(r"^([a-z-]+):", (repo_root / "Makefile").read_text(), re.MULTILINE))
    assert {"quickstart", "test", "test-full", "ui"} <= named <= targets


def test_the_options_in_the_readmes_table_are_known(repo_root: Path) -> None:
    from lit_cnn.cli.precheck import known_options

    readme = (repo_root / "README.md").read_text()
    named = set(re.findall(r"`--([a-z0-9_.]+)", readme))
    commands = "".join(path.read_text() for path in sorted((repo_root / "lit_cnn" / "cli").glob("*.py")))
    of_other_commands = set(re.findall(r'add_argument\(\s*"--([a-z0-9_]+)"', commands))
    of_other_commands |= {"seeds", "config", "print_config"}
    unknown = {name for name in named - of_other_commands if name not in known_options()}
    assert len(named) > 15
    assert unknown <= {"trainer.callbacks"}, unknown


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_readmes_commands(repo_root: Path, tmp_path: Path, lit_cnn_cli: Callable[..., Any]) -> None:
    (tmp_path / "configs").symlink_to(repo_root / "configs")
    make_folder(tmp_path / "images")
    printed = commands((repo_root / "README.md").read_text())
    assert len(printed) >= 6
    run_id, started = "", set()
    for line in printed:
        given = shlex.split(line)[1:]
        if "fashion" in line:
            continue  # minutes each; tests/cli runs the same configuration in small
        given = [word.replace("FOLDER", "images") for word in given]
        if given[0] in ("ensemble", "compare", "distill"):
            trained = ["fit", "--config", "configs/experiment/lenet5_scratch_digits.yaml", "--seeds", "0", "1", "2"]
            if given[:3] == ["ensemble", "--experiment", "digits"]:
                assert lit_cnn_cli(*trained, *SHORTER).returncode == 0
            others = runs_of(tmp_path)
            place = iter(others)
            given = [next(place) if word == "RUN_ID" else word for word in given]
        given = [word.replace("RUN_ID", run_id) for word in given]
        shorter = SHORTER if given[0] in ("fit", "advise", "distill") else []
        finished = lit_cnn_cli(*given, *shorter, fresh=given[0] not in started)  # its own imports, in their own order
        started.add(given[0])
        expected = 2 if "resnet81" in line else 0
        assert finished.returncode == expected, (line, finished.stderr[-2000:])
        if given[0] == "fit" and expected == 0:
            run_id = re.findall(r"run ([0-9a-f]{32})", finished.stdout)[-1]
    assert (tmp_path / "predictions.csv").read_text().startswith("file,class,probability\n")
    assert (tmp_path / "sure.csv").read_text().startswith("file,class,probability,best_class\n")
    assert (tmp_path / "report" / "accuracy.png").stat().st_size > 10_000


def runs_of(folder: Path) -> list[str]:
    """Returns the ids of the digits runs, best on val first."""
    from lit_cnn.tracking import queries, resolve_store

    store = resolve_store(f"sqlite:///{folder}/mlruns/mlflow.db")
    return [run.run_id for run in queries.search_runs(store, "digits", "tags.kind = 'fit'")]
