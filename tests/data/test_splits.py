import csv
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.sources import ArrayImages, ImageSet, load_image_set
from lit_cnn.data.splits import SPLIT_NAMES, Splits, draw_splits, manifest, manifest_digest
from tests.data.test_datasets import save_images


def image_set(labels: list[int], hashes: list[str] | None = None, **prescribed: list[int]) -> ImageSet:
    """Images of one pixel; the split looks only at labels, hashes and what is prescribed."""
    names = [f"{index:04d}" for index in range(len(labels))]
    return ImageSet(
        name="made",
        source="made",
        images=ArrayImages(np.zeros((len(labels), 1, 1, 1), np.uint8)),
        labels=np.array(labels, np.int64),
        class_names=tuple("abcdefghij"[: max(labels) + 1]),
        paths=names,
        hashes=hashes or names,
        in_channels=1,
        splits={split: np.array(indices) for split, indices in prescribed.items()},
    )


def place_of(images: ImageSet, splits: Splits) -> dict[str, str]:
    return {images.hashes[index]: split for split in SPLIT_NAMES for index in splits[split]}


def test_every_image_is_in_exactly_one_split() -> None:
    digits = load_image_set("digits")
    splits = draw_splits(digits, 0.1, 0.2, split_seed=0)
    everyone = np.concatenate([splits[split] for split in SPLIT_NAMES])
    np.testing.assert_array_equal(np.sort(everyone), np.arange(1797))
    assert (np.diff(splits.val) > 0).all() and (np.diff(splits.test) > 0).all()


def test_shares_are_met_on_average_and_class_by_class() -> None:
    images = image_set([label for label in range(4) for _ in range(2000)])
    splits = draw_splits(images, 0.25, 0.2, split_seed=0)
    for label in range(4):
        num_test, num_val = (int((images.labels[splits[split]] == label).sum()) for split in ("test", "val"))
        # Five standard deviations of a binomial draw; a quarter of the 1,600 that are not test go to val.
        assert abs(num_test - 400) < 5 * 18
        assert abs(num_val - 400) < 5 * 18


def test_the_split_seed_and_nothing_else_draws_val_and_test() -> None:
    first = ImageDataModule(seed=0)
    same = ImageDataModule(seed=1, limit_train=300, batch_size=7, image_size=8, in_channels=3, num_workers=0)
    other = ImageDataModule(seed=0, split_seed=1)
    for split in ("val", "test"):
        assert first.digests[split] == same.digests[split] != other.digests[split]
    assert first.digests["data"] == same.digests["data"] == other.digests["data"]


def test_the_split_follows_the_training_seed_where_it_is_asked_to() -> None:
    first, other = (ImageDataModule(seed=seed, split_seed="seed") for seed in (0, 1))
    for split in ("val", "test"):
        assert first.digests[split] != other.digests[split]
    assert other.digests == ImageDataModule(seed=5, split_seed=1).digests


def test_two_data_modules_write_the_same_manifest() -> None:
    first, second = ImageDataModule(seed=0), ImageDataModule(seed=5)
    assert first.manifest == second.manifest
    assert first.digests["split"] == hashlib.sha256(first.manifest.encode()).hexdigest()
    assert ImageDataModule(split_seed=1).manifest != first.manifest


def test_the_manifest_lists_every_image_sorted_by_path() -> None:
    images = image_set([0, 1] * 20)
    splits = draw_splits(images, 0.1, 0.2, split_seed=0)
    header, *rows = csv.reader(io.StringIO(manifest(images, splits)))
    assert header == ["path", "class", "split"]
    assert [row[0] for row in rows] == list(images.paths)
    assert [row[1] for row in rows] == ["a", "b"] * 20
    assert {path: split for path, _, split in rows} == place_of(images, splits)
    assert manifest_digest("a") != manifest_digest("b")


def test_the_first_50_are_among_the_first_500_and_stratified() -> None:
    digits = load_image_set("digits")
    full = draw_splits(digits, 0.1, 0.2, 0)
    parts = {limit: draw_splits(digits, 0.1, 0.2, 0, limit) for limit in (10, 50, 500)}
    for limit, part in parts.items():
        np.testing.assert_array_equal(part.train, full.train[:limit])
        np.testing.assert_array_equal(part.val, full.val)
        np.testing.assert_array_equal(part.test, full.test)
        share = np.bincount(digits.labels[full.train]) * (limit / len(full.train))
        assert np.bincount(digits.labels[part.train], minlength=10) == pytest.approx(share, abs=1)


