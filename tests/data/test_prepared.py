"""`prepared`: photographs decoded and shrunk once, kept on this disk, and the same as if they were not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.data import prepared
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.sources import decode_image
from lit_cnn.data.transforms import TrainCrop, TrainTransform
from lit_cnn.training.resume import config_digest
from tests.data.test_reduced_decode import jpeg, write_photographs

FLIP = [{"class_path": "albumentations.HorizontalFlip"}]
SIZE = 48


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lit_cnn" / "prepared"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photographs", [(400 + number, 600) for number in range(20)])


def module(root: Path, crop: TrainCrop = "random_resized", num_workers: int = 0, **options: Any) -> ImageDataModule:
    of_all = {"image_size": SIZE, "batch_size": 4, "augment": FLIP, "train_crop": crop, "num_workers": num_workers}
    return ImageDataModule("image_folder", str(root), **{**of_all, **options})


def batches(data: ImageDataModule) -> Iterator[torch.Tensor]:
    """What training sees, and validation and the test."""
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for images, _ in loader:
            yield images


def are_same(one: ImageDataModule, other: ImageDataModule) -> bool:
    return all(torch.equal(*pair) for pair in zip(batches(one), batches(other), strict=True))


def objects(cache: Path) -> list[Path]:
    return sorted((cache / "objects").glob("*/*"))


def refuse_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> np.ndarray:
        raise AssertionError("was decoded again")

    monkeypatch.setattr(prepared, "decode_image", refuse)


@pytest.mark.parametrize("crop", ["center", "random"])
def test_what_is_kept_changes_no_pixel_and_is_decoded_once(
    photographs: Path, cache: Path, crop: TrainCrop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert are_same(module(photographs, crop, num_workers=2), module(photographs, crop, prepared="off"))
    assert len(objects(cache)) == 20
    refuse_to_decode(monkeypatch)
    assert are_same(module(photographs, crop), module(photographs, crop, prepared="off"))
    # Another size is another preparation.
    with pytest.raises(AssertionError, match="decoded again"):
        list(batches(module(photographs, crop, image_size=SIZE + 1)))


def test_views_of_a_shrunk_photograph_are_those_of_the_whole_one_but_for_rounding(
    photographs: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform, whole = TrainTransform(64, "random_resized", FLIP), decode_image(jpeg(400, 600), 3, "a.jpg")
    shrunk = transform.prepare(whole)
    # No part that can be cut out is enlarged: 0.35 of the area at an aspect ratio of 4 : 3.
    assert min(shrunk.shape[:2]) == 125 == np.ceil(64 / np.sqrt(0.35 * 3 / 4))
    heights_and_widths = [transform._random_crop(*shrunk.shape[:2], 0, 0, number) for number in range(500)]
    assert min(map(min, heights_and_widths)) >= 64
    alike = sorted(
        np.corrcoef(transform(whole, 0, 0, number).ravel(), transform.view(shrunk, 0, 0, number).ravel())[0, 1]
        for number in range(100)
    )
    # A part that just does not fit into the whole image may fit into the smaller one, and be another.
    assert np.median(alike) > 0.99 and alike[3] > 0.95

    first = list(batches(module(photographs, num_workers=2)))
    refuse_to_decode(monkeypatch)
    again = list(batches(module(photographs)))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert len(objects(cache)) == 20


def test_small_images_and_long_ones_are_left_as_they_are(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "small"
    write_photographs(root, [(60 + number, 64) if number % 3 else (150, 17 * 150) for number in range(12)])
    data = module(root)
    assert are_same(data, module(root, prepared="off"))
    assert not [file for file in objects(cache) if file.stat().st_size > 44 + 3 * SIZE**2]
    data.train_images().tell_how()
    assert capsys.readouterr().err == ""


def test_what_is_damaged_is_made_anew_and_what_has_changed_is_not_kept(photographs: Path, cache: Path) -> None:
    expected = list(batches(module(photographs)))
    kept = objects(cache)
    kept[0].write_bytes(kept[0].read_bytes()[:-1])
    kept[1].write_bytes(b"")
    content = bytearray(kept[2].read_bytes())
    content[-5] ^= 1
    kept[2].write_bytes(content)
    assert all(torch.equal(*pair) for pair in zip(expected, batches(module(photographs)), strict=True))
    assert objects(cache) == kept and kept[2].read_bytes() != content

    for file in kept:
        file.unlink()
    data = module(photographs)
    assert len(data.image_set.paths) == 20
    changed = photographs / "a" / "0.jpg"
    changed.write_bytes(jpeg(500, 500))
    list(batches(data))
    assert len(objects(cache)) == 19


def test_no_more_is_kept_than_was_said(photographs: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_one = 3 * SIZE**2
    bounded = module(photographs, "center", prepared=3.5 * of_one / 1e9)
    assert are_same(bounded, module(photographs, "center", prepared="off"))
    assert len(objects(cache)) == 3
    for file in objects(cache):
        file.unlink()
    for options in ({"prepared": "off"}, {"reduced_decode": True}):
        data = module(photographs, **options)
        list(data.train_dataloader())
        data.train_images().tell_how()
        assert not objects(cache)
    assert capsys.readouterr().err == ""
    bounded.train_images().tell_how()
    assert capsys.readouterr().err == f"photographs are shrunk once and kept in {cache}, up to 24.2 kB\n"


def test_a_cache_of_nothing_changes_no_view(photographs: Path, cache: Path) -> None:
    expected = list(batches(module(photographs)))
    for file in objects(cache):
        file.unlink()
    nothing = module(photographs)
    nothing.options["cache_gb"] = 0  # refused of a folder of this machine
    assert all(torch.equal(*pair) for pair in zip(expected, batches(nothing), strict=True))
    assert not objects(cache)


def test_only_what_decides_pixels_is_another_configuration() -> None:
    def digest(crop: str, **options: object) -> str:
        config = {"seed_everything": 0, "model": {}, "data": {"train_crop": crop, **options}, "trainer": {}}
        return config_digest(config, "digest")

    for crop in ("center", "random"):
        assert len({digest(crop), *(digest(crop, prepared=each) for each in ("auto", "off", 20.0))}) == 1
    assert digest("random_resized") == digest("random_resized", prepared="off")  # as by versions before
    kept = digest("random_resized", prepared="auto")
    assert kept == digest("random_resized", prepared=20.0) != digest("random_resized", prepared="off")


def test_a_wrong_bound_is_one_line(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"^prepared=1: these images are decoded already; leave it out$"):
        _ = ImageDataModule("digits", prepared=1).image_set
    for given in ("often", "0", "-1", "nan"):
        assert main(["fit", str(photographs), f"--data.prepared={given}", "--model.weights=null"]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"lit-cnn: error: --data.prepared {given}")
