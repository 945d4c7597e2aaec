"""`reduced_decode`: JPEGs at a half, a quarter or an eighth of their size, where a view loses nothing by it."""

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image

from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.decoding import decode_file
from lit_cnn.data.sources import decode_image
from lit_cnn.data.transforms import TrainCrop, TrainTransform

HORIZONTAL_FLIP = {"class_path": "albumentations.HorizontalFlip"}


def jpeg(height: int = 400, width: int = 600, **options: object) -> bytes:
    photograph = Image.fromarray(sklearn.datasets.load_sample_images().images[0]).resize((width, height))
    buffer = io.BytesIO()
    photograph.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def write_photographs(root: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """Writes JPEGs of some heights and widths in two folders of classes."""
    for number, (height, width) in enumerate(sizes):
        file = root / "ab"[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(height, width))
    return root


def alike(image: np.ndarray, other: np.ndarray) -> float:
    """Returns the correlation of two images' pixels."""
    return float(np.corrcoef(image.ravel(), other.ravel())[0, 1])


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(400, 600), (333, 501)])
def test_a_reduced_jpeg_is_the_whole_one_averaged(factor: int, height: int, width: int) -> None:
    content = jpeg(height, width)
    reduced = decode_file(io.BytesIO(content), 3, "a.jpg", lambda *shape: factor)
    assert reduced.shape == (-(-height // factor), -(-width // factor), 3)
    whole = decode_image(content, 3, "a.jpg")
    averaged = cv2.resize(whole, reduced.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert alike(reduced, averaged) > (0.97 if factor > 1 else 0.9999)


def test_what_is_no_upright_jpeg_in_colour_keeps_its_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    png = io.BytesIO()
    Image.fromarray(sklearn.datasets.load_sample_images().images[0]).save(png, "PNG")
    for content, in_channels in ((jpeg(exif=exif), 3), (jpeg(), 1), (png.getvalue(), 3)):
        whole = decode_image(content, in_channels, "a")
        assert np.array_equal(decode_file(io.BytesIO(content), in_channels, "a", lambda *shape: 8), whole)


def test_a_damaged_jpeg_is_named_as_ever() -> None:
    with pytest.raises(UsageError, match=r"a\.jpg: this image cannot be decoded"):
        decode_file(io.BytesIO(jpeg()[:2000]), 3, "a.jpg", lambda *shape: 4)


@pytest.mark.parametrize(
    ("crop", "size", "height", "expected"),
    [
        ("center", 100, 400, 4),
        ("center", 101, 400, 2),
        ("center", 300, 400, 1),
        ("center", 10, 4000, 8),
        ("random", 88, 400, 2),
        ("random", 87, 400, 4),
    ],
)
def test_the_shorter_side_stays_as_long_as_the_crop_needs_it(
    crop: TrainCrop, size: int, height: int, expected: int
) -> None:
    assert TrainTransform(size, crop).reduction(height, 2 * height, 0, 0, 0) == expected
    assert TrainTransform(size, crop).reduction(2 * height, height, 0, 0, 0) == expected


def test_the_part_of_a_random_resized_crop_is_never_enlarged() -> None:
    transform = TrainTransform(80, "random_resized", [HORIZONTAL_FLIP])
    factors = []
    for number in range(200):
        factor = transform.reduction(400, 600, 0, 0, number)
        height, width = transform._random_crop(-(-400 // factor), -(-600 // factor), 0, 0, number)
        assert min(height, width) >= 80
        # And no larger factor would do.
        next_height, next_width = transform._random_crop(-(-400 // (2 * factor)), -(-600 // (2 * factor)), 0, 0, number)
        assert min(next_height, next_width) < 80
        factors.append(factor)
    assert set(factors) == {2, 4}


@pytest.mark.parametrize("crop", ["center", "random", "random_resized"])
def test_a_view_shows_the_same_part_of_the_image(crop: TrainCrop) -> None:
    transform, content = TrainTransform(64, crop, [HORIZONTAL_FLIP], "area"), jpeg()
    whole = decode_image(content, 3, "a.jpg")
    same, other = [], []
    for number in range(20):
        key = (0, 0, number)
        factor = transform.reduction(400, 600, *key)
        assert factor > 1
        reduced = decode_file(io.BytesIO(content), 3, "a.jpg", lambda *shape: factor)  # noqa: B023
        view, expected = transform(reduced, *key), transform(whole, *key)
        same.append(alike(view, expected))
        other.append(alike(transform(whole, 0, 0, number + 1000), expected))
    # By rounding, a part that just does not fit into the whole image may fit into the smaller one.
    assert sorted(same)[1] > 0.95
    assert crop == "center" or sorted(other)[-2] < 0.95


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photographs", [(300 + number, 400) for number in range(24)])


def test_training_images_are_reduced_alike_with_any_number_of_workers(photographs: Path) -> None:
    def module(reduced_decode: bool, num_workers: int) -> ImageDataModule:
        return ImageDataModule(
            "image_folder",
            str(photographs),
            image_size=32,
            batch_size=8,
            train_crop="random_resized",
            num_workers=num_workers,
            reduced_decode=reduced_decode,
            prepared="off",
        )

    whole = list(module(False, 0).train_dataloader())
    reduced = list(module(True, 0).train_dataloader())
    in_workers = list(module(True, 2).train_dataloader())
    for (images, labels), (small, small_labels), (others, _) in zip(whole, reduced, in_workers, strict=True):
        assert torch.equal(labels, small_labels) and torch.equal(small, others)
        assert not torch.equal(images, small)
        assert alike(images.numpy(), small.numpy()) > 0.95
    for one, other in zip(module(False, 0).val_dataloader(), module(True, 0).val_dataloader(), strict=True):
        assert torch.equal(one[0], other[0])


def test_images_that_are_decoded_already_are_refused() -> None:
    with pytest.raises(UsageError, match=r"reduced_decode=True: these images are decoded already"):
        _ = ImageDataModule("digits", reduced_decode=True).image_set
