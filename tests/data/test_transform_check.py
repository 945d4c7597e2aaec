"""What a list of transforms gives is looked at before training: on all of albumentations' transforms, and by kinds."""

import inspect
import random
from typing import Any

import albumentations
import numpy as np
import pytest
import torch
from albumentations.core.transforms_interface import ImageOnlyTransform

from lit_cnn.core.errors import UsageError
from lit_cnn.core.resize import resize_and_center_crop
from lit_cnn.data.batch_transforms import BatchTransform
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.transforms import TrainTransform
from tests.data.test_transforms import noise, spec

KINDS = (albumentations.BasicTransform, albumentations.BaseCompose)
ALL = sorted(
    name
    for name in dir(albumentations)
    if inspect.isclass(found := getattr(albumentations, name)) and issubclass(found, KINDS)
)
INNER = [spec("albumentations.HorizontalFlip"), spec("albumentations.Blur")]
FLOAT = spec("albumentations.ToFloat")
NESTED = spec("albumentations.Sequential", transforms=[spec("albumentations.Sequential", transforms=[*INNER, FLOAT])])
# Of those that cannot do without: one that fits a square of 32 px and one of 96.
NEEDED: list[dict[str, Any]] = [
    {},
    {"transforms": INNER},
    {"height": 32, "width": 32},
    {"size": [32, 32]},
    {"size": [32, 32], "min_max_height": [16, 32]},
    {"size": [8, 8, 8]},
    {"padding": 1},
    {"min_zyx": [8, 8, 8]},
    {"px": [-2, 2]},
    {"max_size": 32},
    {"num_grid_xy": [4, 4], "magnitude": 2},
    {"max_part_shift": [0.1, 0.1]},
]


def made(name: str, size: int) -> TrainTransform | None:
    for init_args in NEEDED:
        init_args = {key: size if value == 32 else value for key, value in init_args.items()}
        try:
            return TrainTransform(size, augment=[spec(f"albumentations.{name}", **init_args)])
        except UsageError as error:
            assert "\n" not in str(error) and str(error).startswith(f"augment=albumentations.{name}: ")
    return None


