import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lit_cnn.core.errors import UsageError
from lit_cnn.core.randomness import epoch_permutation
from lit_cnn.core.resize import resize_and_center_crop
from lit_cnn.data.audit import check_data
from lit_cnn.data.batches import Batch, TrainImages, stack_images
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from lit_cnn.data.sampling import TrainBatches
from lit_cnn.data.sources import ArrayImages, ImageSet
from lit_cnn.data.transforms import TrainTransform
from tests.data.test_datasets import save_images

CONTINUOUS = [
    {"class_path": "albumentations.Affine", "init_args": {"rotate": [-30, 30], "scale": [0.8, 1.2], "p": 1}},
    {"class_path": "albumentations.GaussNoise", "init_args": {"p": 1}},
]


def data_module(**options: Any) -> ImageDataModule:
    """Digits with an augmentation that draws real numbers; batches of 32, and a smaller last one."""
    defaults: dict[str, Any] = {"image_size": 16, "batch_size": 32, "limit_train": 100, "augment": CONTINUOUS}
    return ImageDataModule(**(defaults | options))


def epochs_of(loader: DataLoader[Batch], epochs: int = 2) -> list[list[Batch]]:
    """Takes whole epochs out of one loader, told of each as Lightning does; ends its workers."""
    taken = []
    for epoch in range(epochs):
        sampler: Any = loader.batch_sampler
        sampler.sampler.set_epoch(epoch)
        taken.append(list(loader))
    loader._iterator = None  # persistent workers end with their iterator
    return taken


def assert_same_batches(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for (images, labels), (other_images, other_labels) in zip(one, other, strict=True):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)
        assert images.stride() == other_images.stride()  # or else convolutions would round in another way


# --- batches ---


@pytest.fixture(scope="module")
def reference() -> list[list[Batch]]:
    """Two epochs without worker processes."""
    return epochs_of(data_module(num_workers=0).train_dataloader())


# On a machine with fewer cores torch advises against it; the result must hold all the same.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("num_workers", [0, 1, 2, 4])
def test_batches_do_not_depend_on_the_number_of_workers(reference: list[list[Batch]], num_workers: int) -> None:
    torch.manual_seed(num_workers)  # no draw comes from torch's own stream
    loader = data_module(num_workers=num_workers).train_dataloader()
    assert loader.num_workers == num_workers
    for mine, expected in zip(epochs_of(loader), reference, strict=True):
        assert_same_batches(mine, expected)


def test_batches_have_the_shape_that_the_classifier_takes(reference: list[list[Batch]]) -> None:
    images, labels = reference[0][0]
    assert images.shape == (32, 1, 16, 16) and images.dtype == torch.uint8 and images.is_contiguous()
    assert labels.shape == (32,) and labels.dtype == torch.int64
    assert [len(labels) for _, labels in reference[0]] == [32, 32, 32, 4]
    assert data_module().num_train_batches == 4


def test_epochs_and_seeds_differ(reference: list[list[Batch]]) -> None:
    other_seed = epochs_of(data_module(num_workers=0, seed=1).train_dataloader(), 1)
    firsts = [reference[0][0][0], reference[1][0][0], other_seed[0][0][0]]
    assert len({images.numpy().tobytes() for images in firsts}) == 3


def test_an_image_is_augmented_anew_in_every_epoch_and_for_every_seed() -> None:
    data = data_module()
    views = []
    for seed, epoch in [(0, 0), (0, 1), (1, 0)]:
        images = TrainImages(data.image_set, data.splits.train, data.train_transform, seed)
        views.append(images.__getitems__([(epoch, 5)])[0].numpy().tobytes())
    assert len(set(views)) == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_image_comes_exactly_once_in_an_epoch(num_workers: int) -> None:
    data = data_module(num_workers=num_workers, augment=None, image_size=8, limit_train=None)
    expected = sorted((data.image_set.images[i].tobytes(), int(data.image_set.labels[i])) for i in data.splits.train)
    for batches in epochs_of(data.train_dataloader()):
        seen = [
            (image.tobytes(), int(label))
            for images, labels in batches
            for image, label in zip(images.permute(0, 2, 3, 1).contiguous().numpy(), labels, strict=True)
        ]
        assert sorted(seen) == expected


