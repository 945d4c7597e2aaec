"""The LightningModule: what it does with pixels, seeds, losses and checkpoints."""

import math
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.callbacks import RunCheckpoints
from lit_cnn.training.checkpoints import CheckpointIO256, load_checkpoint
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.losses import NonFiniteLossError


def digits(**options: object) -> ImageDataModule:
    return ImageDataModule(image_size=32, num_workers=0, limit_train=64, batch_size=16, **options)  # type: ignore[arg-type]


def classifier(data: ImageDataModule, **options: object) -> LitClassifier:
    given = {"class_names": data.class_names, "mean": data.mean, "std": data.std, **options}
    return LitClassifier(num_classes=10, in_channels=1, image_size=32, **given)  # type: ignore[arg-type]


def trainer(**options: object) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    keeps = any(isinstance(callback, RunCheckpoints) for callback in options.get("callbacks", ()))  # type: ignore[attr-defined]
    options = {"enable_checkpointing": keeps, "plugins": [CheckpointIO256()], **quiet, **options}
    return pl.Trainer(accelerator="cpu", **options)  # type: ignore[arg-type]


def test_pixels_are_normalised_with_the_datas_mean_and_deviation() -> None:
    model = LitClassifier(in_channels=3, image_size=28, mean=[0.1, 0.2, 0.3], std=[0.5, 1.0, 2.0])
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    expected = (images.numpy() / 255 - np.array([0.1, 0.2, 0.3]).reshape(3, 1, 1)) / np.array([0.5, 1, 2]).reshape(
        3, 1, 1
    )
    np.testing.assert_allclose(model.normalize(images).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert model(images[:1]).shape == (1, 10)


def test_initial_weights_belong_to_the_seed_alone() -> None:
    one = LitClassifier(seed=3)
    torch.rand(100)
    two, other = LitClassifier(seed=3), LitClassifier(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.net.parameters(), two.net.parameters(), strict=True))
    assert not torch.equal(next(one.net.parameters()), next(other.net.parameters()))


def test_dropout_belongs_to_seed_and_step() -> None:
    class Step(pl.Callback):
        def __init__(self) -> None:
            self.draws: list[float] = []

        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
            pl_module.on_train_batch_start(args[0], 0)
            self.draws.append(float(torch.rand(1)))

    draws = []
    for seed in (0, 0, 1):
        data, step = digits(seed=seed), Step()
        torch.rand(seed + 7)
        trainer(max_epochs=1, callbacks=[step]).fit(classifier(data, seed=seed), datamodule=data)
        draws.append(step.draws)
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == len(draws[0]) == 4


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    data = digits()
    model = classifier(data)
    with torch.no_grad():
        model.net.classifier.bias[0] = math.nan  # type: ignore[union-attr,operator]
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(NonFiniteLossError, match=r"nan at step 0 .*learning rate"):
        trainer(max_epochs=1).fit(model, datamodule=data)
    assert all(
        torch.equal(
            a,
            b,
        )
        or a.isnan().any()
        for a, b in zip(before, model.parameters(), strict=True)
    )


def test_metrics_are_sklearns() -> None:
    data = digits()
    model = classifier(data)
    (metrics,) = trainer().test(model, datamodule=data, verbose=False)
    images, targets = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
    with torch.no_grad():
        probabilities = model.eval()(images).double().softmax(1).numpy()
    assert metrics["test/acc"] == pytest.approx(accuracy_score(targets, probabilities.argmax(1)), abs=1e-6)
    assert metrics["test/loss"] == pytest.approx(log_loss(targets, probabilities, labels=range(10)), abs=1e-4)
    top5 = (np.argsort(-probabilities, axis=1)[:, :5] == targets.numpy()[:, None]).any(1).mean()
    assert metrics["test/acc5"] == pytest.approx(top5, abs=1e-6)


def test_a_checkpoint_gives_the_same_logits_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    data, checkpoints = digits(), RunCheckpoints()
    seen: list[tuple[float, float]] = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            metrics = trainer.callback_metrics
            seen.append((float(metrics["val/acc"]), -float(metrics["val/loss"])))

    checkpoints.folder = tmp_path
    model = classifier(data, lr=3e-3)
    trainer(max_epochs=6, callbacks=[Watch(), checkpoints]).fit(model, datamodule=data)
    assert checkpoints.best["val/acc"] == max(seen)[0]
    assert len({accuracy for accuracy, _ in seen}) < len(seen), "there is a tie, which goes to the lower loss"
    assert checkpoints.best["epoch"] == seen.index(max(seen))
    saved = load_checkpoint(tmp_path / "last.ckpt")
    again = LitClassifier(**saved["hyper_parameters"])
    again.load_state_dict(saved["state_dict"])
    images = next(iter(data.test_dataloader()))[0]
    with torch.no_grad():
        assert torch.equal(again.eval()(images), model.eval()(images))


def test_last_is_written_by_time_within_an_epoch(tmp_path: Path) -> None:
    data, checkpoints, written = digits(), RunCheckpoints(every_seconds=0), []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
            written.append((tmp_path / "last.ckpt").exists())

    checkpoints.folder = tmp_path
    trainer(max_epochs=1, callbacks=[Watch(), checkpoints]).fit(classifier(data), datamodule=data)
    assert written == [False, True, True, True]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": 0.0}, "lr=0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"weight_decay": -1.0}, "weight_decay=-1"),
        ({"warmup_fraction": 1.0}, "warmup_fraction=1"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        LitClassifier(**options)  # type: ignore[arg-type]
