import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.sources import load_image_set
from tests.bad_files import png_of_claimed_size
from tests.data.sources.test_idx import write_idx
from tests.data.test_datamodule import assert_same_batches, epochs_of
from tests.data.test_datasets import refused, save_images
from tests.runs import fit


def write_pets(root: Path, train: int = 6, test: int = 3) -> Path:
    """Oxford-IIIT Pet in its real layout: lists of name, class from 1, species and breed, and JPEGs beside them."""
    base, number = root / "oxford-iiit-pet", 0
    (base / "annotations").mkdir(parents=True)
    (base / "images").mkdir()
    for split, count in (("trainval", train), ("test", test)):
        lines = []
        for _ in range(count):
            label = number % 3
            name = f"{('Abyssinian', 'basset_hound', 'Birman')[label]}_{number}"
            Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(base / "images" / f"{name}.jpg", quality=95)
            lines.append(f"{name} {label + 1} 1 1")
            number += 1
        (base / "annotations" / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


def test_pets_have_their_names_and_splits_and_are_decoded_when_asked_for(tmp_path: Path) -> None:
    pets = load_image_set("torchvision/OxfordIIITPet", write_pets(tmp_path / "data"))
    assert (pets.name, pets.in_channels) == ("oxfordiiitpet", 3)
    assert pets.class_names == ("Abyssinian", "Basset Hound", "Birman")
    assert pets.labels.tolist() == [0, 1, 2] * 3
    assert {split: indices.tolist() for split, indices in pets.splits.items()} == {
        "train": [0, 1, 2, 3, 4, 5],
        "test": [6, 7, 8],
    }
    assert [int(pets.images[index][0, 0, 0]) for index in (7, 0, 3)] == [140, 0, 60]
    assert pets.hashes[7] == hashlib.sha256(np.full((8, 8, 3), 140, np.uint8).tobytes()).hexdigest()
    assert len(set(pets.paths)) == 9
    # Remembered until a file changes.
    assert load_image_set("torchvision/OxfordIIITPet", tmp_path / "data").digest == pets.digest
    image = next((tmp_path / "data").rglob("*_7.jpg"))
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(image)
    assert load_image_set("torchvision/OxfordIIITPet", tmp_path / "data").digest != pets.digest


def test_mnist_is_gray_and_split_by_train_or_not(tmp_path: Path) -> None:
    (tmp_path / "MNIST").mkdir()
    write_idx(tmp_path / "MNIST" / "raw", [*range(10), 3], [7, 7, 1])
    mnist = load_image_set("torchvision/MNIST", tmp_path)
    plain = load_image_set("idx", tmp_path / "MNIST" / "raw")
    assert mnist.in_channels == 1 and mnist.labels.tolist() == [*range(10), 3, 7, 7, 1]
    assert mnist.class_names[:2] == ("0 - zero", "1 - one")
    assert mnist.splits["train"].tolist() == list(range(11)) and mnist.splits["test"].tolist() == [11, 12, 13]
    np.testing.assert_array_equal(mnist.images[12], plain.images[12])
    assert mnist.hashes == plain.hashes
    assert load_image_set("torchvision/MNIST", tmp_path, in_channels=3).images[0].shape == (5, 4, 3)


def test_a_set_without_splits_has_them_drawn_and_workers_read_it(tmp_path: Path) -> None:
    names = [f"{name}/{number}.png" for name in ("Forest", "River") for number in range(15)]
    save_images(tmp_path / "eurosat" / "2750", *names)
    with_workers, without = (
        ImageDataModule("torchvision/EuroSAT", root=str(tmp_path), num_workers=n, image_size=4, batch_size=8)
        for n in (2, 0)
    )
    assert with_workers.class_names == ["Forest", "River"] and len(with_workers.splits.test) > 0
    for one, other in zip(
        epochs_of(with_workers.train_dataloader()), epochs_of(without.train_dataloader()), strict=True
    ):
        assert_same_batches(one, other)


def test_what_is_not_there_and_cannot_be_downloaded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy that is not there: no other machine is asked.
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("CIFAR10", "OxfordIIITPet", "MNIST"):
        message = refused(load_image_set, f"torchvision/{name}", tmp_path)
        assert f"root={tmp_path}: holds no torchvision/{name} and it cannot be downloaded (" in message
    assert "torchvision does not download it" in refused(load_image_set, "torchvision/ImageNet", tmp_path)


def test_damaged_cifar_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]:
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(b"cposix\nsystem\n(S'touch pwned'\ntR.")
    assert "holds no torchvision/CIFAR10" in refused(load_image_set, "torchvision/CIFAR10", tmp_path)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("name", ["CIFAR11", "", "FakeData", "VisionDataset", "utils", "EMNIST"])
def test_what_is_no_labelled_set_is_refused(name: str, tmp_path: Path) -> None:
    assert f"dataset=torchvision/{name}" in refused(load_image_set, f"torchvision/{name}", tmp_path)


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    assert "has no images there" in refused(load_image_set, "torchvision/OxfordIIITPet", write_pets(tmp_path, test=0))


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    root = write_pets(tmp_path / "data")
    next(root.rglob("*_4.jpg")).write_bytes(b"no image")
    message = refused(load_image_set, "torchvision/OxfordIIITPet", root)
    assert "OxfordIIITPet/train/000004 cannot be decoded" in message and "_4.jpg" in message
    assert "root: torchvision/MNIST needs the folder" in refused(load_image_set, "torchvision/MNIST")


def test_an_image_of_too_many_pixels_is_named(tmp_path: Path) -> None:
    root = write_pets(tmp_path / "data")
    next(root.rglob("*_4.jpg")).write_bytes(png_of_claimed_size(20_000, 20_000))
    message = refused(load_image_set, "torchvision/OxfordIIITPet", root)
    assert "OxfordIIITPet/train/000004 cannot be decoded (it has more pixels than max_pixels" in message


def test_a_run_says_once_that_it_goes_image_by_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--data.dataset=torchvision/OxfordIIITPet", "--data.in_channels=1", "--data.limit_train=null")
    assert fit(*options, f"--data.root={write_pets(tmp_path / 'data', train=9)}", "--track=false") == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "image by image" in line)
    assert line == "augmenting image by image: torchvision's sets give one image at a time"


def test_bad_images_are_not_skipped(tmp_path: Path) -> None:
    root = write_pets(tmp_path / "data")
    data = ImageDataModule("torchvision/OxfordIIITPet", str(root), on_bad_image="skip")
    assert "on_bad_image=skip: torchvision decodes" in refused(lambda: data.image_set)