# On a machine with fewer cores torch advises against it; the result must hold all the same.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("num_workers", [0, 2, 4])
def test_64_copies_of_one_image_get_64_different_augmentations(num_workers: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    copies = ImageSet(
        name="copies",
        source="made",
        images=ArrayImages(np.stack([image] * 64)),
        labels=np.zeros(64, np.int64),
        class_names=("one",),
        paths=[str(index) for index in range(64)],
        hashes=["same"] * 64,
        in_channels=3,
    )
    # No noise here: two copies must not get the same turn and scale.
    images = TrainImages(copies, np.arange(64), TrainTransform(24, augment=CONTINUOUS[:1]), seed=0)
    loader: DataLoader[Batch] = DataLoader(
        images, batch_sampler=TrainBatches(64, 8, 0), num_workers=num_workers, collate_fn=as_it_is
    )
    drawn = [{view.numpy().tobytes() for images, _ in batches for view in images} for batches in epochs_of(loader)]
    assert list(map(len, drawn)) == [64, 64]
    assert len(drawn[0] | drawn[1]) == 128


def as_it_is(batch: Any) -> Any:
    return batch


# --- the order ---


def test_the_order_is_the_permutation_of_seed_and_epoch() -> None:
    batches = TrainBatches(10, 4, seed=3)
    for epoch in (0, 1, 5):
        batches.set_epoch(epoch)
        taken = list(batches)
        assert [len(batch) for batch in taken] == [4, 4, 2] and len(batches) == 3
        assert [key for batch in taken for key in batch] == [(epoch, i) for i in epoch_permutation(3, epoch, 10)]


@pytest.mark.parametrize("first_batch", [0, 1, 2, 3])
def test_a_start_in_mid_epoch_gives_exactly_the_batches_that_remain(first_batch: int) -> None:
    whole = TrainBatches(10, 3, seed=3)
    whole.set_epoch(2)
    rest = TrainBatches(10, 3, seed=3, first_epoch=2, first_batch=first_batch)
    assert list(rest) == list(whole)[first_batch:]
    assert len(rest) == 4  # of the epoch: Lightning counts on from where the run stood
    for epoch in (3, 4):  # the epochs after it are whole
        rest.set_epoch(epoch)
        whole.set_epoch(epoch)
        assert list(rest) == list(whole)


def test_two_devices_share_the_batches_of_one() -> None:
    alone = TrainBatches(24, 8, seed=1)
    ranks = [TrainBatches(24, 8, seed=1, rank=rank, world_size=2) for rank in range(2)]
    for epoch in range(2):
        for batches in (alone, *ranks):
            batches.set_epoch(epoch)
        for everyone, first, second in zip(alone, *ranks, strict=True):
            assert sorted(first + second) == sorted(everyone)
            assert len(first) == len(second) == 4


def test_two_devices_augment_as_one_does() -> None:
    data = data_module(num_workers=0)
    images = TrainImages(data.image_set, data.splits.train, data.train_transform, seed=0)
    alone = images.__getitems__(next(iter(TrainBatches(100, 8, 0))))
    first, second = (images.__getitems__(next(iter(TrainBatches(100, 8, 0, rank=r, world_size=2)))) for r in (0, 1))
    assert torch.equal(alone[0][0::2], first[0]) and torch.equal(alone[0][1::2], second[0])
    assert torch.equal(alone[1][0::2], first[1]) and torch.equal(alone[1][1::2], second[1])


# --- validation, test, predict ---


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_sees_every_image_once_in_order_and_plain(split: str) -> None:
    data = data_module()
    indices = {"val": data.splits.val, "test": data.splits.test}[split]
    for _ in range(2):
        loader = {"val": data.val_dataloader, "test": data.test_dataloader}[split]()
        images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
        expected = stack_images([resize_and_center_crop(data.image_set.images[index], 16) for index in indices])
        assert torch.equal(images, expected)
        np.testing.assert_array_equal(labels, data.image_set.labels[indices])


def test_evaluation_reads_folders_in_workers(tmp_path: Path) -> None:
    root = save_images(tmp_path / "pets", *(f"{name}/{number}.png" for name in "ab" for number in range(8)))
    with_workers, without = (
        ImageDataModule("image_folder", root=str(root), image_size=4, num_workers=number) for number in (2, 0)
    )
    loader = with_workers.test_dataloader()
    assert loader.num_workers == 2
    batches = list(loader)
    loader._iterator = None
    assert_same_batches(batches, list(without.test_dataloader()))


@pytest.mark.parametrize(
    ("options", "crop_pct"),
    [
        ({}, 1.0),
        ({"train_crop": "random"}, 224 / 256),
        ({"train_crop": "random_resized"}, 1.0),
        ({"train_crop": "random", "weights_expect": {"crop_pct": 0.95}}, 224 / 256),
        ({"weights_expect": {"crop_pct": 0.95}}, 0.95),
        ({"weights_expect": {"crop_pct": 0.95}, "crop_pct": 0.5}, 0.5),
        ({"train_crop": "random", "crop_pct": 1.0}, 1.0),
    ],
)
def test_validation_sees_images_at_the_scale_of_training(options: dict[str, Any], crop_pct: float) -> None:
    data = data_module(image_size=16, augment=None, **options)
    assert data.crop_pct == crop_pct
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        indices = data.splits[split]  # type: ignore[index]
        views = [resize_and_center_crop(data.image_set.images[index], 16, "area", crop_pct) for index in indices]
        assert torch.equal(next(iter(loader))[0], stack_images(views)[:256])
    if data.options["train_crop"] == "center":
        images, _ = data.train_images().__getitems__([(0, 0)])
        view = resize_and_center_crop(data.image_set.images[data.splits.train[0]], 16, "area", crop_pct)
        assert torch.equal(images, stack_images([view]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_pct": 0.0}, "crop_pct=0: give a share above 0 and at most 1, for example 0.875"),
        ({"crop_pct": 1.1}, "crop_pct=1.1: give a share"),
        ({"crop_scale": (0.5, 1.5), "train_crop": "random_resized"}, r"crop_scale=\[0.5, 1.5\]: give two shares"),
        ({"crop_ratio": (2.0, 1.0), "train_crop": "random_resized"}, r"crop_ratio=\[2.0, 1.0\]: give two numbers"),
        ({"crop_scale": (0.08, 1.0)}, r"crop_scale=\[0.08, 1.0\]: is ignored by train_crop=center; leave it out"),
    ],
)
def test_a_crop_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        data_module(**options)


def test_stacking_moves_the_channels_to_the_front() -> None:
    views = [np.arange(12, dtype=np.uint8).reshape(2, 2, 3) + n for n in range(2)]
    stacked = stack_images(views)
    assert stacked.shape == (2, 3, 2, 2) and stacked.is_contiguous()
    assert stacked[1, 2, 0, 1] == views[1][0, 1, 2]


# --- mean, std and what others are linked to ---


@pytest.mark.parametrize("in_channels", [1, 3])
def test_mean_and_std_are_those_of_the_training_images(in_channels: Any) -> None:
    data = data_module(in_channels=in_channels)
    pixels = np.stack([data.image_set.images[index] for index in data.splits.train]).astype(np.float64) / 255
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-5)
    assert data.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-5)
    assert len(data.mean) == len(data.std) == in_channels
    assert data.mean != data_module(in_channels=in_channels, limit_train=50).mean


