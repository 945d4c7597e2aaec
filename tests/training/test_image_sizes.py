"""`image_sizes`: training images that grow from epoch to epoch, and exact resume among them."""

import signal
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import pytest
import sklearn.datasets
import torch

from lit_cnn.cli import main
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.image_sizes import resized, size_of_epoch
from lit_cnn.training.callbacks import RunCheckpoints
from tests.runs import DIGITS, TrackedRun, tracked_runs

SIZES = [16, 24, 32]
FIT = (
    *("fit", f"--config={DIGITS}", "--model.arch=resnet20", "--data.image_size=32", "--data.num_workers=0"),
    *("--data.limit_train=128", "--data.batch_size=32", "--trainer.max_epochs=6", "--test_after_fit=false"),
    *(f"--data.image_sizes={SIZES}", "--trainer.callbacks+=tests.training.test_image_sizes.Seen"),
)


class Seen(pl.Callback):
    """Notes the size of all images that the network sees, and stops the run where there is a file `stop`."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Looks on."""
        pl_module.net.register_forward_pre_hook(self._note)
        self._trainer = trainer

    def _note(self, net: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        part = "train" if self._trainer.training else "val"
        with Path("seen").open("a", encoding="utf-8") as file:
            file.write(f"{self._trainer.current_epoch} {part} {inputs[0].shape[-1]}\n")

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Stops in the midst of the fourth epoch."""
        if Path("stop").exists() and trainer.global_step == 14:
            checkpoints = trainer.checkpoint_callback
            assert isinstance(checkpoints, RunCheckpoints)
            checkpoints.signal_number = signal.SIGTERM


def test_each_size_has_an_equal_share_of_the_epochs() -> None:
    assert [size_of_epoch(SIZES, epoch, 6) for epoch in range(6)] == [16, 16, 24, 24, 32, 32]
    assert [size_of_epoch(SIZES, epoch, 7) for epoch in range(7)] == [16, 16, 16, 24, 24, 32, 32]
    assert [size_of_epoch([64], epoch, 2) for epoch in range(2)] == [64, 64]


def test_images_are_averaged_where_they_shrink() -> None:
    image = sklearn.datasets.load_sample_images().images[0][:400, :400].copy()
    small = resized(torch.from_numpy(image).permute(2, 0, 1)[None], 100)[0].permute(1, 2, 0).numpy()
    averaged = cv2.resize(image, (100, 100), interpolation=cv2.INTER_AREA)
    assert small.dtype == np.uint8 and np.corrcoef(small.ravel(), averaged.ravel())[0, 1] > 0.99
    skipping = cv2.resize(image, (100, 100), interpolation=cv2.INTER_NEAREST)
    assert np.corrcoef(skipping.ravel(), averaged.ravel())[0, 1] < 0.95


def test_a_module_of_one_s_own_gets_them_too() -> None:
    seen = []

    class Own(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            seen.append(batch[0].shape[-1])
            return self.weight.sum()

        def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
            assert batch[0].shape[-1] == 32

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = ImageDataModule("digits", image_size=32, image_sizes=SIZES, limit_train=64, batch_size=64, num_workers=0)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(max_epochs=3, accelerator="cpu", enable_model_summary=False, **options).fit(Own(), datamodule=data)
    assert seen == SIZES


@pytest.mark.usefixtures("empty_store")
def test_training_goes_through_the_sizes_and_a_resume_goes_on_with_the_same(tmp_path: Path) -> None:
    assert main([*FIT]) == 0
    seen = Path("seen").read_text("utf-8").split("\n")[:-1]
    expected = [f"{epoch} {part} {size}" for epoch in range(6) for part, size in _of_epoch(epoch)]
    assert list(dict.fromkeys(seen))[:12] == expected  # the report looks at val once more
    (whole,) = tracked_runs(tmp_path)

    Path("seen").unlink()
    Path("stop").touch()
    assert main([*FIT, "--resume=auto", "--seed_everything=0", "--recipe=again"]) == 128 + signal.SIGTERM
    Path("stop").unlink()
    assert main([*FIT, "--resume=auto", "--seed_everything=0", "--recipe=again"]) == 0
    assert list(dict.fromkeys(Path("seen").read_text("utf-8").split("\n")[:-1]))[:12] == expected
    (resumed,) = [run for run in tracked_runs(tmp_path) if run.run_id != whole.run_id]
    assert _losses(resumed) == _losses(whole)


def _of_epoch(epoch: int) -> list[tuple[str, int]]:
    return [("train", SIZES[epoch // 2]), ("val", 32)]


def _losses(run: TrackedRun) -> list[tuple[int, float]]:
    return sorted(set(run.history["train/loss_step"])) + sorted(set(run.history["val/loss"]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model.arch=lenet5"], "--data.image_sizes 16: lit/lenet5, made for 32 px, does not take it"),
        (["--trainer.max_epochs=2"], "--data.image_sizes 16 24 32: needs 3 epochs, and there are 2"),
        (
            ["--trainer.max_epochs=-1", "--trainer.max_steps=9"],
            "--data.image_sizes 16 24 32: needs to know the epochs",
        ),
        (["--data.image_sizes=[]"], "--data.image_sizes: give pixels, at most --data.image_size 32"),
        (["--data.image_sizes=[64]"], "--data.image_sizes 64: give pixels, at most --data.image_size 32"),
    ],
)
@pytest.mark.usefixtures("empty_store")
def test_sizes_that_a_run_cannot_go_through_are_one_line(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FIT, *options]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"lit-cnn: error: {says}"), last
    assert not tracked_runs(tmp_path)
