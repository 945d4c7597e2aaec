import csv
import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import NO_BYTES
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


def test_quotas_are_met_class_by_class() -> None:
    sizes = [51, 7, 152, 2000]
    images = image_set([label for label, size in enumerate(sizes) for _ in range(size)])
    for split_seed in range(5):
        splits = draw_splits(images, 0.25, 0.2, split_seed)
        num_test, num_val = (np.bincount(images.labels[splits[split]]).tolist() for split in ("test", "val"))
        assert num_test == [10, 1, 30, 400]
        assert num_val == [10, 2, 30, 400]  # a quarter of the 41, 6, 122 and 1,600 that are not test


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


@given(
    sizes=st.lists(st.integers(3, 40), min_size=1, max_size=4),
    fractions=st.tuples(st.floats(0.01, 0.9), st.floats(0.01, 0.9)),
    split_seed=st.integers(0, 1000),
    data=st.data(),
)
def test_an_image_more_or_less_moves_at_most_one_other_across_each_boundary(
    sizes: list[int], fractions: tuple[float, float], split_seed: int, data: st.DataObject
) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    label = data.draw(st.integers(0, len(sizes) - 1))
    fewer, more = image_set(labels), image_set([*labels, label])
    before, after = (place_of(images, draw_splits(images, *fractions, split_seed)) for images in (fewer, more))
    moved = {digest: {place, after[digest]} for digest, place in before.items() if after[digest] != place}
    assert {labels[int(digest)] for digest in moved} <= {label}
    assert sum("test" in places for places in moved.values()) <= 1
    assert sum(sorted(places) == ["train", "val"] for places in moved.values()) <= 1
    # By way of val, one that test gives or takes may push another on: each boundary is crossed once.
    assert len(moved) <= 2


@given(
    units=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=9, max_size=60),
    is_group=st.booleans(),
    fractions=st.tuples(st.floats(0.05, 0.5), st.floats(0.05, 0.5)),
    split_seed=st.integers(0, 1000),
)
def test_copies_and_groups_stay_together_as_near_the_quotas_as_they_allow(
    units: list[list[int]], is_group: bool, fractions: tuple[float, float], split_seed: int
) -> None:
    # Three units of each class, so that there is a split; then units of several images and classes.
    units = [[place % 3] if place < 9 else labels for place, labels in enumerate(units)]
    labels = [label for unit in units for label in unit]
    unit_of = np.array([place for place, unit in enumerate(units) for _ in unit])
    images = image_set(labels, None if is_group else [f"unit {place}" for place in unit_of])
    if is_group:
        images = replace(images, groups=[f"unit {place}" for place in unit_of])
    splits = draw_splits(images, *fractions, split_seed)
    homes: dict[str, set[Any]] = {split: set(unit_of[splits[split]]) for split in SPLIT_NAMES}
    assert sum(map(len, homes.values())) == len(units)
    assert all(set(images.labels[splits[split]]) == {0, 1, 2} for split in SPLIT_NAMES)
    counts = np.array([np.bincount(unit, minlength=3) for unit in units])
    left = np.arange(len(units))
    for split, fraction in (("test", fractions[1]), ("val", fractions[0])):
        quotas = np.maximum(1, np.rint(fraction * counts[left].sum(0)))
        missing = quotas - counts[sorted(homes[split])].sum(0)
        left = np.array(sorted(set(left) - homes[split]))
        num_later = 2 if split == "test" else 1
        num_left = (counts[left] > 0).sum(0)
        for unit in counts[left]:
            if (num_left[unit > 0] > num_later).all():
                assert np.abs(missing - unit).sum() >= np.abs(missing).sum()


@given(
    sizes=st.lists(st.integers(1, 6), min_size=5, max_size=40),
    fraction=st.floats(0.05, 0.5),
    split_seed=st.integers(0, 1000),
)
def test_an_image_more_moves_few_where_units_have_several(sizes: list[int], fraction: float, split_seed: int) -> None:
    hashes = [f"unit {place}" for place, size in enumerate(sizes) for _ in range(size)]
    splits = []
    for images in (image_set([0] * len(hashes), hashes), image_set([0] * (len(hashes) + 1), [*hashes, "one more"])):
        splits.append({images.hashes[index] for index in draw_splits(images, 0.1, fraction, split_seed).test})
    moved = (splits[0] ^ splits[1]) - {"one more"}
    assert sum(hashes.count(digest) for digest in moved) <= 4 * max(sizes)


def test_images_that_are_not_there_are_no_copies_of_each_other() -> None:
    images = image_set([0] * 40, [f"image {index}" if index < 20 else NO_BYTES for index in range(40)])
    splits = draw_splits(images, 0.25, 0.25, 0)
    assert [len(splits[split]) for split in SPLIT_NAMES] == [22, 8, 10]


@pytest.mark.parametrize("has_groups", [False, True])
def test_the_first_scheme_draws_as_earlier_versions_did(has_groups: bool) -> None:
    hashes = [f"image {index // 2 % 70}" for index in range(200)]
    images = image_set([index % 7 // 3 for index in range(200)], hashes)
    if has_groups:
        images = replace(images, groups=[f"group {index // 2 % 70 % 23}" if index % 3 else "" for index in range(200)])
    splits = draw_splits(images, 0.2, 0.3, 5, scheme=1)
    drawn = hashlib.sha256(manifest(images, splits).encode()).hexdigest()
    assert drawn[:16] == ("ce2943e43e058500" if has_groups else "4dcb03b82647f791")


def test_a_split_is_repeated_from_its_manifest(tmp_path: Path) -> None:
    root = save_images(tmp_path / "pets", *(f"{label}/{number}.png" for number in range(30) for label in "ab"))
    earlier = ImageDataModule("image_folder", root, split_scheme=1)
    (root / "split.csv").write_text(earlier.manifest, encoding="utf-8")
    again = ImageDataModule("manifest", root / "split.csv")
    assert again.manifest == earlier.manifest != ImageDataModule("image_folder", root).manifest
    assert again.digests == earlier.digests


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