def test_mean_and_std_can_be_given() -> None:
    data = data_module(mean=[0.25])
    assert data.mean == [0.25] and data.std == data_module().std
    data = data_module(mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0], in_channels=3)
    assert (data.mean, data.std) == ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0])


def test_folders_are_normalised_by_imagenet(tmp_path: Path) -> None:
    root = str(save_images(tmp_path / "pets", *(f"{name}/{number}.png" for name in "ab" for number in range(3))))
    colour = ImageDataModule("image_folder", root=root)
    assert (tuple(colour.mean), tuple(colour.std)) == (IMAGENET_MEAN, IMAGENET_STD)
    gray = ImageDataModule("image_folder", root=root, in_channels=1)
    assert gray.mean == pytest.approx([np.mean(IMAGENET_MEAN)]) and gray.std == pytest.approx([np.mean(IMAGENET_STD)])


def test_what_the_classifier_is_linked_to(tmp_path: Path) -> None:
    digits = ImageDataModule()
    assert (digits.num_classes, digits.in_channels, digits.class_names) == (10, 1, list("0123456789"))
    names = [f"{name}/{number}.png" for name in ("cat", "dog", "emu") for number in range(3)]
    pets = ImageDataModule("image_folder", root=str(save_images(tmp_path / "pets", *names)))
    assert (pets.num_classes, pets.in_channels, pets.class_names) == (3, 3, ["cat", "dog", "emu"])


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image_size": 0}, "image_size=0: give a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size=0: give a whole number of at least 1"),
        ({"num_workers": -1}, "num_workers=-1: give a whole number of at least 0"),
        ({"limit_train": 0}, "limit_train=0: give a whole number of at least 1"),
        ({"val_fraction": 0.0}, "val_fraction=0: give a share above 0 and below 1"),
        ({"val_fraction": 1.0}, "val_fraction=1: give a share above 0 and below 1"),
        ({"test_fraction": -0.1}, "test_fraction=-0.1: give a share above 0 and below 1"),
        ({"test_fraction": float("nan")}, "test_fraction=nan: give a share above 0 and below 1"),
        ({"dataset": "cifar"}, "dataset=cifar: choose one of digits"),
        ({"augment": [{"class_path": "albumentations.Flop"}]}, "augment=albumentations.Flop: no such transform"),
    ],
)
def test_an_option_out_of_range_is_refused_at_once(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        ImageDataModule(**options)
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "use", "expected"),
    [
        ({"mean": [0.5, 0.5, 0.5]}, lambda data: data.mean, "mean=[0.5, 0.5, 0.5]: give 1 numbers"),
        ({"std": [1.0], "in_channels": 3}, lambda data: data.std, "std=[1.0]: give 3 numbers"),
        ({"std": [0.0]}, lambda data: data.std, "std=[0.0]: give numbers above 0"),
        ({"limit_train": 5000}, lambda data: data.splits, "limit_train=5000: there are"),
        ({"root": "here"}, lambda data: data.image_set, "root=here: digits"),
        ({"dataset": "image_folder"}, lambda data: data.num_classes, "root: image_folder needs a folder"),
    ],
)
def test_what_does_not_fit_the_images_is_refused_when_they_are_read(
    options: dict[str, Any], use: Callable[[ImageDataModule], object], expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        use(ImageDataModule(**options))
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)


