"""The presets in configs/augment: what each promises shows in the pixels, nested transforms included."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.transforms import TrainTransform
from tests.runs import CONFIGS

PRESETS = {file.stem: yaml.safe_load(file.read_text())["data"] for file in (CONFIGS / "augment").glob("*.yaml")}
SIZE = 64
AFFINE = {"class_path": "albumentations.Affine", "init_args": {"rotate": (10, 10), "shear": (5, 5), "p": 1.0}}


def of_preset(name: str, *class_names: str, **init_args: Any) -> TrainTransform:
    """The preset's transforms of these classes alone, each applied always."""
    found = [spec for spec in _flat(PRESETS[name]["augment"]) if spec["class_path"].rpartition(".")[2] in class_names]
    assert {spec["class_path"].rpartition(".")[2] for spec in found} == set(class_names)
    return TrainTransform(
        SIZE, augment=[{**spec, "init_args": {**spec.get("init_args", {}), "p": 1.0, **init_args}} for spec in found]
    )


def _flat(specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    inner = [_flat(spec.get("init_args", {}).get("transforms", [])) for spec in specs]
    return [*specs, *(spec for each in inner for spec in each)]


def disc(row: int = 32, column: int = 32, radius: int = 6) -> np.ndarray:
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    cv2.circle(image, (column, row), radius, (255, 255, 255), -1)
    return image


def centre(image: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(image[..., 0] > 127)
    return np.array([rows.mean(), columns.mean()])


def test_there_are_the_presets_that_the_readme_lists() -> None:
    assert sorted(PRESETS) == ["alexnet", "color", "geometric", "none", "standard", "strong"]
    assert PRESETS["none"] == {"train_crop": "center", "augment": []}
    assert {
        name: preset["train_crop"] for name, preset in PRESETS.items() if name not in ("none", "alexnet")
    } == dict.fromkeys(("color", "geometric", "standard", "strong"), "random_resized")
    assert PRESETS["alexnet"]["train_crop"] == "random"


@pytest.mark.parametrize("name", ["standard", "geometric", "color", "alexnet", "strong"])
def test_mirroring_turns_left_into_right(name: str) -> None:
    image = disc(column=10)
    np.testing.assert_array_equal(of_preset(name, "HorizontalFlip")(image, 0), image[:, ::-1])


def test_rotation_keeps_the_centre_and_turns_the_rest() -> None:
    rotate = of_preset("geometric", "Rotate")
    np.testing.assert_allclose(centre(rotate(disc(), 0)), [32, 32], atol=1)
    right = [centre(rotate(disc(column=52), key)) - 31.5 for key in range(20)]
    start = centre(disc(column=52)) - 31.5  # a little below the middle
    angles = np.degrees([np.arctan2(-row, column) for row, column in right]) - np.degrees(
        np.arctan2(-start[0], start[1])
    )
    assert np.abs(angles).max() <= 15.5 and np.ptp(angles) > 10
    np.testing.assert_allclose([np.hypot(*each) for each in right], 20.5, atol=1.5)


def test_shearing_moves_rows_against_each_other_and_not_the_middle_one() -> None:
    shear = of_preset("geometric", "Affine", shear={"x": (10, 10), "y": (0, 0)})
    shifts = [centre(shear(disc(row=row), 0))[1] - 32 for row in (12, 32, 52)]
    assert abs(shifts[1]) < 1
    assert shifts[0] * shifts[2] < 0
    np.testing.assert_allclose(np.abs([shifts[0], shifts[2]]), 20 * np.tan(np.radians(10)), atol=1)


def bend(image: np.ndarray) -> float:
    """How far, in pixels, a line in the middle of the image strays from a straight one."""
    rows, columns = np.nonzero(image[..., 0] > 127)
    inner = np.unique(rows)[3:-3]  # the ends are cut off askew
    places = np.array([columns[rows == row].mean() for row in inner])
    return float(np.abs(places - np.polyval(np.polyfit(inner, places, 1), inner)).max())


@pytest.mark.parametrize("warp", ["ElasticTransform", "GridDistortion", "ThinPlateSpline"])
def test_local_warping_bends_straight_lines(warp: str) -> None:
    diagonal = np.zeros((SIZE, SIZE, 3), np.uint8)  # GridDistortion keeps upright and level lines as they are
    cv2.line(diagonal, (14, 14), (SIZE - 15, SIZE - 15), (255, 255, 255), 3)
    transform = of_preset("geometric", warp)
    bends = []
    for key in range(10):
        bends.append(bend(transform(diagonal, key)))
    assert np.median(bends) > 0.75
    assert bend(TrainTransform(SIZE, augment=[AFFINE])(diagonal, 0)) < 0.65, (
        "rotated and sheared, a line stays straight"
    )


def test_colour_shifts_move_channels_by_different_amounts() -> None:
    gray = np.full((SIZE, SIZE, 3), 128, np.uint8)
    shifted = of_preset("color", "RGBShift")(gray, 0)
    assert (shifted == shifted[0, 0]).all() and len(set(shifted[0, 0].tolist())) == 3
    assert np.abs(shifted[0, 0].astype(int) - 128).max() <= 20
    brighter = of_preset("color", "RandomBrightnessContrast")(gray, 0)
    assert (brighter == brighter[0, 0]).all() and len(set(brighter[0, 0].tolist())) == 1 and brighter[0, 0, 0] != 128
    red = np.zeros_like(gray)
    red[..., 0] = 200
    hue = of_preset("color", "HueSaturationValue")(red, 0)
    assert (hue[0, 0] != red[0, 0]).any() and hue[0, 0].argmax() == 0


def test_strong_erases_and_applies_two_of_eleven() -> None:
    some_of = next(spec for spec in PRESETS["strong"]["augment"] if spec["class_path"].endswith("SomeOf"))
    assert len(some_of["init_args"]["transforms"]) == 11
    erased = of_preset("strong", "CoarseDropout")(np.full((SIZE, SIZE, 3), 128, np.uint8), 0)
    rows, columns = np.nonzero((erased != 128).any(-1))
    assert np.ptp(rows) >= 8 and np.ptp(columns) >= 8
    assert (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) == len(rows), "one rectangle"


def test_strong_applies_two_different_operations_to_every_image() -> None:
    (spec,) = [spec for spec in PRESETS["strong"]["augment"] if spec["class_path"].endswith("SomeOf")]
    transform = TrainTransform(SIZE, augment=[spec])
    (some_of,) = [step for step in transform.steps if type(step).__name__ == "SomeOf"]
    applied: list[int] = []
    for place, operation in enumerate(some_of.transforms):
        operation.get_params = partial(_noted, operation.get_params, applied, place)  # asked when it is applied
    seen = set()
    for key in range(300):
        applied.clear()
        transform(np.random.default_rng(key).integers(0, 256, (SIZE, SIZE, 3), np.uint8), key)
        assert len(applied) == len(set(applied)) == 2
        seen.update(applied)
    assert seen == set(range(11))


def _noted(get_params: Callable[[], dict[str, Any]], applied: list[int], place: int) -> dict[str, Any]:
    applied.append(place)
    return get_params()


@pytest.mark.parametrize("name", ["geometric", "strong"])
def test_every_transform_of_a_preset_does_something(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    for spec in _flat(PRESETS[name]["augment"]):
        transform = TrainTransform(SIZE, augment=[{**spec, "init_args": {**spec.get("init_args", {}), "p": 1.0}}])
        assert any((transform(image, key) != image).any() for key in range(3)), spec


@pytest.mark.parametrize("name", ["color", "alexnet", "strong"])
def test_transforms_of_colour_are_refused_for_gray_images(name: str) -> None:
    data = ImageDataModule("digits", augment=PRESETS[name]["augment"])
    with pytest.raises(UsageError, match=r"augment=\w+: works on colours, and the images are gray; leave it out"):
        _ = data.in_channels
    assert ImageDataModule("digits", in_channels=3, augment=PRESETS[name]["augment"]).in_channels == 3


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_trains_from_the_command_line(name: str, tmp_path: Path) -> None:
    options = ["--data.dataset=digits", "--data.in_channels=3", "--data.limit_train=64", "--data.num_workers=0"]
    more = ["--trainer.max_epochs=1", "--test_after_fit=false", "--track=false"]
    assert main(["fit", f"--config={CONFIGS / 'augment' / f'{name}.yaml'}", *options, *more]) == 0