@pytest.mark.parametrize("name", [*ALL, "pytorch.ToTensorV2"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # some say that another is better
def test_a_transform_gives_what_training_takes_or_is_refused_in_one_line(name: str) -> None:
    image = resize_and_center_crop(noise(7, 9), 100, "bicubic")
    for size in (32, 96):
        for channels in (1, 3):
            if (transform := made(name, size)) is None:
                continue
            try:
                transform.check(channels)
            except UsageError as error:
                assert str(error).startswith(f"augment={name.rpartition('.')[2]}: ") and "\n" not in str(error)
                continue
            for index in range(4):
                view = transform(image[..., :channels].copy(), 0, 0, index)
                assert view.shape == (size, size, channels) and view.dtype == np.uint8


@pytest.mark.parametrize(
    ("augment", "channels", "expected"),
    [
        ([spec("albumentations.pytorch.ToTensorV2")], 3, "ToTensorV2: gives a Tensor, no array of NumPy; leave it out"),
        ([spec("albumentations.Normalize", p=0.01)], 3, "Normalize: gives float32 pixels; leave it out: .*`?mean"),
        ([spec("albumentations.ToFloat"), spec("albumentations.FromFloat")], 1, "ToFloat: gives float32 pixels"),
        ([spec("albumentations.ToGray", num_output_channels=1)], 3, "ToGray: makes 1 channel of 3; .*in_channels=1"),
        ([spec("albumentations.ToRGB")], 1, "ToRGB: makes 3 channels of 1; .*in_channels=3"),
        ([spec("albumentations.ToSepia")], 1, "ToSepia: works on colours, and the images are gray"),
        ([spec("albumentations.Resize", height=16, width=64)], 3, "Resize: gives 64 x 16 px, .*image_size"),
        ([spec("albumentations.CenterCrop", height=28, width=28, p=0.001), *INNER], 3, "CenterCrop: gives 28 x 28 px"),
        ([spec("albumentations.RandomScale")], 3, "RandomScale: gives "),
        ([spec("albumentations.CenterCrop", height=40, width=40)], 3, "CenterCrop: cannot be done .*32 x 32 px"),
        (
            [spec("albumentations.CenterCrop", height=28, width=28), spec("albumentations.Pad", padding=2, p=0.5)],
            3,
            "CenterCrop: gives 28 x 28 px",
        ),
        (
            [spec("albumentations.Pad", padding=2), spec("albumentations.CenterCrop", height=30, width=30)],
            3,
            "CenterCrop: gives 30 x 30 px",
        ),
        (
            [spec("albumentations.OneOf", transforms=[*INNER, spec("albumentations.Normalize", p=1e-6)], p=0.001)],
            3,
            "Normalize: gives float32",
        ),
        (
            [spec("albumentations.SomeOf", n=1, transforms=[spec("albumentations.Pad", padding=1, p=0.01), *INNER])],
            3,
            "Pad: gives 34 x 34 px",
        ),
        (
            [
                spec(
                    "albumentations.RandomOrder",
                    n=2,
                    transforms=[
                        spec("albumentations.Pad", padding=2, p=1),
                        spec("albumentations.RandomCrop", height=33, width=33, p=1),
                    ],
                )
            ],
            3,
            "RandomCrop: cannot be done",
        ),
        (
            [NESTED],
            1,
            "ToFloat: gives float32",
        ),
        (
            [spec("albumentations.SelectiveChannelTransform", transforms=[FLOAT], channels=[0])],
            3,
            "ToFloat: gives float32",
        ),
        ([{"class_path": "tests.data.test_transform_check.Broken"}], 3, "Broken: cannot be done .*KeyError: 'no such'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(augment: list[dict[str, Any]], channels: int, expected: str) -> None:
    with pytest.raises(UsageError, match=f"^augment={expected}") as caught:
        TrainTransform(32, augment=augment).check(channels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "augment",
    [
        [spec("albumentations.Pad", padding=4), spec("albumentations.RandomCrop", height=32, width=32)],
        [spec("albumentations.RandomScale", p=0.5), spec("albumentations.Resize", height=32, width=32, p=1)],
        [spec("albumentations.Resize", height=64, width=16, p=0), *INNER],
        [
            spec(
                "albumentations.SomeOf",
                n=2,
                p=0.5,
                transforms=[
                    spec("albumentations.CenterCrop", height=28, width=28, p=1),
                    spec("albumentations.Pad", padding=2, p=1),
                ],
            )
        ],
        [
            spec("albumentations.Pad", padding=4, p=0.5),
            spec(
                "albumentations.OneOf",
                p=1,
                transforms=[
                    spec("albumentations.RandomCrop", height=32, width=32),
                    spec("albumentations.Resize", height=32, width=32),
                ],
            ),
        ],
        [{"class_path": "lit_cnn.data.pca_color.PCAColor"}],  # its covariance is not known yet
        [spec("albumentations.SelectiveChannelTransform", transforms=INNER, channels=[0, 2])],
    ],
    ids=str,
)
def test_a_list_may_come_back_to_the_size_by_a_detour(augment: list[dict[str, Any]]) -> None:
    transform = TrainTransform(32, augment=augment)
    transform.check(3)
    if not transform.needs_covariance:
        for index in range(50):
            assert transform(noise(40, 50), 0, 0, index).shape == (32, 32, 3)


class Broken(ImageOnlyTransform):
    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        raise KeyError("no such")


class Global(ImageOnlyTransform):
    """Draws from the generators of the process, and counts how often it is called."""

    def __init__(self) -> None:
        super().__init__(p=1)
        self.calls = 0

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        self.calls += 1
        random.random(), np.random.random(), torch.rand(1)
        return img


def test_the_look_changes_neither_the_transforms_nor_what_is_drawn() -> None:
    augment = [spec("albumentations.GaussNoise", p=0.5), spec("albumentations.OneOf", transforms=INNER, p=0.7)]
    looked, other = TrainTransform(24, "random", augment), TrainTransform(24, "random", augment)
    own = TrainTransform(24, augment=[{"class_path": "tests.data.test_transform_check.Global"}])
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    looked.check(3)
    own.check(3)
    assert own.steps[0].calls == 0 and random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[2])
    assert str(np.random.get_state()) == states[1]
    for index in range(20):
        np.testing.assert_array_equal(looked(noise(30, 40), 0, 0, index), other(noise(30, 40), 0, 0, index))


class Rare(ImageOnlyTransform):
    """Gives something else for a black image, which the picture of the look is not."""

    on_black = staticmethod(lambda image: image)

    def apply(self, img: np.ndarray, **params: Any) -> Any:
        return img if img.max() > 0 else self.on_black(img)


@pytest.mark.parametrize(
    ("on_black", "expected"),
    [
        (lambda image: image.astype(np.float32), "gives float32 pixels"),
        (lambda image: image[:4].repeat(4, axis=1), "gives 64 x 4 px"),
        (lambda image: [][0], "cannot be done to an image of 16 x 16 px, IndexError"),
    ],
    ids=["type", "size", "error"],
)
def test_what_no_look_can_see_is_refused_in_training(
    on_black: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rare, "on_black", staticmethod(on_black))
    transform = TrainTransform(16, augment=[spec("tests.data.test_transform_check.Rare", p=1)])
    transform.check(3)
    with pytest.raises(UsageError, match=f"augment=Rare: {expected}"):
        transform(np.zeros((16, 16, 3), np.uint8), 0)


def test_a_batch_of_another_size_is_not_scrambled() -> None:
    transform = TrainTransform(16, augment=[spec("albumentations.RandomCrop", height=8, width=32, pad_if_needed=True)])
    with pytest.raises(UsageError, match=r"augment=RandomCrop: gives 32 x 8 px"):
        BatchTransform(transform)(np.zeros((4, 16, 16, 3), np.uint8), [(0, 0, index) for index in range(4)])


def test_the_data_module_looks_when_size_and_channels_are_known() -> None:
    resize = [spec("albumentations.Resize", height=48, width=48)]
    data = ImageDataModule("digits", augment=resize)  # weights may still say another size than 32
    data.expect_images({"image_size": 48})
    assert len(data.train_images()) > 0
    with pytest.raises(UsageError, match=r"augment=Resize: gives 48 x 48 px, and the list has to give 40 x 40 px"):
        data.expect_images({"image_size": 40})
    with pytest.raises(UsageError, match=r"augment=ToGray: works on colours"):
        _ = ImageDataModule("digits", augment=[spec("albumentations.ToGray")]).image_set