# --- for any Trainer ---


class Linear(pl.LightningModule):
    """A user's own module, which knows nothing of lit_cnn."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(num_features, num_classes)
        self.seen: dict[str, int] = {"train": 0, "val": 0, "test": 0}

    def loss(self, split: str, batch: Batch) -> torch.Tensor:
        images, labels = batch
        self.seen[split] += len(labels)
        return torch.nn.functional.cross_entropy(self.layer(images.flatten(1) / 255), labels)

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        return self.loss("train", batch)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.loss("val", batch)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        self.loss("test", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def plain_trainer() -> pl.Trainer:
    quiet: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", max_epochs=2, num_sanity_val_steps=0, enable_model_summary=False, **quiet)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", [str, Path])
def test_any_trainer_takes_a_folder(tmp_path: Path, num_workers: int, kind: type) -> None:
    save_images(tmp_path / "photos", *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(20)))
    data = ImageDataModule("image_folder", root=kind(tmp_path / "photos"), batch_size=8, num_workers=num_workers)
    sizes = {split: len(data.splits[split]) for split in ("train", "val", "test")}
    model, trainer = Linear(3 * 32 * 32, data.num_classes), plain_trainer()
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    assert model.seen == {"train": 2 * sizes["train"], "val": 2 * sizes["val"], "test": sizes["test"]}


def test_a_trainer_that_is_given_the_loaders_trains_alike() -> None:
    weights = []
    for with_loaders in (False, True):
        data = data_module(num_workers=0)
        torch.manual_seed(0)
        model = Linear(16 * 16, data.num_classes)
        if with_loaders:
            plain_trainer().fit(model, data.train_dataloader(), data.val_dataloader())
        else:
            plain_trainer().fit(model, datamodule=data)
        weights.append(model.layer.weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize(("documented", "name"), [(ImageDataModule, "ImageDataModule"), (check_data, "check_data")])
def test_its_example_runs(documented: Any, name: str) -> None:
    (example,) = (test for test in doctest.DocTestFinder(recurse=False).find(documented, name))
    assert len(example.examples) > 1
    assert doctest.DocTestRunner().run(example).failed == 0
