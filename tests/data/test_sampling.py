"""The balanced sampler keeps what the shuffled one promises (tests/data/test_datamodule.py)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lit_cnn.core.randomness import balanced_order
from lit_cnn.data.batches import TrainImages
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.sampling import TrainBatches
from tests.data.test_datamodule import CONTINUOUS, assert_same_batches, epochs_of
from tests.data.test_datasets import save_images

LABELS = np.array([0] * 20 + [1] * 4)


@pytest.fixture
def uneven(tmp_path: Path) -> str:
    """30 images of class a and 9 of class b."""
    return str(save_images(tmp_path / "pets", *(f"a/{n}.png" for n in range(30)), *(f"b/{n}.png" for n in range(9))))


def balanced(root: str, num_workers: int, seed: int = 0) -> ImageDataModule:
    return ImageDataModule(
        "image_folder",
        root=root,
        sampler="balanced",
        batch_size=6,
        image_size=16,
        augment=CONTINUOUS,
        num_workers=num_workers,
        seed=seed,
    )


def test_batches_do_not_depend_on_the_number_of_workers(uneven: str) -> None:
    reference = epochs_of(balanced(uneven, 0).train_dataloader())
    for num_workers in (1, 2):
        for mine, expected in zip(epochs_of(balanced(uneven, num_workers).train_dataloader()), reference, strict=True):
            assert_same_batches(mine, expected)
    other = epochs_of(balanced(uneven, 0, seed=1).train_dataloader(), 1)
    assert len({batches[0][0].numpy().tobytes() for batches in (reference[0], reference[1], other[0])}) == 3


def test_an_epoch_is_as_long_as_before_with_equal_shares(uneven: str) -> None:
    data = balanced(uneven, 0)
    assert data.class_counts[0] > 2 * data.class_counts[1] and sum(data.class_counts) == len(data.splits.train)
    for batches in epochs_of(data.train_dataloader()):
        labels = torch.cat([labels for _, labels in batches])
        assert len(labels) == len(data.splits.train) and len(batches) == data.num_train_batches
        assert abs(int((labels == 0).sum()) - int((labels == 1).sum())) <= 1


def test_an_image_that_comes_again_is_augmented_otherwise(uneven: str) -> None:
    data = balanced(uneven, 0)
    images = TrainImages(data.image_set, data.splits.train, data.train_transform, seed=0)
    n = len(images)
    first, second, third = images.__getitems__([(4, 2), (4, 2 + n), (4, 2 + 2 * n)])[0]
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert torch.equal(first, images.__getitems__([(4, 2)])[0][0])
    plain = ImageDataModule("image_folder", root=uneven, image_size=16, augment=CONTINUOUS)
    unrepeated = TrainImages(plain.image_set, plain.splits.train, plain.train_transform, seed=0)
    assert torch.equal(first, unrepeated.__getitems__([(4, 2)])[0][0])


@pytest.mark.parametrize("first_batch", [0, 1, 3])
def test_a_start_in_mid_epoch_gives_exactly_the_batches_that_remain(first_batch: int) -> None:
    whole = TrainBatches(24, 5, seed=3, labels=LABELS)
    whole.set_epoch(2)
    rest = TrainBatches(24, 5, seed=3, first_epoch=2, first_batch=first_batch, labels=LABELS)
    assert list(rest) == list(whole)[first_batch:]
    assert [key for batch in whole for key in batch] == [(2, place) for place in balanced_order(3, 2, LABELS)]


def test_two_devices_share_the_batches_of_one() -> None:
    alone = TrainBatches(24, 8, seed=1, labels=LABELS)
    ranks = [TrainBatches(24, 8, seed=1, rank=rank, world_size=2, labels=LABELS) for rank in range(2)]
    for everyone, first, second in zip(alone, *ranks, strict=True):
        assert sorted(first + second) == sorted(everyone) and len(first) == len(second) == 4
