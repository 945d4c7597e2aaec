"""`import lit_cnn`: what is public is there, light to import, and does what its docstrings show."""

import ast
import doctest
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

import lit_cnn
from tests.conftest import REPO_ROOT
from tests.runs import copy_empty_store, inside, same_weights, tracked_runs

SMALL: dict[str, Any] = {"image_size": 32, "batch_size": 64, "limit_train": 256, "num_workers": 0}


def trained(seed: int = 0, weights: str | None = None, **options: Any) -> lit_cnn.Run:
    """A run of two epochs of LeNet-5 on digits, from Python."""
    data = lit_cnn.ImageDataModule("digits", **SMALL, seed=seed)
    model = lit_cnn.LitClassifier.for_data(data, arch="lenet5", lr=0.004, weights=weights)
    return lit_cnn.fit(model, data, **{"max_epochs": 2, "enable_progress_bar": False, **options})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A folder with a few runs: what the examples in docstrings may name."""
    folder = tmp_path_factory.mktemp("front_door")
    copy_empty_store(tmp_path_factory.getbasetemp(), folder)
    with inside(folder):
        run, other = trained(), trained(seed=1)
        # A low rate from trained weights: in one basin with the run.
        tuned = trained(weights=f"runs:/{run.id}", max_epochs=1, recipe="tuned")
        image = np.zeros((8, 8), np.uint8)
        yield {"lit_cnn": lit_cnn, "run": run, "other": other, "tuned": tuned, "image": image, "folder": folder}


def test_it_is_light_to_import_and_prints_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; started = time.process_time(); import lit_cnn; seconds = time.process_time() - started\n"
        "heavy = {'torch', 'lightning', 'mlflow', 'numpy', 'cv2', 'pandas', 'timm'} & sys.modules.keys()\n"
        "assert not heavy, heavy\nassert seconds < 0.2, seconds\nassert lit_cnn.ImageDataModule"
    )
    environment = {"PYTHONPATH": str(REPO_ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_public_name_is_there_and_typed() -> None:
    tree = ast.parse(Path(lit_cnn.__file__).read_text("utf-8"))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    imported = {alias.asname or alias.name for node in imports for alias in node.names}
    assert imported == lit_cnn._PLACES.keys() == set(lit_cnn.__all__) - {"UsageError"}
    assert set(lit_cnn.__all__) <= set(dir(lit_cnn))
    for name in lit_cnn.__all__:
        assert inspect.getdoc(getattr(lit_cnn, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lit_cnn.nothing


@pytest.mark.parametrize("name", [name for name in lit_cnn.__all__ if name not in ("UsageError",)])
def test_the_example_in_its_docstring_runs(name: str, place: dict[str, Any]) -> None:
    text = inspect.getdoc(getattr(lit_cnn, name)) or ""
    example = doctest.DocTestParser().get_doctest(text, dict(place), name, None, None)
    assert example.examples, f"lit_cnn.{name} has no example"
    with inside(place["folder"]):
        failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert failed == 0


def test_fit_is_what_the_command_line_does(place: dict[str, Any], tmp_path: Path) -> None:
    from lit_cnn.cli import main

    options = [f"--data.{name}={value}" for name, value in SMALL.items()]
    words = ["--data.dataset=digits", "--model.arch=lenet5", "--model.lr=0.004", "--trainer.max_epochs=2"]
    assert main(["fit", *options, *words]) == 0
    (by_command,) = tracked_runs(tmp_path)
    run: lit_cnn.Run = place["run"]
    assert run.checkpoint is not None
    assert same_weights(by_command.artifacts / "checkpoints" / "best.ckpt", run.checkpoint)
    (by_python,) = [each for each in tracked_runs(place["folder"]) if each.run_id == run.id]
    assert by_python.name == by_command.name == run.name and by_python.status == "FINISHED"
    own = {"trainer.enable_progress_bar", "model.arch", "model.transfer", "find_batch_size"}  # said, or resolved
    differing = {
        name
        for name in by_python.params.keys() | by_command.params.keys()
        if by_python.params.get(name) != by_command.params.get(name)
    }
    assert differing <= own, differing
    assert run.metrics["test/acc"] == by_command.metrics["test/acc"]
    # Its configuration trains the same run again.
    config = yaml.safe_load((by_python.artifacts / "config.yaml").read_text("utf-8"))
    assert config["model"]["lr"] == 0.004 and config["trainer"]["max_epochs"] == 2


def test_loggers_and_callbacks_of_the_user_work_beside_ours(tmp_path: Path) -> None:
    seen = []

    class Note(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append(trainer.current_epoch)

    run = trained(logger=CSVLogger(tmp_path / "logs"), callbacks=[Note()])
    assert seen == [0, 1]
    (file,) = (tmp_path / "logs").rglob("metrics.csv")
    header = file.read_text("utf-8").splitlines()[0].split(",")
    assert {"train/loss", "val/acc", "best/val/acc", "test/acc", "time/images_per_second"} <= set(header)
    (tracked,) = tracked_runs(tmp_path)
    assert tracked.run_id == run.id and "test/acc" in tracked.metrics
    with pytest.raises(lit_cnn.UsageError, match=r"^logger=True: the run is tracked in MLflow"):
        trained(logger=True)


def test_seeds_are_children_of_one_run_and_a_finished_parent_is_not_trained_again(tmp_path: Path) -> None:
    parent = trained(seeds=[0, 1], max_epochs=1)
    assert [child.name for child in parent.children] == ["lenet5_scratch_digits"] * 2
    mean = np.mean([child.metrics["test/acc"] for child in parent.children])
    assert parent.metrics["test/acc"] == pytest.approx(mean)
    assert "test/acc_std" in parent.metrics and parent.name.endswith("(2 seeds)")
    of_children = {run.tags["mlflow.parentRunId"] for run in tracked_runs(tmp_path, "fit")}
    assert of_children == {parent.id}
    # Each is the run that it would be alone.
    alone = trained(seed=1, max_epochs=1)
    assert alone.checkpoint is not None and parent.children[1].checkpoint is not None
    assert same_weights(alone.checkpoint, parent.children[1].checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epoch": 3}, r"^max_epoch=3: is an option neither .*did you mean max_epochs"),
        ({"monitor": "val/accuracy"}, r"^monitor=val/accuracy: choose one of val/acc"),
        ({"seeds": [1, 1]}, r"^seeds=1 1: give one or more different"),
        ({"seeds": [1], "ckpt_path": "last"}, r"^seeds=1: does not go with ckpt_path"),
        ({"ckpt_path": "nothing.ckpt"}, r"^ckpt_path=nothing.ckpt: no such file"),
        ({"ckpt_path": Path("nothing.ckpt")}, r"^ckpt_path=nothing.ckpt: no such file"),
        ({"ckpt_path": "last"}, r"^ckpt_path=last: no unfinished run"),
        ({"resume": "yes"}, r"^resume=yes: "),
        ({"precision": "8"}, r"^trainer: "),
        ({"ema_decay": 2.0}, r"^ema_decay=2: "),
        ({"max_epochs": -1}, r"^max_epochs=-1: "),
    ],
)
def test_a_mistake_makes_sense_without_the_command_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(lit_cnn.UsageError, match=message) as raised:
        trained(**options)
    assert not re.search(r"(?<!\w)--\w", str(raised.value))
    assert not list(tmp_path.glob("mlruns/journal/*"))


def test_model_and_data_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    data = lit_cnn.ImageDataModule("digits", **SMALL)
    model = lit_cnn.LitClassifier.for_data(data)
    with pytest.raises(lit_cnn.UsageError, match=r"^seed=0: the model's; the data has 3"):
        lit_cnn.fit(model, lit_cnn.ImageDataModule("digits", **SMALL, seed=3), max_epochs=1)
    with pytest.raises(lit_cnn.UsageError, match=r"^mean=None: the data has .*LitClassifier.for_data"):
        lit_cnn.fit(lit_cnn.LitClassifier(), data, max_epochs=1)
    assert not list(tmp_path.glob("mlruns/journal/*"))


def test_a_plain_trainer_trains_and_keeps_what_a_run_does(tmp_path: Path) -> None:
    data = lit_cnn.ImageDataModule("digits", **SMALL)
    model = lit_cnn.LitClassifier.for_data(data, arch="lenet5", lr=0.004)
    trainer = pl.Trainer(
        max_epochs=1,
        logger=False,
        callbacks=lit_cnn.callbacks(progress_bar=False),
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    trainer.fit(model, data)
    (best,) = tmp_path.rglob("best.ckpt")
    image = data.image_set.images[int(data.splits.test[0])]
    assert getattr(lit_cnn.load(best).predict(image), "label", None) in data.class_names
