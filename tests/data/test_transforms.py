from collections.abc import Mapping
from typing import Any

import albumentations
import cv2
import numpy as np
import pytest

from lit_cnn.core.errors import UsageError
from lit_cnn.core.resize import Interpolation, center_crop, resize_and_center_crop, resize_shorter_side
from lit_cnn.data.transforms import TrainCrop, TrainTransform

CROPS: list[TrainCrop] = ["center", "random", "random_resized"]


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def spec(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


# --- the validation view ---


@pytest.mark.parametrize(("height", "width", "expected"), [(40, 60, (20, 30)), (60, 40, (30, 20)), (7, 7, (20, 20))])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_shorter_side_is_scaled_and_the_ratio_kept(
    height: int, width: int, expected: tuple[int, int], channels: int
) -> None:
    resized = resize_shorter_side(noise(height, width, channels), 20, "bilinear")
    assert resized.shape == (*expected, channels) and resized.dtype == np.uint8


def test_a_ratio_that_does_not_divide_never_falls_below_the_size() -> None:
    for width in range(101, 140):
        assert min(resize_shorter_side(noise(100, width), 33, "area").shape[:2]) == 33


def test_area_averages_when_shrinking_by_a_whole_number() -> None:
    image = noise(8, 12)
    averages = image.reshape(4, 2, 6, 2, 3).mean((1, 3))
    assert np.abs(resize_shorter_side(image, 4, "area") - averages).max() <= 0.5


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = noise(8, 8)
    np.testing.assert_array_equal(resize_and_center_crop(image, 8), image)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_interpolation_is_the_one_named(interpolation: Interpolation) -> None:
    image = noise(10, 10)
    method = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[interpolation]
    expected = cv2.resize(image, (7, 7), interpolation=method)
    np.testing.assert_array_equal(resize_shorter_side(image, 7, interpolation), expected)
    assert (resize_shorter_side(image, 7, "area") != expected).any()


def test_area_enlarges_bilinearly() -> None:
    image = noise(5, 5)
    np.testing.assert_array_equal(resize_shorter_side(image, 9, "area"), resize_shorter_side(image, 9, "bilinear"))


def test_the_center_crop_is_the_middle() -> None:
    image = noise(9, 12)
    np.testing.assert_array_equal(center_crop(image, 5), image[2:7, 3:8])
    np.testing.assert_array_equal(center_crop(image, 9), image[:, 1:10])


@pytest.mark.parametrize("crop", CROPS)
def test_a_very_long_image_takes_no_more_memory_than_one_16_times_as_long_as_wide(crop: TrainCrop) -> None:
    line = noise(1, 100_000)
    assert resize_shorter_side(line, 24, "area").shape == (24, 24 * 16, 3)
    assert TrainTransform(24, crop)(line, 0, 0).shape == (24, 24, 3)
    np.testing.assert_array_equal(
        resize_and_center_crop(line, 24), resize_and_center_crop(line[:, 50_000 - 8 : 50_000 + 8], 24)
    )


def test_up_to_16_times_as_long_as_wide_the_whole_image_is_resized() -> None:
    for shape in ((3, 48), (48, 3), (5, 79), (40, 60)):
        image = noise(*shape)
        size = (round(shape[1] * 24 / min(shape)), round(shape[0] * 24 / min(shape)))
        method = cv2.INTER_LINEAR if min(shape) < 24 else cv2.INTER_AREA
        np.testing.assert_array_equal(
            resize_shorter_side(image, 24, "area"), cv2.resize(image, size, interpolation=method)
        )


def test_the_validation_view_cuts_the_longer_side_alone() -> None:
    image = noise(8, 20)
    np.testing.assert_array_equal(resize_and_center_crop(image, 8), image[:, 6:14])


# --- the training view ---


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(50, 70), (70, 50), (16, 16), (9, 11)])
@pytest.mark.parametrize("crop", CROPS)
def test_every_crop_gives_the_square(crop: TrainCrop, height: int, width: int, channels: int) -> None:
    transform = TrainTransform(16, crop, [spec("albumentations.HorizontalFlip", p=0.5)])
    for index in range(5):
        view = transform(noise(height, width, channels), 0, 0, index)
        assert view.shape == (16, 16, channels) and view.dtype == np.uint8


