import gzip
from pathlib import Path

import numpy as np
import pytest

from lit_cnn.data.sources import load_idx, load_image_set
from tests.data.test_datasets import idx, refused


def write_idx(folder: Path, train: list[int], test: list[int], test_name: str = "t10k", prefix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    for split, labels in (("train", train), (test_name, test)):
        images = draw.integers(0, 256, (len(labels), 5, 4), np.uint8)
        (folder / f"{prefix}{split}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{prefix}{split}-labels-idx1-ubyte").write_bytes(idx(np.array(labels, np.uint8)))
    return folder


def test_mnist_is_read_with_its_split(tmp_path: Path) -> None:
    mnist = load_image_set("idx", write_idx(tmp_path / "mnist", list(range(10)), [9, 0]))
    assert (mnist.name, mnist.in_channels, mnist.class_names) == ("mnist", 1, tuple("0123456789"))
    assert mnist.labels.tolist() == [*range(10), 9, 0]
    assert {split: indices.tolist() for split, indices in mnist.splits.items()} == {
        "train": list(range(10)),
        "test": [10, 11],
    }
    expected = np.random.default_rng(0).integers(0, 256, (10, 5, 4), np.uint8)
    np.testing.assert_array_equal(np.stack(mnist.images[:10])[..., 0], expected)
    assert load_image_set("idx", tmp_path / "mnist", in_channels=3).images[3].shape == (5, 4, 3)


def test_emnist_is_read_packed_with_its_prefix_and_its_labels_from_1(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "letters", [1, 2, 26, 10], [26], "test", "emnist-letters-")
    for path in list(folder.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    letters = load_idx(folder)
    assert letters.class_names == ("1", "2", "10", "26")  # by number, not by spelling
    assert [letters.class_names[label] for label in letters.labels] == ["1", "2", "26", "10", "26"]


def test_numbers_can_be_named(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "kana", [1, 0, 2], [2])
    kana = load_image_set("idx", folder, class_names=["o", "ki", "su"])
    assert [kana.class_names[label] for label in kana.labels] == ["ki", "o", "su", "su"]


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([0, 1], [2], "test has label 2, which train lacks"),
        ([0, 0], [0], "a single class (0)"),
        ([0, 1], [], "no images"),
    ],
)
def test_unusable_labels_are_refused(train: list[int], test: list[int], expected: str, tmp_path: Path) -> None:
    message = refused(load_image_set, "idx", write_idx(tmp_path / "idx", train, test))
    assert message.startswith("root") and expected in message


def test_a_folder_of_two_sets_and_none_are_refused(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "emnist", [0, 1], [1], "test", "emnist-digits-")
    write_idx(folder, [0, 1], [1], "test", "emnist-letters-")
    message = refused(load_idx, folder)
    assert "emnist-digits-train-images-idx3-ubyte and emnist-letters-train" in message and "one set" in message
    (tmp_path / "empty").mkdir()
    assert "holds neither train-images-idx3-ubyte" in refused(load_idx, tmp_path / "empty")
    assert "no such folder" in refused(load_idx, tmp_path / "absent")
    assert "root: idx needs a folder" in refused(load_image_set, "idx")
