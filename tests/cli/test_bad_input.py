"""A user's mistake gets one line that names the option and the value, exit code 2, and leaves nothing behind."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_cnn.cli import main
from lit_cnn.training.checkpoints import load_checkpoint, save_checkpoint
from tests.conftest import Finished
from tests.faults import wait_until
from tests.runs import CONFIGS, DIGITS, SHORT, fit, image_folder, tracked_runs

OWN_IMAGES = CONFIGS / "experiment" / "own_images.yaml"

# What the arguments alone tell: (arguments, what the line must say).
AT_ONCE = [
    (["frobnicate"], ["frobnicate", "fit", "ensemble"]),
    (["fit", f"--config={DIGITS}", "--data.batch_size=0"], ["--data.batch_size 0", "at least 1"]),
    (["fit", f"--config={DIGITS}", "--data.batch_sise", "64"], ["--data.batch_sise 64", "--data.batch_size"]),
    (["fit", "--config", "nowhere.yaml"], ["--config nowhere.yaml", "lit-cnn configs"]),
    (["fit", "--config", "own_image"], ["--config own_image", "experiment/own_images"]),
    (["fit", "--config=own_images", "--model.num_classes=3"], ["--model.num_classes 3", "no such option"]),
    (["fit", f"--config={OWN_IMAGES}", "--data.root", "nowhere"], ["--data.root nowhere", "folder"]),
    (["fit", f"--config={DIGITS}", "--seeds", "0", "one"], ["--seeds 0 one", "whole numbers"]),
]

# What takes a look at the options' values: (options of the short fit, what the line must say).
FIT = [
    (["--model.arch=resnet81"], ["--model.arch", "resnet81", "resnet18"]),
    (["--data.image_size=8"], ["--data.image_size", "8", "12"]),
    (["--nonsense=3"], ["--nonsense"]),
    (["--trainer.max_epochz=3"], ["--trainer.max_epochz", "--trainer.max_epochs"]),
    (["--data.batch_size=abc"], ["--data.batch_size abc", "whole number"]),
    (["--data.augment=nonsense"], ["--data.augment nonsense: is no list of transforms", "--config augment/standard"]),
    (["--data.num_workers=-1"], ["--data.num_workers -1"]),
    (["--data.limit_train=0"], ["--data.limit_train 0"]),
    (["--data.val_fraction=1.5"], ["--data.val_fraction", "1.5"]),
    (["--data.dataset=digitz"], ["data.dataset", "digitz"]),
    (["--data.interpolation=nearestt"], ["interpolation", "nearestt"]),
    (["--data.augment", "[{class_path: albumentations.HorizontalFlipp}]"], ["--data.augment", "HorizontalFlipp"]),
    (
        ["--data.augment", "[{class_path: albumentations.Affine, init_args: {rotate: hello}}]"],
        ["--data.augment", "Affine", "hello"],
    ),
    (["--model.arch_options={foo: 3}"], ["--model.arch_options", "foo"]),
    (["--model.lr=0"], ["--model.lr 0"]),
    (["--model.lr=nan"], ["model.lr", "nan"]),
    (["--model.lr=fast"], ["lr", "fast"]),
    (["--model.weight_decay=-1"], ["--model.weight_decay -1"]),
    (["--model.warmup_fraction=1.5"], ["--model.warmup_fraction 1.5"]),
    (["--model.label_smoothing=1"], ["--model.label_smoothing 1"]),
    (["--ema_decay=1"], ["--ema_decay 1", "below 1"]),
    (["--ema_decay=often"], ["ema_decay", "often"]),
    (["--on_full_disk=wait"], ["on_full_disk", "wait", "continue"]),
    (["--on_full_disk=continue", "--trainer.devices=2"], ["--on_full_disk continue", "one device"]),
    (["--model.schedule=sawtooth"], ["schedule", "sawtooth"]),
    (["--model.optimizer=adamww"], ["--model.optimizer adamww", "adamw"]),
    (["--model.optimizer_options={foo: 3}"], ["--model.optimizer_options", "foo"]),
    (["--model.weights=pretrained"], ["pretrained", "lit/lenet5"]),
    (["--model.weights=nowhere.pth"], ["--model.weights nowhere.pth", "no such file"]),
    (["--model.weights=offline"], ["--model.weights offline", "lit/lenet5", "tf_efficientnet_lite0"]),
    (["--model.weights=runs:/abcdef123"], ["--model.weights runs:/abcdef123", "no runs there yet"]),
    (["--model.transfer=head_only"], ["--model.transfer head_only", "--model.weights"]),
    (["--model.transfer=half"], ["transfer", "half"]),
    (["--model.cut_at=7"], ["--model.cut_at 7", "4 (classifier)"]),
    (["--model.head=deep"], ["head", "deep"]),
    (["--model.layer_decay=2"], ["--model.layer_decay 2"]),
    (["--model.head_lr_factor=0"], ["--model.head_lr_factor 0"]),
    (["--data.sampler=fair"], ["sampler", "fair"]),
    (["--data.sampler=balanced", "--model.class_weights=balanced"], ["--model.class_weights", "--data.sampler"]),
    (["--data.class_names=[a, b]"], ["--data.class_names [a, b]", "lacks 0"]),
    (["--data.dataset=manifest"], ["--data.root", ".csv, .tsv or .parquet"]),
    (["--trainer.accelerator=foo"], ["--trainer", "foo"]),
    (["--trainer.max_epochs=-1"], ["--trainer.max_epochs -1"]),
    (["--trainer.max_epochs=many"], ["max_epochs", "many"]),
    (["--monitor=val/foo"], ["--monitor val/foo", "val/acc"]),
    (["--resume=perhaps"], ["resume", "perhaps"]),
    (["--ckpt_path=nowhere.ckpt"], ["--ckpt_path nowhere.ckpt", "no such file"]),
    (["--ckpt_path=last"], ["--ckpt_path last", "no unfinished run"]),
    (["--ckpt_path=runs:/abcdef123"], ["no runs there yet"]),
    (["--tracking_uri=sqlite:////proc/x/mlflow.db"], ["--tracking_uri /proc/x/mlflow.db", "cannot be written"]),
    (["--tracking_uri=file:./mlruns"], ["--tracking_uri file:./mlruns", "sqlite:///"]),
    (["--seeds", "0", "0"], ["--seeds 0 0"]),
    (["--seeds"], ["--seeds"]),
    (["--seeds", "0", "1", "--seed_everything=3"], ["--seeds", "--seed_everything"]),
    (["--seeds", "0", "1", "--ckpt_path=last"], ["--seeds", "--ckpt_path"]),
    (["--seeds", "0", "1", "--model.arch=resnet81"], ["--model.arch", "resnet81"]),
]

# Mistakes inside a file that --config names: (its text, what the line must say).
CONFIG_FILES = [
    ("model:\n  archh: lenet5\n", ["--config mistaken.yaml: model.archh", "model.arch"]),
    ("modell:\n  arch: lenet5\n", ["--config mistaken.yaml: modell", "model"]),
    ("model:\n  lr: fast\n", ["lr", "fast"]),
    ("data:\n  batch_size: [1, 2]\n", ["batch_size"]),
    ("data:\n  batch_size: 0\n", ["--data.batch_size 0"]),
    ("model: [\n", ["--config mistaken.yaml", "line 2"]),
    ("- a\n- list\n", ["--config mistaken.yaml"]),
    ("model: ../nowhere.yaml\n", ["--model ../nowhere.yaml"]),
]

OTHERS = [
    (["test"], ["--ckpt_path"]),
    (["test", "--ckpt_path=nowhere.ckpt"], ["--ckpt_path nowhere.ckpt", "no such file"]),
    (["test", "--ckpt_path=runs:/abcdef123"], ["no runs there yet"]),
    (["validate", "--ckpt_path", "nowhere.ckpt"], ["--ckpt_path nowhere.ckpt", "no such file"]),
    (["predict", "--ckpt_path=nowhere.ckpt", "--folder=."], ["--ckpt_path nowhere.ckpt", "no such file"]),
    (["predict", "--folder=."], ["--model"]),
    (["ensemble", "--runs", "abcdef123"], ["no runs there yet"]),
    (["ensemble"], ["--runs", "--experiment"]),
    (["compare"], ["--runs", "--experiment"]),
    (["compare", "--runs", "aaaaaa"], ["--runs", "2 arguments"]),
    (["compare", "--runs", "aaaaaa", "bbbbbb"], ["no runs there yet"]),
    (["compare", "--runs", "aaaaaa", "bbbbbb", "--experiment", "digits"], ["--runs", "--experiment"]),
    (["compare", "--runs", "aaaaaa", "bbbbbb", "--filter", "tags.seed = '1'"], ["--filter", "--experiment"]),
    (["compare", "--experiment", "digits", "--split", "train"], ["--split", "train"]),
    (["compare", "--experiment", "digits", "--format", "xml"], ["--format", "xml"]),
    (["compare", "--runs", "aaaaaa", "bbbbbb", "--batch_size", "0"], ["--batch_size 0"]),
    (["ensemble", "--runs", "abcdef123", "--experiment", "digits"], ["--runs", "--experiment"]),
    (["ensemble", "--experiment", "digits", "--views", "7"], ["--views 7", "1, 2, 5, 10, 144"]),
    (["ensemble", "--experiment", "digits", "--limit_144", "9"], ["--limit_144 9", "add 144 to --views"]),
    (["ensemble", "--experiment", "digits", "--views", "144", "--limit_144", "0"], ["--limit_144 0", "at least 1"]),
    (["ensemble", "--experiment", "digits", "--combine", "median"], ["--combine median", "mean, logits, vote, greedy"]),
    (["ensemble", "--experiment", "digits", "--weights", "1", "2"], ["--weights 1 2", "--runs"]),
    (["ensemble", "--runs", "aaaaaa", "bbbbbb", "--weights", "1"], ["--weights 1", "1 weight for 2 members"]),
    (["ensemble", "--runs", "aaaaaa", "bbbbbb", "--weights", "1", "-0.5"], ["--weights 1 -0.5", "at least 0"]),
    (["ensemble", "--runs", "aaaaaa", "bbbbbb", "--weights", "0", "0"], ["--weights 0 0", "not all 0"]),
    (["ensemble", "--runs", "aaaaaa", "bbbbbb", "--weights", "1", "nan"], ["--weights 1 nan", "finite"]),
    (["ensemble", "--runs", "aaaaaa", "--weights", "1", "--combine", "greedy"], ["--weights 1", "--combine greedy"]),
    (["ensemble", "--experiment", "digits", "--top_k", "0"], ["--top_k 0", "at least 1"]),
    (["ensemble", "--experiment", "digits", "--top_k", "two"], ["--top_k", "two"]),
    (["ensemble", "--experiment", "digits", "--batch_size", "0"], ["--batch_size 0"]),
    (["ensemble", "--experiment", "digits", "--colour", "red"], ["--colour"]),
    (["ui"], ["no runs there yet"]),
    (["ui", "--port", "http"], ["--port", "http"]),
]


@pytest.mark.parametrize(("arguments", "said"), AT_ONCE, ids=lambda value: " ".join(value)[-40:])
def test_arguments_alone_are_refused_within_two_seconds(
    arguments: list[str], said: list[str], lit_cnn_cli: Callable[..., Finished], tmp_path: Path
) -> None:
    # The machine may be busy: the best of three counts, and the first that is quick enough ends it.
    for _ in range(3):
        done = lit_cnn_cli(*arguments, fresh=True)
        assert done.returncode == 2
        assert_one_line(done.stderr, said)
        assert done.stdout == ""
        if done.seconds < 2:
            break
    assert done.seconds < 2
    assert written(tmp_path) == []


@pytest.mark.parametrize(("arguments", "said"), FIT, ids=lambda value: " ".join(value)[-40:])
def test_a_fit_is_refused(
    arguments: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *SHORT, *arguments]) == 2
    assert_one_line(capsys.readouterr().err, said)
    assert written(tmp_path) == []


@pytest.mark.parametrize(("text", "said"), CONFIG_FILES, ids=lambda value: " ".join(value)[-40:].replace("\n", " "))
def test_a_mistake_in_a_config_file_is_refused(
    text: str, said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mistaken.yaml").write_text(text, encoding="utf-8")
    assert main(["fit", *SHORT[:1], "--config=mistaken.yaml"]) == 2
    assert_one_line(capsys.readouterr().err, said)
    assert written(tmp_path) == ["mistaken.yaml"]


@pytest.mark.parametrize(("arguments", "said"), OTHERS, ids=lambda value: " ".join(value)[-40:])
def test_other_commands_refuse(
    arguments: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert_one_line(capsys.readouterr().err, said)
    assert written(tmp_path) == []


@pytest.mark.parametrize("classes", [[], ["only"], ["empty_a", "empty_b"]], ids=["empty", "one class", "no images"])
def test_a_folder_without_two_classes_of_images_is_refused(
    classes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    image_folder(tmp_path / "images", classes, per_class=4 if classes == ["only"] else 0)
    assert main(["fit", f"--config={OWN_IMAGES}", "--data.root=images", "--data.num_workers=0"]) == 2
    assert_one_line(capsys.readouterr().err, ["images"])
    assert written(tmp_path) == ["images"]


@pytest.mark.usefixtures("empty_store")
def test_an_image_that_a_worker_cannot_decode_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(tmp_path / "images", ["cat", "dog"], per_class=10)
    for path in (tmp_path / "images" / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:-500])
    data = ["--data.dataset=image_folder", "--data.root=images", "--data.in_channels=1", "--data.limit_train=null"]
    assert fit(*data, "--data.num_workers=2") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("lit-cnn: error: ") and "Traceback" not in line
    assert str(Path("images", "cat")) in line and "this image cannot be decoded" in line


def test_a_store_that_is_no_database_is_refused_and_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.db").write_text("a letter to my aunt, longer than a header", encoding="utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///plain.db")
    assert fit() == 2
    assert_one_line(capsys.readouterr().err, ["plain.db", "no sqlite database"])
    assert (tmp_path / "plain.db").read_text(encoding="utf-8").startswith("a letter")
    assert written(tmp_path) == ["plain.db"]


@pytest.mark.parametrize("command", ["ensemble", "test"])
def test_a_run_id_that_is_not_there_is_refused(
    command: str, empty_store: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"ensemble": ["--runs", "abcdef123"], "test": ["--ckpt_path=runs:/abcdef123"]}[command]
    assert main([command, *arguments]) == 2
    assert_one_line(capsys.readouterr().err, ["abcdef123"])


@pytest.mark.parametrize("damage", ["text", "cut", "changed", "foreign"])
def test_a_damaged_checkpoint_is_refused(
    damage: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.ckpt"
    shutil.copyfile(checkpoint_of(trained), path)
    content = bytearray(path.read_bytes())
    if damage == "text":
        path.write_text("no checkpoint", encoding="utf-8")
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        save_checkpoint({"state_dict": {}}, path)
    for command in (["test"], ["predict", "--folder=."]):
        assert main([*command, f"--ckpt_path={path}"]) == 2
        assert_one_line(capsys.readouterr().err, ["damaged.ckpt"] if command == ["test"] else [])
    assert written(tmp_path) == ["damaged.ckpt"]


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_checkpoint_of_other_classes_is_refused(
    command: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(tmp_path / "images", ["cat", "dog", "emu"], per_class=10)
    data = ["--data.dataset=image_folder", "--data.root=images", "--data.in_channels=1", "--data.num_workers=0"]
    ckpt_path = f"--ckpt_path={checkpoint_of(trained)}"
    short = [*SHORT, "--data.limit_train=null"] if command == "fit" else ["--data.limit_train=null"]
    assert main([command, *short, *data, ckpt_path]) == 2
    assert_one_line(capsys.readouterr().err, ["--ckpt_path", "10 classes", "3 (cat, dog, emu"])
    assert written(tmp_path) == ["images"]


@pytest.mark.usefixtures("empty_store")
def test_a_loss_that_is_not_finite_ends_the_run_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every_step = ("--checkpoint_seconds=0", "--trainer.log_every_n_steps=1")
    # The first step is finite, else the run is refused before it is opened.
    assert fit("--model.lr=1e6", "--model.optimizer=sgd", *every_step) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    wait_until(lambda: [run.status for run in tracked_runs(tmp_path)] == ["FAILED"])
    (run,) = tracked_runs(tmp_path)
    losses = run.history["train/loss_step"]
    assert all(math.isfinite(value) for _, value in losses)
    failed_at = losses[-1][0] + 1
    assert line.startswith("lit-cnn: error: the loss is ")
    assert f"at step {failed_at} (epoch 0), learning rate " in line
    assert "Try a lower lr" in line
    (last,) = tmp_path.glob("mlruns/journal/*/last.ckpt")
    checkpoint = load_checkpoint(last)
    assert checkpoint["global_step"] <= failed_at
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())


def assert_one_line(stderr: str, said: list[str]) -> None:
    (line,) = stderr.splitlines()
    assert line.startswith("lit-cnn: error: ")
    assert len(line) < 700
    assert [part for part in said if part not in line] == [], line


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".cache")


def checkpoint_of(trained: Path) -> Path:
    return tracked_runs(trained, "fit")[0].artifacts / "checkpoints" / "last.ckpt"