def test_center_without_augmentation_is_the_validation_view() -> None:
    image = noise(30, 40)
    np.testing.assert_array_equal(TrainTransform(16)(image, 0, 0, 0), resize_and_center_crop(image, 16))


def test_a_flip_at_p_1_mirrors_the_pixels() -> None:
    image = noise(12, 12)
    flipped = TrainTransform(12, augment=[spec("albumentations.HorizontalFlip", p=1)])(image, 0, 0, 0)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    upside_down = TrainTransform(12, augment=[spec("albumentations.VerticalFlip", p=1)])(image[..., :1], 0, 0, 0)
    np.testing.assert_array_equal(upside_down, image[::-1, :, :1])


def test_transforms_are_applied_in_order() -> None:
    image = noise(12, 12)
    turn, flip = spec("albumentations.Transpose", p=1), spec("albumentations.HorizontalFlip", p=1)
    transposed = image.transpose(1, 0, 2)
    np.testing.assert_array_equal(TrainTransform(12, augment=[turn, flip])(image, 0), transposed[:, ::-1])
    np.testing.assert_array_equal(TrainTransform(12, augment=[flip, turn])(image, 0), transposed[::-1])


def test_transforms_may_be_nested() -> None:
    image = noise(12, 12)
    flips = [spec("albumentations.HorizontalFlip", p=1), spec("albumentations.VerticalFlip", p=1)]
    one_of = TrainTransform(12, augment=[spec("albumentations.OneOf", transforms=flips, p=1)])
    views = {one_of(image, index).tobytes() for index in range(30)}
    assert views == {image[:, ::-1].tobytes(), image[::-1].tobytes()}
    with pytest.raises(UsageError, match=r"albumentations.Flop: no such transform"):
        TrainTransform(12, augment=[spec("albumentations.OneOf", transforms=[spec("albumentations.Flop")])])


def test_a_class_of_the_users_own_may_nest_transforms_and_a_function_is_not_called() -> None:
    image = noise(12, 12)
    mirrored = TrainTransform(12, augment=[{"class_path": "tests.data.test_transforms.Mirror"}])
    np.testing.assert_array_equal(mirrored(image, 0), image[:, ::-1])
    # A checkpoint's configuration could name any function.
    with pytest.raises(UsageError, match=r"test_transforms.build_mirror: is not an albumentations transform"):
        TrainTransform(12, augment=[{"class_path": "tests.data.test_transforms.build_mirror"}])(image, 0)


class Mirror(albumentations.OneOf):
    def __init__(self) -> None:
        super().__init__([albumentations.HorizontalFlip(p=1)], p=1)


def build_mirror() -> Mirror:
    raise AssertionError("called")


def test_a_random_crop_is_a_part_of_the_resized_image() -> None:
    image = noise(32, 32)
    larger = resize_shorter_side(image, 32, "area")  # 28 * 256 / 224
    transform = TrainTransform(28, "random")
    places = set()
    for index in range(60):
        view = transform(image, 0, 0, index)
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(view, larger[top : top + 28, left : left + 28])
        ]
        assert len(found) == 1
        places.update(found)
    assert len(places) > 15


