"""The first layer is computed once, from the training images, and kept."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.callbacks.whitening import patch_covariance
from lit_cnn.training.checkpoints import load_checkpoint
from tests.cli.test_resume import LONGER, assert_same_run, interrupted
from tests.models.test_airbench import patches
from tests.runs import TrackedRun, fit, tracked_runs

pytestmark = pytest.mark.usefixtures("empty_store")

FAST = ("--model.arch=airbench", "--model.arch_options={widths: [4, 8]}", "--data.augment=[]")
WEIGHT, OTHER = "net.whitening.weight", "net.classifier.weight"


def checkpoint(run: TrackedRun, name: str = "last") -> dict[str, Any]:
    return load_checkpoint(run.artifacts / "checkpoints" / f"{name}.ckpt")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    data = ImageDataModule("digits", image_size=32, num_workers=0, limit_train=128, batch_size=16)
    return torch.cat([batch for batch, _ in data.train_dataloader()])


@pytest.mark.parametrize("size", [2, 3])
def test_the_covariance_is_that_of_all_patches_to_the_last_bit_in_any_order(images: torch.Tensor, size: int) -> None:
    whole = patch_covariance([images], size)
    np.testing.assert_allclose(whole.numpy(), np.cov(patches(images.numpy() / 255, size).T, bias=True), rtol=1e-9)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    assert torch.equal(patch_covariance(images[order].split(7), size), whole)


@pytest.mark.parametrize("size", [2, 3])
def test_the_layer_of_a_run_is_that_of_its_training_images_and_stays(images: torch.Tensor, size: int) -> None:
    options = {2: "{widths: [4, 8]}", 3: "{widths: [4, 8], patch: 3, pool_patches: true, activation: relu}"}[size]
    assert fit(*FAST, f"--model.arch_options={options}", "--ema_decay=0.9") == 0
    (run,) = tracked_runs(Path.cwd())
    last, best = checkpoint(run), checkpoint(run, "best")
    std = last["hyper_parameters"]["std"][0]
    variances, vectors = np.linalg.eigh(np.cov(patches(images.numpy() / 255 / std, size).T, bias=True))
    for state in (last["state_dict"], last["current_model_state"], best["state_dict"]):
        assert torch.equal(state[WEIGHT], last["state_dict"][WEIGHT])
        assert state["net.whitening.is_whitened"]
    filters = last["state_dict"][WEIGHT].flatten(1).double().numpy()
    expected = (vectors / np.sqrt(variances + 5e-4)).T[::-1]
    signs = np.sign((filters[: size**2] * expected).sum(1, keepdims=True))
    np.testing.assert_allclose(filters, np.concatenate([signs * expected, -signs * expected]), rtol=1e-4, atol=1e-5)
    assert not torch.equal(best["state_dict"][OTHER], last["current_model_state"][OTHER])


def test_a_run_that_starts_from_another_keeps_that_ones_layer() -> None:
    assert fit(*FAST) == 0
    (first,) = tracked_runs(Path.cwd())
    assert fit(*FAST, f"--model.weights=runs:/{first.run_id}", "--data.split_seed=1") == 0
    second = next(run for run in tracked_runs(Path.cwd()) if run.run_id != first.run_id)
    assert torch.equal(checkpoint(second)["state_dict"][WEIGHT], checkpoint(first)["state_dict"][WEIGHT])


def test_a_resume_ends_as_the_uninterrupted_run(tmp_path: Path) -> None:
    options = (*LONGER, *FAST, "--ema_decay=0.9", "--trainer.max_epochs=4")
    assert fit(*options) == 0
    interrupted(signal.SIGINT, tmp_path, *options)
    assert fit(*options, "--resume=auto") == 0
    whole, resumed = tracked_runs(tmp_path)
    assert_same_run(resumed, whole)
