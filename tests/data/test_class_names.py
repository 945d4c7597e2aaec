from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.sources import load_image_set
from tests.data.test_datasets import refused, save_images


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return save_images(tmp_path / "pets", *(f"{name}/{n}.png" for name in ("cat", "dog", "emu") for n in range(4)))


def names_by_path(root: Path, class_names: list[str] | None) -> dict[str, str]:
    images = load_image_set("image_folder", root, class_names=class_names)
    return {path: images.class_names[label] for path, label in zip(images.paths, images.labels, strict=True)}


@pytest.mark.parametrize("order", [["emu", "cat", "dog"], ["emu", "fox", "cat", "dog", "gnu"]])
def test_the_order_given_is_the_order_of_labels(pets: Path, order: list[str]) -> None:
    images = load_image_set("image_folder", pets, class_names=order)
    assert images.class_names == tuple(order)
    assert images.labels[0] == order.index("cat") and images.labels[-1] == order.index("emu")
    assert names_by_path(pets, order) == names_by_path(pets, None)
    assert images.digest == load_image_set("image_folder", pets).digest


def test_the_data_module_takes_it_for_splits_and_classes(pets: Path) -> None:
    data = ImageDataModule("image_folder", root=str(pets), class_names=["fox", "emu", "cat", "dog"])
    assert data.class_names == ["fox", "emu", "cat", "dog"] and data.num_classes == 4
    assert sorted(np.unique(data.image_set.labels[data.splits.train])) == [1, 2, 3]
    assert data.manifest == ImageDataModule("image_folder", root=str(pets)).manifest


def test_digits_can_be_turned_around_or_named() -> None:
    digits = load_image_set("digits")
    turned = load_image_set("digits", class_names=list("9876543210"))
    np.testing.assert_array_equal(turned.labels, 9 - digits.labels)
    named = load_image_set("digits", class_names=[f"class {n}" for n in range(10)])
    np.testing.assert_array_equal(named.labels, digits.labels)
    assert named.class_names[3] == "class 3"
    numbers: list[Any] = [9, 8, 7, np.int64(6), 5, 4, 3, 2, 1, 0]
    assert load_image_set("digits", class_names=numbers).class_names == turned.class_names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "dog"], "lacks emu, a class of the data; name all 3"),
        (["cat", "dog", "gnu"], "lacks emu"),
        (["cat", "dog", "emu", "cat"], "a name comes twice"),
        ([], "lacks cat"),
        ([True, False], "True is bool and no text; quote it: 'True'"),
        (["cat", None], "None is NoneType and no text"),
    ],
)
def test_names_that_do_not_fit_are_refused(pets: Path, names: list[Any], expected: str) -> None:
    message = refused(load_image_set, "image_folder", pets, None, names)
    assert message.startswith("class_names=[") and expected in message


def test_a_class_that_train_lacks_stays_refused(tmp_path: Path) -> None:
    root = save_images(tmp_path / "pets", "train/a/1.png", "train/b/2.png", "val/c/3.png")
    assert "val has c, a class that train lacks" in refused(load_image_set, "image_folder", root, None, ["a", "b", "c"])
