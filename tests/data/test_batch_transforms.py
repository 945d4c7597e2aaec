from typing import Any

import albumentations
import cv2
import numpy as np
import pytest
import torch

from lit_cnn.data.batch_transforms import BatchTransform, slow_step
from lit_cnn.data.batches import TrainImages
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.transforms import TrainCrop, TrainTransform
from tests.conftest import Finished
from tests.data.test_datamodule import assert_same_batches, epochs_of
from tests.data.test_transforms import spec

SIZE = 12
CROP = spec("albumentations.RandomCrop", height=SIZE, width=SIZE)
FRAME = [spec("albumentations.Pad", padding=3), CROP]
KEYS = [(seed, epoch, index) for seed, epoch in ((0, 0), (0, 1), (5, 1)) for index in range(64)]


def pictures(channels: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (len(KEYS), size, size, channels), np.uint8)


def assert_same_as_one_by_one(
    augment: list[dict[str, Any]], channels: int, crop: TrainCrop = "center", size: int = SIZE
) -> np.ndarray:
    """Compares the two ways to 64 images in two epochs and for another seed; returns what came out."""
    images = pictures(channels, size)
    transform = TrainTransform(SIZE, crop, augment)
    assert slow_step(transform) is None
    expected = np.stack([transform(image, *key) for image, key in zip(images, KEYS, strict=True)])
    views = BatchTransform(transform)(images.copy(), KEYS)
    np.testing.assert_array_equal(views, expected)
    assert views.dtype == np.uint8 and views.flags.c_contiguous
    return views


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("p", [0, 0.5, 1])
@pytest.mark.parametrize("flips", [["HorizontalFlip"], ["VerticalFlip"], ["HorizontalFlip", "VerticalFlip"]], ids=str)
def test_flips(flips: list[str], p: float, channels: int) -> None:
    views = assert_same_as_one_by_one([spec(f"albumentations.{name}", p=p) for name in flips], channels)
    changed = (views != pictures(channels)).any((1, 2, 3)).mean()
    assert {0: changed == 0, 1: changed == 1, 0.5: 0.3 < changed < 0.9}[p]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("p", [0, 0.5, 1])
@pytest.mark.parametrize(
    "frame",
    [
        FRAME,
        [spec("albumentations.Pad", padding=[1, 2], fill=7.0), CROP],
        [spec("albumentations.Pad", padding=[1, 2, 3, 4], fill=9), CROP],
        *([spec("albumentations.Pad", padding=3, border_mode=mode), CROP] for mode in range(1, 5)),
        [spec("albumentations.Pad", padding=30, border_mode=cv2.BORDER_REFLECT_101), CROP],
        [spec("albumentations.PadIfNeeded", min_height=20, min_width=18), CROP],
        [spec("albumentations.PadIfNeeded", min_height=15, min_width=4, position="top_left", fill=3), CROP],
        [spec("albumentations.RandomCrop", height=17, width=15, pad_if_needed=True, fill=250), CROP],
        [spec("albumentations.RandomCrop", height=17, width=15, pad_if_needed=True, border_mode=4), CROP],
        [spec("albumentations.CenterCrop", height=19, width=16, pad_if_needed=True), CROP],
        [*FRAME, *FRAME],
    ],
    ids=str,
)
def test_a_frame_around_a_crop_with_flips_before_and_after(
    frame: list[dict[str, Any]], p: float, channels: int
) -> None:
    flips = [spec("albumentations.HorizontalFlip", p=p), spec("albumentations.VerticalFlip", p=p)]
    for augment in (flips[:1] + frame + flips[1:], frame + flips):
        views = assert_same_as_one_by_one(augment, channels)
        assert len({view.tobytes() for view in views}) > 0.9 * len(views)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [SIZE, 9, 24])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_crops_of_the_data_module(crop: TrainCrop, size: int, channels: int) -> None:
    assert_same_as_one_by_one([], channels, crop, size)
    assert_same_as_one_by_one([*FRAME, spec("albumentations.HorizontalFlip")], channels, crop, size)


def test_a_fill_of_its_own_for_each_channel() -> None:
    views = assert_same_as_one_by_one([spec("albumentations.Pad", padding=12, fill=[1, 2, 3]), CROP], 3)
    assert (views == np.array([1, 2, 3], np.uint8)).all(-1).mean() > 0.3


