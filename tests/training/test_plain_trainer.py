"""A `lightning.Trainer` of the user's own trains, stores and logs as `lit-cnn fit` does."""

import csv
import doctest
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.callbacks import default_callbacks
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.linked import LINKED_FROM_DATA
from lit_cnn.training.load import load_classifier
from tests.runs import same_weights, tracked_runs


def digits(**options: Any) -> ImageDataModule:
    return ImageDataModule(**{"num_workers": 0, "limit_train": 64, "batch_size": 16, **options})


def trainer(callbacks: Sequence[pl.Callback], max_epochs: int = 2, **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    given = {"accelerator": "cpu", "logger": False, "log_every_n_steps": 2, **quiet, **options}
    return pl.Trainer(callbacks=list(callbacks), max_epochs=max_epochs, **given)


def ours(**options: Any) -> list[pl.Callback]:
    return default_callbacks(progress_bar=False, **options)


@pytest.fixture
def by_lightning(tmp_path: Path) -> Path:
    """A checkpoint that Lightning's own callback wrote of a fit with none of ours."""
    data = digits()
    by_itself = ModelCheckpoint(dirpath=tmp_path / "plain", filename="its")
    trainer([by_itself], 1).fit(LitClassifier.for_data(data), data)
    return tmp_path / "plain" / "its.ckpt"


def is_of_use(checkpoint: Path, folder: Path, expected: float, capsys: pytest.CaptureFixture[str]) -> None:
    """Asserts that a checkpoint loads, that `lit-cnn test` gives that accuracy, and that `lit-cnn predict` takes it."""
    data = digits()
    model, record = load_classifier(checkpoint)
    assert record["class_names"] == data.class_names and record["digests"] == data.digests
    capsys.readouterr()
    assert main(["test", "--ckpt_path", str(checkpoint)]) == 0
    assert f"test/acc  {expected:.4f}\n" in capsys.readouterr().out
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "a.png"), data.image_set.images[0])
    assert main(["predict", "--ckpt_path", str(checkpoint), str(folder / "images"), "--num_workers=0"]) == 0
    with open("predictions.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    images = next(iter(DataLoader(TensorDataset(torch.from_numpy(data.image_set.images[0:1])))))[0]
    assert row["class"] in model.class_names and images.dtype == torch.uint8


def test_with_no_logger_a_fit_is_that_of_the_command_line_and_its_checkpoints_are_of_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = digits(image_size=40)
    model = LitClassifier.for_data(data, arch="lenet5", lr=0.003)
    mine = trainer(ours())
    mine.fit(model, data)
    folder = tmp_path / "checkpoints"
    said = [line for line in capsys.readouterr().err.splitlines() if "best.ckpt" in line]
    assert said == [f"lit-cnn: best.ckpt and last.ckpt go to {folder}"]
    assert sorted(file.name for file in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    for file in folder.iterdir():
        with zipfile.ZipFile(file) as archive:
            assert archive.comment.startswith(b"sha256:")

    options = ["--data.limit_train=64", "--data.batch_size=16", "--data.num_workers=0", "--data.image_size=40"]
    options += ["--model.arch=lenet5", "--model.lr=0.003", "--trainer.max_epochs=2", "--trainer.precision=32-true"]
    assert main(["fit", *options]) == 0
    (run,) = tracked_runs(tmp_path)
    for name in ("best.ckpt", "last.ckpt"):
        theirs = run.artifacts / "checkpoints" / name
        assert same_weights(folder / name, theirs)
        saved, expected = load_checkpoint(folder / name), load_checkpoint(theirs)
        assert saved["hyper_parameters"] == expected["hyper_parameters"]
        assert saved.keys() == expected.keys()
        assert saved["lit_cnn"]["digests"] == expected["lit_cnn"]["digests"]
    (metrics,) = mine.test(datamodule=data, ckpt_path="best", verbose=False)
    assert metrics["test/acc"] == pytest.approx(run.metrics["test/acc"])
    # At 40 px, as nothing but the record in the checkpoint says.
    assert main(["test", "--ckpt_path", str(folder / "best.ckpt")]) == 0
    assert f"test/acc  {metrics['test/acc']:.4f}\n" in capsys.readouterr().out


def test_a_logger_of_the_users_own_gets_every_metric_at_the_steps_of_a_tracked_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = digits()
    mine = trainer(ours(ema_decay=0.5), logger=CSVLogger(tmp_path / "logs"))
    mine.fit(LitClassifier.for_data(data), data)
    folder = Path(mine.log_dir or "")
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = {name: [int(row["step"]) for row in rows if row[name]] for name in rows[0] if name != "step"}
    assert steps["train/loss_step"] == steps["lr"] == [1, 3, 5, 7]
    every_epoch = ("train/loss", "train/acc", "val/loss", "val/acc", "time/images_per_second", "data/wait_fraction")
    assert {name: steps[name] for name in every_epoch} == {name: [3, 7] for name in every_epoch}
    assert steps["best/val/acc"] == steps["best/epoch"] != []
    (metrics,) = mine.test(datamodule=data, ckpt_path="best", verbose=False)
    is_of_use(folder / "checkpoints" / "best.ckpt", tmp_path, metrics["test/acc"], capsys)


def test_no_checkpoint_of_another_fit_is_replaced_and_a_resumed_one_goes_on_in_its_folder(tmp_path: Path) -> None:
    options: dict[str, Any] = {"schedule": "constant", "warmup_fraction": 0.0}
    for max_epochs in (1, 2):
        data = digits()
        trainer(ours(), max_epochs).fit(LitClassifier.for_data(data, **options), data)
    first, second = tmp_path / "checkpoints", tmp_path / "checkpoints_2"
    assert (load_checkpoint(first / "last.ckpt")["epoch"], load_checkpoint(second / "last.ckpt")["epoch"]) == (0, 1)
    data = digits()
    model = LitClassifier.for_data(data, **options)
    trainer(ours(), 2).fit(model, data, ckpt_path=str(first / "last.ckpt"))
    assert not (tmp_path / "checkpoints_3").exists()
    assert same_weights(first / "last.ckpt", second / "last.ckpt")
    assert same_weights(first / "best.ckpt", second / "best.ckpt")


def test_snapshots_and_averages_need_no_more_than_the_options(tmp_path: Path) -> None:
    data = digits()
    model = LitClassifier.for_data(data, schedule="cyclic", cycles=2)
    trainer(ours(swa_start=1), 4).fit(model, data)
    names = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "snapshot_1.ckpt", "snapshot_2.ckpt"]
    states = {name: load_checkpoint(tmp_path / "checkpoints" / name) for name in names}
    last = states["last.ckpt"]
    assert last["callbacks"]["EqualAverage"]["first_epoch"] == 1 and last["averaging_state"]["n_averaged"] == 2
    with pytest.raises(UsageError, match="swa_start=5: give an epoch from 1 to 4"):
        trainer(ours(swa_start=5), 4).fit(LitClassifier.for_data(data, schedule="constant"), data)
    with pytest.raises(UsageError, match="cycles=3: cycles are equal and end with an epoch; give a multiple"):
        trainer(ours(), 4).fit(LitClassifier.for_data(data, schedule="cyclic", cycles=3), data)


def test_what_lightnings_own_callback_writes_is_of_use(
    by_lightning: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = digits()
    model, _ = load_classifier(by_lightning)
    (metrics,) = trainer([]).test(model, data, verbose=False)
    is_of_use(by_lightning, tmp_path, metrics["test/acc"], capsys)
    # And to start from, at the size that it was trained with.
    started = LitClassifier.for_data(digits(), weights=str(by_lightning), transfer="full")
    assert all(torch.equal(a, b) for a, b in zip(started.net.parameters(), model.net.parameters(), strict=True))


def test_what_lightnings_own_callback_wrote_is_refused_if_cut_or_changed(by_lightning: Path, tmp_path: Path) -> None:
    content = by_lightning.read_bytes()
    damaged = tmp_path / "damaged.ckpt"

    def is_refused(changed: bytes) -> bool:
        damaged.write_bytes(changed)
        try:
            load_checkpoint(damaged)
        except UsageError as error:
            return str(error).startswith(f"ckpt_path={damaged}: ") and "\n" not in str(error)
        return False

    lengths = {*range(0, len(content), len(content) // 200), *range(len(content) - 300, len(content))}
    assert [length for length in sorted(lengths) if not is_refused(content[:length])] == []
    with zipfile.ZipFile(by_lightning) as archive:
        places = [entry.header_offset + 200 + entry.file_size // 2 for entry in archive.infolist()]
        tensors = [entry for entry in archive.infolist() if entry.file_size > 1000]
        assert len(tensors) > 5
        for entry in tensors:
            place = content.index(archive.read(entry)) + entry.file_size // 2
            assert is_refused(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert places and not is_refused(content)
    assert is_refused(content + b"\0")


def test_only_a_classifiers_checkpoint_does_without_a_digest(tmp_path: Path) -> None:
    hparams = dict(LitClassifier().hparams)
    for saved in (
        {"state_dict": {}, "hyper_parameters": {**hparams, "arch": torch.nn.Linear(1, 1)}},
        {"state_dict": {}, "hyper_parameters": {"arch": "lenet5"}},
        {"hyper_parameters": hparams},
        [hparams],
    ):
        torch.save(saved, tmp_path / "other.ckpt")
        with pytest.raises(UsageError, match=r"other.ckpt: (cannot be read|is not a checkpoint of lit_cnn)"):
            load_checkpoint(tmp_path / "other.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": hparams}, tmp_path / "other.ckpt")
    assert load_checkpoint(tmp_path / "other.ckpt")["hyper_parameters"] == hparams


def test_a_model_for_other_images_than_the_datas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        trainer([]).fit(LitClassifier(image_size=28), digits())
    mean = digits().mean
    assert str(caught.value) == (
        "image_size=28: the data has 32; mean, std differ too; build the classifier with LitClassifier.for_data(data, "
        "...)"
    )
    with pytest.raises(UsageError, match=r"^std=\[0.5\]: the data has "):
        trainer([]).test(LitClassifier(mean=mean, std=[0.5]), digits(), verbose=False)
    assert not list(tmp_path.glob("*.ckpt"))


def test_weights_bring_the_images_they_expect_wherever_the_data_was_not_given_others(tmp_path: Path) -> None:
    source = digits(image_size=40, mean=[0.25], std=[0.4])
    trainer([ModelCheckpoint(dirpath=tmp_path, filename="start")], 1).fit(
        LitClassifier.for_data(source, arch="test_resnet"), source
    )
    start, arch = str(tmp_path / "start.ckpt"), "test_resnet"
    for options in ({}, {"image_size": 36}, {"std": [0.3]}):
        data = digits(**options)
        model = LitClassifier.for_data(data, arch, "head_only", start, head_lr_factor=2.0)
        seen = {name: model.hparams[name] for name in ("image_size", "mean", "std")}
        assert seen == {"image_size": 40, "mean": [0.25], "std": [0.4], **options}
        assert next(iter(data.val_dataloader()))[0].shape[-1] == seen["image_size"]
        arguments = [f"--data.{name}={value}" for name, value in options.items()]
        arguments += [
            f"--model.arch={arch}",
            f"--model.weights={start}",
            "--model.transfer=head_only",
            "--model.head_lr_factor=2",
        ]
        arguments += ["--data.limit_train=64", "--data.num_workers=0", "--trainer.max_epochs=1", "--data.batch_size=16"]
        assert main(["fit", *arguments, "--test_after_fit=false"]) == 0
        run = tracked_runs(tmp_path, "fit")[-1]
        theirs = load_checkpoint(run.artifacts / "checkpoints" / "last.ckpt")["hyper_parameters"]
        assert dict(model.hparams) == theirs
    # The same data, for a network that expects nothing.
    again = LitClassifier.for_data(data, arch)
    assert (again.hparams["image_size"], again.hparams["std"]) == (32, [0.3])


def test_what_needs_a_callback_or_our_images_is_refused_without(tmp_path: Path) -> None:
    data = digits()
    with pytest.raises(UsageError, match=r"^head_solver=lbfgs: needs the cached features of an ImageDataModule"):
        trainer([]).fit(LitClassifier.for_data(data, head_solver="lbfgs"), data)
    with pytest.raises(UsageError, match=r"^cycles=3: cycles are equal and end with an epoch"):
        trainer([], 4).fit(LitClassifier.for_data(data, schedule="cyclic", cycles=3), data)
    with pytest.raises(UsageError, match=r"^arch=airbench: its first layer is computed from the images"):
        loader = DataLoader(
            TensorDataset(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
        )
        trainer(ours()).fit(LitClassifier("airbench"), loader, loader)


@pytest.mark.parametrize("of", [LitClassifier.for_data, default_callbacks])
def test_an_example_runs_and_gives_what_it_shows(of: Callable[..., Any]) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(of, of.__name__)
    assert len(example.examples) > 1
    assert doctest.DocTestRunner().run(example).failed == 0


def test_every_linked_option_is_the_datas() -> None:
    data = digits(seed=3)
    model = LitClassifier.for_data(data)
    assert {name: model.hparams[name] for name in LINKED_FROM_DATA} == {
        name: getattr(data, name) for name in LINKED_FROM_DATA
    }
    assert model.hparams["seed"] == 3


def test_loaders_of_other_images_train_and_their_checkpoint_loads(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 32, 32), dtype=torch.uint8, generator=generator)
    loader = DataLoader(TensorDataset(images, torch.arange(40) % 10), 8)
    model = LitClassifier(arch="lenet5")
    trainer(ours()).fit(model, loader, loader)
    loaded, record = load_classifier(tmp_path / "checkpoints" / "last.ckpt")
    assert record["class_names"] == [str(label) for label in range(10)] and "digests" not in record
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))
