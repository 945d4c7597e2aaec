"""One pass, exact, remembered by what it depends on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.normalization import IMAGENET_MEAN
from lit_cnn.data.pixel_statistics import cached, keep, measure_pixels
from tests.runs import image_folder


def images(count: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 7, 5, 3), np.uint8)


def test_the_figures_are_numpys() -> None:
    array = images()
    pixels = array.reshape(-1, 3) / 255
    found = measure_pixels([array])
    assert found.num_images == 50
    np.testing.assert_allclose(found.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(pixels.T, bias=True), rtol=1e-9)


def test_batches_and_order_change_no_bit() -> None:
    array = images()
    assert measure_pixels([array]) == measure_pixels([array[40:], array[:7], array[7:40]])


def test_gray_images_have_one_channel_and_none_at_all_are_refused() -> None:
    assert np.shape(measure_pixels([images()[..., :1]]).covariance) == (1, 1)
    with pytest.raises(ValueError, match="at least one image"):
        measure_pixels([])


def test_what_was_kept_is_found_under_its_key_alone(tmp_path: Path) -> None:
    statistics = measure_pixels([images()])
    keep(("a", 1), statistics, tmp_path)
    assert cached(("a", 1), tmp_path) == statistics
    assert cached(("a", 2), tmp_path) is None
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:-9])
    assert cached(("a", 1), tmp_path) is None, "half a file is none"


def test_training_images_in_files_are_measured_once_as_validation_sees_them(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", ["misty", "tigga"], per_class=10, size=24)
    data = ImageDataModule("image_folder", str(root), image_size=24, num_workers=2, normalize="train")
    pixels = np.stack([data.image_set.images[index] for index in data.splits.train]).reshape(-1, 3) / 255
    assert data.mean == pytest.approx(pixels.mean(0), abs=1e-6)
    assert data.std == pytest.approx(pixels.std(0), abs=1e-6)
    again = ImageDataModule("image_folder", str(root), image_size=24, num_workers=0, normalize="train")
    assert len(again.splits.train)
    kept = {file: file.read_bytes() for file in root.rglob("*.png")}
    for file in kept:
        file.write_bytes(b"no image any more")
    assert again.pixel_statistics == data.pixel_statistics, "nothing is decoded again"
    for file, content in kept.items():
        file.write_bytes(content)
    other_size = ImageDataModule("image_folder", str(root), image_size=8, num_workers=0, normalize="train")
    assert other_size.pixel_statistics != data.pixel_statistics
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(next(root.rglob("*.png")))
    changed = ImageDataModule("image_folder", str(root), image_size=24, num_workers=0, normalize="train")
    assert changed.digests["data"] != data.digests["data"]
    assert changed.pixel_statistics != data.pixel_statistics


def test_files_are_normalised_as_imagenet_unless_asked(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", ["misty", "tigga"], per_class=10, size=24)
    data = ImageDataModule("image_folder", str(root))
    assert tuple(data.mean) == IMAGENET_MEAN and not data.has_measured_pixels
    assert ImageDataModule("digits", normalize="imagenet").mean == pytest.approx([np.mean(IMAGENET_MEAN)])


def test_one_of_several_devices_measures_all_images(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", ["misty", "tigga"], per_class=10, size=24)
    data: Any = ImageDataModule("image_folder", str(root), image_size=24, num_workers=0)
    data.trainer = SimpleNamespace(global_rank=1, world_size=2)
    assert data.pixel_statistics.num_images == len(data.splits.train)
    assert len(data.val_dataloader().dataset) == len(data.splits.val[1::2])
