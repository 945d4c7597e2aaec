import gzip
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.sources import (
    FASHION_MNIST_CLASSES,
    FASHION_MNIST_FOLDER,
    ImageSet,
    list_images,
    load_fashion_mnist,
    load_image_folder,
    load_image_set,
    read_idx,
    read_image,
)

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def refused(function: Callable[..., object], *arguments: object) -> str:
    """Returns the message, after seeing that it is one line."""
    with pytest.raises(UsageError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def gray(value: int, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.fromarray(np.full(size, value, np.uint8))


def save_images(root: Path, *names: str) -> Path:
    """Saves one small PNG per name; no two are alike."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        gray(number).save(root / name)
    return root


# --- digits ---


def test_digits() -> None:
    digits = load_image_set("digits")
    assert (digits.name, digits.in_channels, digits.splits) == ("digits", 1, {})
    assert digits.class_names == tuple("0123456789")
    assert len(digits.images) == len(digits.labels) == len(set(digits.paths)) == len(digits.hashes) == 1797
    assert digits.images[0].shape == (8, 8, 1) and digits.images[0].dtype == np.uint8
    assert digits.labels.dtype == np.int64 and np.unique(digits.labels).tolist() == list(range(10))

    assert min(image.min() for image in digits.images) == 0 and max(image.max() for image in digits.images) == 255


def test_gray_images_as_rgb_repeat_their_channel() -> None:
    one, three = load_image_set("digits"), load_image_set("digits", in_channels=3)
    assert three.in_channels == 3 and three.images[5].shape == (8, 8, 3)
    for channel in range(3):
        np.testing.assert_array_equal(three.images[5][..., channel], one.images[5][..., 0])
    assert three.digest == one.digest


def test_unusable_sources_are_refused(tmp_path: Path) -> None:
    assert "dataset=cifar: choose one of digits" in refused(load_image_set, "cifar")
    assert "root=here: digits" in refused(load_image_set, "digits", Path("here"))
    assert "root: image_folder needs a folder" in refused(load_image_set, "image_folder")
    assert f"root={tmp_path / 'no'}: no such folder" in refused(load_image_set, "image_folder", tmp_path / "no")


# --- IDX ---


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder: Path, changes: Mapping[str, np.ndarray] | None = None) -> Path:
    draw = np.random.default_rng(0)
    arrays = {
        IMAGES: draw.integers(0, 256, (6, 5, 4), np.uint8),
        LABELS: np.array([0, 1, 9, 3, 4, 5], np.uint8),
        TEST_IMAGES: draw.integers(0, 256, (3, 5, 4), np.uint8),
        TEST_LABELS: np.array([7, 8, 9], np.uint8),
    } | dict(changes or {})
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        (folder / name).write_bytes(idx(array))
    return folder


def test_idx_files_are_read_plain_and_packed(tmp_path: Path) -> None:
    plain = load_fashion_mnist(write_fashion(tmp_path / "plain"))
    assert plain.class_names == FASHION_MNIST_CLASSES and plain.in_channels == 1
    assert plain.labels.tolist() == [0, 1, 9, 3, 4, 5, 7, 8, 9]
    assert plain.splits["train"].tolist() == list(range(6)) and plain.splits["test"].tolist() == [6, 7, 8]
    expected = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    np.testing.assert_array_equal(np.stack(plain.images[:6])[..., 0], expected)
    packed = write_fashion(tmp_path / "packed")
    for path in list(packed.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert load_fashion_mnist(packed).digest == plain.digest


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (IMAGES, b"", "is not an IDX file"),
        (IMAGES, b"\x00\x00\x08\x01" + bytes(12), "is not an IDX file of 3-dimensional bytes"),
        (IMAGES, b"\x00\x00\x0d\x03" + bytes(12), "is not an IDX file"),
        (IMAGES, idx(np.zeros((6, 5, 4), np.uint8))[:-1], "holds 119 bytes of data but its header says (6, 5, 4)"),
        (IMAGES, idx(np.zeros((6, 5, 4), np.uint8)) + b"x", "holds 121 bytes"),
        (LABELS, idx(np.zeros(5, np.uint8)), "train has 6 images but 5 labels"),
        (LABELS, idx(np.array([0, 1, 2, 3, 10, 4], np.uint8)), "a label is 10, Fashion-MNIST has 0 to 9"),
    ],
)
def test_a_broken_idx_file_is_named(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    folder = write_fashion(tmp_path / "fashion")
    (folder / name).write_bytes(content)
    message = refused(load_fashion_mnist, folder)
    assert message.startswith("root") and str(folder) in message and expected in message


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    folder = write_fashion(tmp_path / "fashion")
    (folder / TEST_LABELS).unlink()
    assert f"{folder}: holds neither {TEST_LABELS} nor {TEST_LABELS}.gz" in refused(load_fashion_mnist, folder)


@pytest.mark.parametrize("damage", ["not gzip", "cut short", "changed byte", "empty"])
def test_a_broken_gz_file_is_named(tmp_path: Path, damage: str) -> None:
    packed = gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)))
    changed = bytearray(packed)
    changed[10] ^= 0xFF  # the first byte of the deflate stream
    contents = {"not gzip": b"hello" * 9, "cut short": packed[:-20], "changed byte": bytes(changed), "empty": b""}
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(contents[damage])
    assert str(path) in refused(read_idx, path, 3)


@pytest.mark.debian
@pytest.mark.skipif(not FASHION_MNIST_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist() -> None:
    fashion = load_image_set("fashion_mnist")
    assert len(fashion.splits["train"]) == 60_000 and len(fashion.splits["test"]) == 10_000
    assert fashion.images[0].shape == (28, 28, 1)
    assert np.bincount(fashion.labels).tolist() == [7000] * 10
    assert fashion.class_names[fashion.labels[0]] == "Ankle boot"


# --- folders ---


def test_a_folder_without_splits(tmp_path: Path) -> None:
    root = save_images(tmp_path / "pets", "dog/1.png", "cat/b/2.PNG", "cat/a.png")
    save_images(root, ".trash/x.png", "cat/.thumb.png", "cat/.thumbs/y.png")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "readme.png").write_bytes(b"a file beside the class folders")
    pets = load_image_folder(root)
    assert (pets.name, pets.in_channels, pets.splits) == ("pets", 3, {})
    assert pets.class_names == ("cat", "dog")
    assert list(pets.paths) == ["cat/a.png", "cat/b/2.PNG", "dog/1.png"]
    assert pets.labels.tolist() == [0, 0, 1]
    assert pets.images[2].shape == (4, 4, 3)
    assert load_image_folder(root, in_channels=1).images[2].shape == (4, 4, 1)


def test_a_folder_with_splits(tmp_path: Path) -> None:
    root = save_images(tmp_path / "pets", "train/a/1.png", "train/b/2.png", "valid/b/3.png", "testing/a/4.png")
    pets = load_image_folder(root)
    found = {split: [pets.paths[index] for index in indices] for split, indices in pets.splits.items()}
    assert found == {"train": ["train/a/1.png", "train/b/2.png"], "val": ["valid/b/3.png"], "test": ["testing/a/4.png"]}
    assert [pets.class_names[label] for label in pets.labels] == ["a", "b", "b", "a"]


@pytest.mark.parametrize(
    ("names", "folders", "expected"),
    [
        ([], ["."], "is empty; it needs one sub-folder"),
        (["loose.png"], [], "holds 1 image in no class folder, such as loose.png; it needs one sub-folder"),
        (["cat/1.png"], [], "a single class (cat)"),
        (["cat/1.png", ".git/2.png"], [], "a single class (cat)"),
        (["cat/1.png"], ["dog"], "dog holds no images"),
        (["train/cat/1.png"], ["train/dog"], "dog holds no images"),
        (["train/a/1.png", "train/b/2.png", "val/c/3.png"], [], "has c, a class that train lacks"),
        (["train/a/1.png", "train/b/2.png", "test/c/3.png"], [], "has c, a class that train lacks"),
        (["train/a/1.png", "train/b/2.png"], ["val/a", "val/b"], "val holds no images"),
    ],
)
def test_unusable_folders_are_refused(tmp_path: Path, names: list[str], folders: list[str], expected: str) -> None:
    root = save_images(tmp_path / "pets", *names)
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    message = refused(load_image_set, "image_folder", root)
    assert message.startswith("root") and expected in message


@pytest.mark.parametrize("names", [("Train", "VAL", "Test"), ("TRAINING", "Valid", "testing")])
def test_the_folders_of_splits_may_have_capitals(tmp_path: Path, names: tuple[str, ...]) -> None:
    files = [f"{folder}/{label}/{number}.png" for folder in names for label in "ab" for number in range(2)]
    pets = load_image_set("image_folder", save_images(tmp_path / "pets", *files))
    assert pets.class_names == ("a", "b") and {name: len(of) for name, of in pets.splits.items()} == {
        "train": 4,
        "val": 4,
        "test": 4,
    }


def test_the_splits_folder_of_two_spellings_is_refused(tmp_path: Path) -> None:
    root = save_images(tmp_path / "pets", *(f"{name}/{label}/1.png" for name in ("train", "Train") for label in "ab"))
    assert "Train/ and train/ both say train" in refused(load_image_set, "image_folder", root)


@pytest.mark.parametrize("names", [("val", "test"), ("Test", "cat", "dog")])
def test_splits_without_train_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = save_images(tmp_path / "pets", *(f"{name}/a/{number}.png" for name in names for number in range(3)))
    message = refused(load_image_set, "image_folder", root)
    assert f"has {names[0]}/ and no train/; put the other images into train/" in message


def test_a_folder_of_images_beside_train_is_a_finding(tmp_path: Path) -> None:
    files = [f"{folder}/{label}/{n}.png" for folder in ("train", "vall", "extra") for label in "ab" for n in range(2)]
    root = save_images(tmp_path / "pets", *files)
    (root / "notes").mkdir()
    (root / "notes" / "read.txt").write_text("no image")
    pets = load_image_set("image_folder", root)
    assert len(pets.labels) == 4
    (finding,) = pets.findings
    assert (finding.kind, finding.severity, finding.cases) == ("other_folder", "warning", (("extra",), ("vall",)))


def test_the_classes_of_a_folder_are_in_the_order_of_its_manifest(tmp_path: Path) -> None:
    root = save_images(tmp_path / "digits", *(f"{label}/{number}.png" for label in range(12) for number in range(4)))
    data = ImageDataModule("image_folder", str(root))
    assert data.image_set.class_names == tuple(map(str, range(12)))
    (root / "split.csv").write_text(data.manifest)
    again = load_image_set("manifest", root / "split.csv")
    assert again.class_names == data.image_set.class_names
    of_folder = dict(zip(data.image_set.paths, data.image_set.labels.tolist(), strict=True))
    assert dict(zip(again.paths, again.labels.tolist(), strict=True)) == of_folder


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not stop root")
@pytest.mark.parametrize("name", ["", "a", "a/deep"])
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    root = save_images(tmp_path / "pets", "a/1.png", "a/deep/2.png", "b/3.png")
    (root / name).chmod(0)
    message = refused(load_image_set, "image_folder", root)
    (root / name).chmod(0o700)
    assert message.startswith("root") and f"folder {root / name} cannot be read" in message


def test_images_to_predict_are_listed(tmp_path: Path) -> None:
    root = save_images(tmp_path / "new", "b.jpg", "a/c.png", ".hidden.png")
    assert [path.relative_to(root).as_posix() for path in list_images(root)] == ["a/c.png", "b.jpg"]
    assert refused(list_images, tmp_path / "absent").startswith("folder=")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused(list_images, tmp_path / "empty")


# --- decoding ---


def test_exif_orientation_turns_the_image_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held a quarter turn; show it turned clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png", 3), np.rot90(pixels, -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.array([[0, 257, 32_896, 65_535]], np.uint16)).save(tmp_path / f"deep.{suffix}")
    assert read_image(tmp_path / f"deep.{suffix}", 1)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert read_image(tmp_path / f"deep.{suffix}", 3)[0].tolist() == [[value] * 3 for value in (0, 1, 128, 255)]


def test_palette_and_transparency_become_rgb(tmp_path: Path) -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]], np.uint8)
    image = Image.fromarray(colours)
    palette = image.quantize(4)
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "see_through.png", transparency=bytes((255, 0, 255, 255)))
    palette.save(tmp_path / "palette.gif")
    image.convert("RGBA").save(tmp_path / "rgba.png")
    for path in sorted(tmp_path.glob("*.*")):
        np.testing.assert_array_equal(read_image(path, 3), colours, err_msg=path.name)
        assert read_image(path, 1).shape == (2, 2, 1)
    assert len(list(tmp_path.glob("*.*"))) >= 4


def test_one_bit_images_use_the_whole_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png", 1).ravel().tolist() == [0, 255]


# Pillow says this on its way to the error.
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "gif", "ppm"])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    Image.fromarray(pixels).save(whole)
    assert read_image(whole, 3).shape == (64, 64, 3)
    content = whole.read_bytes()
    for length in (0, 10, len(content) // 2):
        cut.write_bytes(content[:length])
        assert str(cut) in refused(read_image, cut, 3)


def test_a_text_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    assert "text.jpg: this image cannot be decoded" in refused(read_image, tmp_path / "text.jpg", 3)
    assert "absent.jpg" in refused(read_image, tmp_path / "absent.jpg", 3)


# --- digest ---


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return save_images(tmp_path / "pets", "cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png")


def test_the_digest_depends_on_bytes_names_and_classes(pets: Path) -> None:
    digests = [load_image_folder(pets).digest]
    with (pets / "cat" / "1.png").open("ab") as file:
        file.write(b"x")
    digests.append(load_image_folder(pets).digest)
    (pets / "cat" / "1.png").rename(pets / "cat" / "0.png")
    digests.append(load_image_folder(pets).digest)
    (pets / "cat" / "2.png").rename(pets / "dog" / "2.png")
    digests.append(load_image_folder(pets).digest)
    (pets / "dog").rename(pets / "wolf")
    digests.append(load_image_folder(pets).digest)
    # Where the class is no part of the path.
    digits = load_image_set("digits")
    digests += [digits.digest, replace(digits, labels=(digits.labels + 1) % 10).digest]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)


def test_the_digest_does_not_depend_on_times_place_or_order(pets: Path, tmp_path: Path) -> None:
    before = load_image_folder(pets).digest
    for path in pets.rglob("*.png"):
        os.utime(path, (1, 1))
    assert load_image_folder(pets).digest == before
    assert load_image_folder(pets.rename(tmp_path / "moved")).digest == before
    moved: ImageSet = load_image_folder(tmp_path / "moved")
    assert moved.digest_of(np.array([3, 1, 0, 2])) == before
    assert moved.digest_of(np.array([0, 1, 2])) != before