def test_a_random_resized_crop_keeps_35_to_100_percent() -> None:
    ramp = np.zeros((100, 100, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(100)[:, None], np.arange(100)
    transform = TrainTransform(50, "random_resized", interpolation="bilinear")
    areas = []
    for index in range(100):
        view = transform(ramp, 0, 0, index).astype(int)
        areas.append(np.ptp(view[..., 0]) * np.ptp(view[..., 1]) / 99**2)
    assert 0.3 < min(areas) < 0.45 and 0.85 < max(areas) <= 1


def test_scale_and_ratio_of_a_random_resized_crop_can_be_given() -> None:
    transform = TrainTransform(8, "random_resized", crop_scale=(0.04, 0.06), crop_ratio=(0.9, 1.1))
    sizes = np.array([transform._random_crop(100, 100, 0, 0, number) for number in range(200)])
    areas, ratios = sizes.prod(1) / 100**2, sizes[:, 1] / sizes[:, 0]
    assert areas.min() > 0.038 and areas.max() < 0.064
    assert ratios.min() > 0.85 and ratios.max() < 1.15


@pytest.mark.parametrize("crop", ["random", "random_resized"])
def test_the_key_draws_the_view(crop: TrainCrop) -> None:
    image = noise(64, 64)
    one, other = TrainTransform(32, crop), TrainTransform(32, crop)
    views = [one(image, 0, 0, index) for index in range(20)]
    for index in reversed(range(20)):
        np.testing.assert_array_equal(other(image, 0, 0, index), views[index])
    assert len({view.tobytes() for view in views}) > 10
    differently = [one(image, *key) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0)]]
    assert len({view.tobytes() for view in differently}) == 3


def test_the_image_given_is_not_changed() -> None:
    image = noise(16, 16)
    before = image.copy()
    TrainTransform(16, augment=[spec("albumentations.GaussNoise", p=1), spec("albumentations.InvertImg", p=1)])(
        image, 0
    )
    np.testing.assert_array_equal(image, before)


# --- what every transform of a preset must do ---


@pytest.mark.parametrize(
    "augment",
    [
        spec("albumentations.HorizontalFlip", p=1),
        spec("albumentations.ColorJitter", p=1),
        spec("albumentations.Affine", rotate=(10, 20), p=1),
        spec("albumentations.CoarseDropout", p=1),
        spec("albumentations.ElasticTransform", alpha=50, p=1),
    ],
    ids=lambda augment: augment["class_path"].rpartition(".")[2],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transform_does_something(augment: dict[str, Any], channels: int) -> None:
    image = noise(24, 24, channels)
    assert (TrainTransform(24, augment=[augment])(image, 0, 0, 0) != image).any()


def test_a_transform_that_does_nothing_would_be_seen() -> None:
    image = noise(24, 24)
    np.testing.assert_array_equal(TrainTransform(24, augment=[spec("albumentations.NoOp", p=1)])(image, 0), image)


# --- mistakes ---


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        (spec("albumentations.HorizontalFlop"), "albumentations.HorizontalFlop: no such transform"),
        (spec("no_such_module.Flip"), "no_such_module.Flip: no such transform"),
        (spec("HorizontalFlop"), "HorizontalFlop: no such transform"),
        (spec("albumentations.HorizontalFlip", p=2), "albumentations.HorizontalFlip: "),
        (spec("albumentations.Affine", rotate="north"), "albumentations.Affine: "),
        (spec("collections.OrderedDict"), "collections.OrderedDict: is not an albumentations transform"),
        (spec("os.getcwd"), "os.getcwd: is not an albumentations transform"),
        ({"init_args": {"p": 1}}, "give class_path"),
        ({"class_path": "albumentations.HorizontalFlip", "p": 1}, "give class_path and, if needed, init_args"),
        ({"class_path": 3}, "give class_path"),
    ],
)
def test_a_mistake_is_named_in_one_line(augment: Mapping[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainTransform(16, augment=[augment])
    assert str(caught.value).startswith("augment=") and expected in str(caught.value)
    assert "\n" not in str(caught.value) and "https" not in str(caught.value)


def test_an_argument_that_does_not_exist_is_refused() -> None:
    # albumentations only warns, and goes on without it.
    with pytest.raises(UsageError, match=r"augment=albumentations.HorizontalFlip: .*probability"):
        TrainTransform(16, augment=[spec("albumentations.HorizontalFlip", probability=1)])
