"""`lit_cnn.tune` searches as `lit-cnn tune` does, from a script without a guard, and says mistakes as Python does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lit_cnn
from lit_cnn.cli import main
from tests.conftest import REPO_ROOT
from tests.runs import SHORT_OPTIONS, tracked_runs

pytestmark = pytest.mark.usefixtures("empty_store")

CONFIG = "lenet5_scratch_digits"
SPACE = {"model.lr": {"low": 1e-3, "high": 0.1, "log": True}}
SCRIPT = f"""
import lit_cnn
found = lit_cnn.tune({CONFIG!r}, search={SPACE!r}, options={SHORT_OPTIONS!r}, trials=2, final_seeds=0, output="a")
print(found.best.number, found.best.values, found.run)
"""


@pytest.mark.slow
def test_a_script_without_a_guard_searches_as_the_command_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("script.py").write_text(SCRIPT, encoding="utf-8")
    Path("s.yaml").write_text("model.lr: {low: 1e-3, high: 0.1, log: true}", encoding="utf-8")
    environment = {"PYTHONPATH": str(REPO_ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "script.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    of_script = json.loads(Path("a/trials.json").read_text("utf-8"))
    number, run = done.stdout.split()[0], done.stdout.split()[-1]
    assert run == of_script["run"] and "2 trials of up to 2 epochs" in done.stderr
    (best,) = [row for row in of_script["trials"] if row["is_best"] and row["state"] == "complete"]
    assert str(best["trial"]) == number and str(best["model.lr"]) in done.stdout
    words = ("--trials=2", "--final_seeds=0", "--search=s.yaml", f"--config={CONFIG}", "--output=b")
    assert main(["tune", *words, *(f"--{name}={value}" for name, value in SHORT_OPTIONS.items())]) == 0
    capsys.readouterr()
    of_command = json.loads(Path("b/trials.json").read_text("utf-8"))
    own = ("trial", "seed", "state", "model.lr", "value", "test_acc", "epochs")
    assert [[row[name] for name in own] for row in of_script["trials"]] == [
        [row[name] for name in own] for row in of_command["trials"]
    ]
    first, second = tracked_runs(tmp_path, "search")
    assert first.tags["config_digest"] == second.tags["config_digest"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"trials": 0}, "trials=0: give a whole number of at least 1"),
        ({"folds": 1}, "folds=1: give a whole number of at least 2"),
        ({"budget": "soon"}, "budget=soon: give a time such as 90s, 60m or 2h"),
        ({"budget": 0}, "budget=0: give seconds, or a time such as 60m"),
        ({"sampler": "gp"}, "sampler=gp: choose one of tpe, random, grid"),
        ({"search": {"model.lrr": [1, 2]}}, "search=search: model.lrr: no such option of lit-cnn fit; did you mean"),
        ({"search": {"model.lr": [1]}}, "search=search: there is one combination"),
        ({"search": "none.yaml"}, "search=none.yaml: no such file"),
        ({"options": {"model.lrr": 1}}, "model.lrr=1: no such option"),
        ({"options": {"config": "x"}}, "config=x: is no option of a run"),
        ({"options": {"data.num_folds": 3}, "folds": 3}, "num_folds=3: is chosen by folds"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(words: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(lit_cnn.UsageError) as caught:
        lit_cnn.tune(CONFIG, **{"search": SPACE, **words})
    assert expected in str(caught.value)
    assert not list(tmp_path.glob("mlruns/journal/*"))
