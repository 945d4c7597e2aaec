"""AlexNet's colour shifts: the paper's formula, from the training set's covariance, one draw an image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.pca_color import color_offset
from lit_cnn.data.transforms import TrainTransform

PCA = "lit_cnn.data.pca_color.PCAColor"


def purple(folder: Path, count: int = 12) -> Path:
    """Images whose red and blue rise and fall together, and whose green never changes."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((16, 16, 3), 40, np.uint8)
            pixels[..., 0] = pixels[..., 2] = generator.integers(60, 200, (16, 16))
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_the_offset_is_the_papers_formula() -> None:
    pixels = np.random.default_rng(0).random((1000, 3)) @ np.array([[1, 0.5, 0.2], [0, 0.3, 0.1], [0, 0, 0.05]])
    covariance = np.cov(pixels.T)
    values, vectors = np.linalg.eigh(covariance)
    for place in range(3):  # of the largest variance first
        draws = np.eye(3)[place] * 0.1
        raw, root = color_offset(covariance, draws, "raw"), color_offset(covariance, draws, "sqrt")
        value, vector = values[2 - place], vectors[:, 2 - place]
        np.testing.assert_allclose(np.abs(raw), np.abs(0.1 * value * vector), atol=1e-12)
        np.testing.assert_allclose(np.abs(root), np.abs(0.1 * np.sqrt(value) * vector), atol=1e-12)


def test_offsets_spread_as_the_pixels_do() -> None:
    # sum over components of p p' l times the variance of the draws, 0.01: a hundredth of the covariance itself.
    covariance = np.array([[0.05, 0.04, 0.03], [0.04, 0.06, 0.05], [0.03, 0.05, 0.07]])
    generator = np.random.default_rng(0)
    offsets = np.array([color_offset(covariance, generator.normal(0, 0.1, 3)) for _ in range(20_000)])
    np.testing.assert_allclose(np.cov(offsets.T), covariance / 100, rtol=0.05)


def test_a_purple_set_moves_in_red_and_blue_and_not_in_green(tmp_path: Path) -> None:
    data = ImageDataModule(
        "image_folder", str(purple(tmp_path / "purple")), image_size=16, augment=[{"class_path": PCA}]
    )
    transform, gray = data.ready_train_transform(), np.full((16, 16, 3), 128, np.uint8)
    shifts = np.array([transform(gray, seed)[0, 0].astype(int) - 128 for seed in range(200)])
    assert (shifts[:, 1] == 0).all()
    assert (shifts[:, 0] == shifts[:, 2]).all()
    std = data.pixel_statistics.std[0]
    # Red and blue vary as one: along (1, 0, 1) / sqrt(2) with the standard deviation sqrt(2) std.
    assert np.std(shifts[:, 0]) == pytest.approx(255 * 0.1 * std, rel=0.2)


def test_all_pixels_of_an_image_move_by_one_draw_and_stay_in_range() -> None:
    covariance = (0.08 * np.eye(3)).tolist()
    spec = {"class_path": PCA, "init_args": {"std": 0.5, "covariance": covariance}}
    transform = TrainTransform(8, augment=[spec])
    assert not transform.needs_covariance
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    moved = transform(image, 1).astype(int)
    shift = np.median(moved - image, axis=(0, 1)).astype(int)
    np.testing.assert_array_equal(moved, (image + shift).clip(0, 255))
    assert (shift != 0).any()
    assert (transform(image, 2) != moved).any() and (transform(image, 1) == moved).all()


def test_the_papers_own_formula_is_a_tenth_of_what_is_seen() -> None:
    covariance, draws = 0.05 * np.eye(3), np.full(3, 0.1)
    assert np.abs(color_offset(covariance, draws, "raw")).max() < 0.006
    assert np.abs(color_offset(covariance, draws, "sqrt")).max() > 0.02


@pytest.mark.parametrize("eigenvalues", ["sqrt", "raw"])
def test_the_transform_moves_an_image_by_the_formula_that_it_is_told(eigenvalues: str) -> None:
    variance = np.array([0.09, 0.04, 0.01])  # along red, green and blue, each of its own
    init_args = {"eigenvalues": eigenvalues, "std": 1.0, "covariance": np.diag(variance).tolist()}
    transform, gray = TrainTransform(8, augment=[{"class_path": PCA, "init_args": init_args}]), np.full((8, 8, 3), 128)
    shifts = np.array([transform(gray.astype(np.uint8), seed)[0, 0] / 255.0 - 128 / 255 for seed in range(400)])
    expected = variance if eigenvalues == "raw" else np.sqrt(variance)
    np.testing.assert_allclose(shifts.std(0), expected, rtol=0.15)


def test_it_may_stand_inside_a_one_of(tmp_path: Path) -> None:
    nested = [{"class_path": "albumentations.OneOf", "init_args": {"transforms": [{"class_path": PCA}], "p": 1.0}}]
    data = ImageDataModule("image_folder", str(purple(tmp_path / "purple")), image_size=16, augment=nested)
    assert data.train_transform.needs_covariance
    data.ready_train_transform()
    assert not data.train_transform.needs_covariance


@pytest.mark.parametrize(
    ("init_args", "said"), [({"std": -1}, "std"), ({"eigenvalues": "cube"}, "eigenvalues"), ({"colour": 1}, "colour")]
)
def test_mistakes_are_told(init_args: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=rf"^augment={PCA}: .*{said}"):
        TrainTransform(8, augment=[{"class_path": PCA, "init_args": init_args}])
