"""Names of any bytes, from the command line to MLflow and back; and classes that YAML takes for something else."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_cnn.cli import main
from lit_cnn.cli.lit_cli import DataCLI
from lit_cnn.training.checkpoints import load_checkpoint
from tests.runs import SHORT, image_folder, tracked_runs

CLASSES = ("K%E4tzchen", "Hündchen", " dog")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder, classes and files with names that are not UTF-8, and with all that CSV and terminals care for."""
    folder = image_folder(tmp_path / "plain", [" dog", "Hündchen", "c"], 8)
    top = os.fsencode(tmp_path) + b"/fot\xf6s"
    os.rename(folder / "c", os.fsencode(folder) + b"/K\xe4tzchen")
    os.rename(folder, top)
    for name in os.listdir(top):
        for old, new in ((b"00", b"caf\xe9"), (b"01", b"a\rb"), (b"02", b' "\t,\n'), (b"03", b"50%25\xff")):
            os.rename(os.path.join(top, name, old + b".png"), os.path.join(top, name, new + b".png"))
    return Path(os.fsdecode(top))


def test_names_that_are_not_utf8_go_through_every_command(
    root: Path, tmp_path: Path, empty_store: None, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--data.dataset=image_folder", f"--data.root={root}", "--data.image_size=28", "--data.limit_train=null"]
    assert main(["fit", *SHORT, *own, "--trainer.max_epochs=1"]) == 0
    (run,) = tracked_runs(tmp_path)
    assert run.status == "FINISHED" and run.name.endswith("_fot%F6s")
    assert run.params["data.root"].endswith("/fot%F6s")
    assert "class_not_utf8, 1 time: K%E4tzchen is the name of a class" in capsys.readouterr().err
    checkpoint = next(run.artifacts.rglob("best.ckpt"))
    assert sorted(load_checkpoint(checkpoint)["lit_cnn"]["class_names"]) == sorted(CLASSES)

    assert main(["test", f"--ckpt_path=runs:/{run.run_id}"]) == 0  # finds the images by what the checkpoint says
    assert f"test/acc  {run.metrics['test/acc']:.4f}" in capsys.readouterr().out
    output = tmp_path / os.fsdecode(b"p\xe9.csv")
    arguments = [f"--ckpt_path=runs:/{run.run_id}", f"--folder={root}", f"--output={output}", "--num_workers=0"]
    assert main(["predict", *arguments]) == 0
    with output.open(newline="", encoding="utf-8") as table:
        files = {row["file"] for row in csv.DictReader(table)}
    assert len(files) == 24 and {"K%E4tzchen/caf%E9.png", "Hündchen/a\rb.png", " dog/50%2525%FF.png"} < files


def test_a_terminal_of_ascii_is_told_all(root: Path, lit_cnn_cli: Callable[..., Any]) -> None:
    arguments = ("check-data", "--config=own_images", f"--data.root={root}", "--level=quick")
    done = lit_cnn_cli(*arguments, "--format=json", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0 and done.stdout.isascii(), done.stderr
    found = {finding["kind"]: finding["cases"] for finding in json.loads(done.stdout)["findings"]}
    assert found["class_not_utf8"] == [["K%E4tzchen"]]
    assert ["Hündchen/caf%E9.png"] in found["name_not_utf8"]


WRITTEN = "[yes, no, on, 1, 010, 1e3, null, ~, 'a, b']"
MEANT = ["yes", "no", "on", "1", "010", "1e3", "null", "~", "a, b"]


@pytest.mark.parametrize(
    "arguments",
    [
        [f"--data.class_names={WRITTEN}"],
        ["--data.class_names", WRITTEN],
        [f"--data={{class_names: {WRITTEN}}}"],
        [f"--data.class_names+={each!r}" if " " in each else f"--data.class_names+={each}" for each in MEANT],
        ["--config=experiment.yaml"],
        ["--config=including.yaml"],
        ["--data=section.yaml"],
    ],
)
def test_classes_are_taken_as_they_are_written(arguments: list[str], tmp_path: Path) -> None:
    Path("section.yaml").write_text(f"class_names: {WRITTEN}\n")
    Path("including.yaml").write_text("data: section.yaml\n")
    Path("experiment.yaml").write_text(f"data:\n  val_fraction: 1e-1\n  class_names: {WRITTEN}\n")
    cli = DataCLI(arguments)
    assert cli.datamodule.options["class_names"] == MEANT
    kept = yaml.safe_load(yaml.safe_dump(cli.plain_config))  # as a run keeps it
    assert kept["data"]["class_names"] == MEANT