def test_a_part_keeps_unequal_proportions() -> None:
    images = image_set([0] * 900 + [1] * 90 + [2] * 10)
    train = draw_splits(images, 0.1, 0.1, 0).train
    counts = np.bincount(images.labels[train[: len(train) // 2]], minlength=3)
    assert counts == pytest.approx(np.bincount(images.labels[train]) / 2, abs=1)


def test_more_training_images_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match=r"limit_train=41: there are \d+ training images; give fewer$"):
        draw_splits(image_set([0, 1] * 20), 0.1, 0.2, 0, limit_train=41)


def test_images_added_later_move_no_other() -> None:
    for num_images in range(40, 240, 2):
        before, after = image_set([0, 1] * (num_images // 2)), image_set([0, 1] * (num_images // 2 + 1))
        places = place_of(after, draw_splits(after, 0.1, 0.2, 0))
        assert place_of(before, draw_splits(before, 0.1, 0.2, 0)).items() <= places.items()


def test_images_added_to_a_folder_move_no_other(tmp_path: Path) -> None:
    names = [f"{label}/{number}.png" for number in range(100) for label in "ab"]
    root = save_images(tmp_path / "pets", *names[:160])
    before = load_image_set("image_folder", root)
    save_images(root, *names)  # the first 160 the same again
    after = load_image_set("image_folder", root)
    assert len(after.paths) == 200
    places = place_of(after, draw_splits(after, 0.1, 0.2, 0))
    assert place_of(before, draw_splits(before, 0.1, 0.2, 0)).items() <= places.items()


def test_an_image_keeps_its_split_under_another_name_and_place() -> None:
    hashes = [f"image {index}" for index in range(200)]
    one = image_set([0, 1] * 100, hashes)
    other = image_set([0, 1] * 100, hashes[-20:] + hashes[:-20])
    assert place_of(one, draw_splits(one, 0.1, 0.2, 3)) == place_of(other, draw_splits(other, 0.1, 0.2, 3))


def test_exact_copies_share_a_split() -> None:
    images = image_set([0, 1] * 300, [f"image {index // 2 % 100}, class {index % 2}" for index in range(600)])
    for split_seed in range(5):
        splits = draw_splits(images, 0.2, 0.3, split_seed)
        homes: dict[str, set[str]] = {}
        for split in SPLIT_NAMES:
            for index in splits[split]:
                homes.setdefault(images.hashes[index], set()).add(split)
        assert len(homes) == 200 and all(len(home) == 1 for home in homes.values())
        assert {split for home in homes.values() for split in home} == set(SPLIT_NAMES)


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_three_images_of_a_class_are_enough(fraction: float) -> None:
    for split_seed in range(20):
        images = image_set([0, 1] * 3)
        splits = draw_splits(images, fraction, fraction, split_seed)
        assert all(images.labels[splits[split]].tolist() in ([0, 1], [1, 0]) for split in SPLIT_NAMES)


def test_a_class_of_two_is_refused() -> None:
    with pytest.raises(UsageError, match=r"root: class b has 2 images to share .* add images, or leave") as caught:
        draw_splits(image_set([0, 0, 0, 0, 1, 1]), 0.1, 0.2, 0)
    assert "\n" not in str(caught.value)


def test_prescribed_splits_are_kept() -> None:
    everything = image_set([0, 1] * 10, train=list(range(8)), val=[15, 8, 9], test=[17, 10, 11])
    splits = draw_splits(everything, 0.5, 0.5, 0)
    assert sorted(splits.train) == list(range(8))
    assert splits.val.tolist() == [8, 9, 15] and splits.test.tolist() == [10, 11, 17]
    assert sorted(draw_splits(everything, 0.5, 0.5, 9).train) == list(range(8))


def test_what_is_not_prescribed_is_drawn_from_train() -> None:
    splits = draw_splits(image_set([0, 1] * 50, train=list(range(60)), test=list(range(60, 100))), 0.2, 0.9, 0)
    assert splits.test.tolist() == list(range(60, 100))
    assert sorted([*splits.train, *splits.val]) == list(range(60))
    assert 2 <= len(splits.val) <= 30