def test_the_images_of_an_oblong_set() -> None:
    images = np.random.default_rng(0).integers(0, 256, (len(KEYS), 20, 15, 3), np.uint8)
    crops: list[TrainCrop] = ["center", "random"]
    for crop in crops:
        transform = TrainTransform(SIZE, crop, [spec("albumentations.HorizontalFlip")])
        expected = np.stack([transform(image, *key) for image, key in zip(images, KEYS, strict=True)])
        np.testing.assert_array_equal(BatchTransform(transform)(images.copy(), KEYS), expected)


@pytest.mark.parametrize(
    ("augment", "name"),
    [
        (spec("albumentations.Affine"), "Affine"),
        (spec("albumentations.OneOf", transforms=[spec("albumentations.HorizontalFlip")]), "OneOf"),
        (spec("albumentations.RandomCrop", height=SIZE, width=SIZE, p=0.5), "RandomCrop"),
        (spec("albumentations.PadIfNeeded", min_height=16, min_width=16, position="random"), "PadIfNeeded"),
        (spec("tests.data.test_transforms.Mirror"), "Mirror"),
        (spec("tests.data.test_batch_transforms.HorizontalFlip"), "HorizontalFlip"),
    ],
)
def test_what_cannot_be_done_to_a_batch_is_named(augment: dict[str, Any], name: str) -> None:
    assert slow_step(TrainTransform(SIZE, augment=[spec("albumentations.VerticalFlip"), augment])) == name


class HorizontalFlip(albumentations.HorizontalFlip):
    """A user's own transform of the name of albumentations'."""


def test_a_random_resized_crop_is_made_image_by_image() -> None:
    assert slow_step(TrainTransform(SIZE, "random_resized")) == "RandomResizedCrop"


# --- in the loader ---


def digits(num_workers: int, augment: list[dict[str, Any]], sampler: Any = "shuffled") -> ImageDataModule:
    return ImageDataModule(
        image_size=SIZE, batch_size=64, num_workers=num_workers, limit_train=200, augment=augment, sampler=sampler
    )


# On a machine with fewer cores torch advises against it; the result must hold all the same.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("sampler", ["shuffled", "balanced"])
def test_batches_are_those_of_single_images_for_every_number_of_workers(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    augment = [*FRAME, spec("albumentations.HorizontalFlip")]
    loaders = [digits(number, augment, sampler).train_dataloader() for number in (0, 0, 1, 2, 4)]
    assert all(isinstance(loader.dataset, TrainImages) and loader.dataset.fallback_reason is None for loader in loaders)
    monkeypatch.setattr(loaders[0].dataset, "fallback_reason", "none, but image by image")
    one_by_one, *others = [epochs_of(loader) for loader in loaders]
    for other in others:
        for mine, expected in zip(other, one_by_one, strict=True):
            assert_same_batches(mine, expected)


def test_the_images_in_memory_stay_as_they_are() -> None:
    data = digits(0, [spec("albumentations.HorizontalFlip", p=0.5)])
    before = data.image_set.images.array.copy()  # type: ignore[attr-defined]
    epochs_of(data.train_dataloader())
    np.testing.assert_array_equal(data.image_set.images.array, before)  # type: ignore[attr-defined]


def test_batches_from_workers_are_tensors_that_may_be_written_to() -> None:
    for size in (SIZE, 128):  # through the pipe, and in shared memory
        data = ImageDataModule(image_size=size, batch_size=64, num_workers=2, limit_train=64)
        ((images, labels),) = epochs_of(data.train_dataloader(), 1)[0]
        assert isinstance(images, torch.Tensor) and images.shape == (64, 1, size, size)
        assert isinstance(labels, torch.Tensor) and labels.dtype == torch.int64
        images += 1
        labels += 1


@pytest.mark.slow
def test_a_run_says_once_what_makes_it_slow(lit_cnn_cli: Any, repo_root: Any) -> None:
    config = repo_root / "configs" / "experiment" / "lenet5_scratch_digits.yaml"
    short = ["--trainer.max_epochs", "2", "--data.limit_train", "100", "--data.num_workers", "2"]
    slow: Finished = lit_cnn_cli("fit", "--config", config, *short)
    assert slow.returncode == 0
    assert slow.stderr.count("augmenting image by image: Affine cannot be done to a whole batch") == 1
    fast: Finished = lit_cnn_cli("fit", "--config", config, *short, "--data.augment", "[]")
    assert fast.returncode == 0 and "image by image" not in fast.stderr
