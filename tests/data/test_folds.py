from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.folds import Fold
from lit_cnn.data.sources import ImageSet
from lit_cnn.data.splits import _draw, draw_splits
from tests.data.test_splits import image_set


def fold_of_each(images: ImageSet, num_folds: int, fold_seed: int = 0, split_seed: int = 0) -> dict[str, int]:
    """Hash -> fold of every image that is not test; each fold is drawn by itself, as a run does."""
    found: dict[str, int] = {}
    for number in range(num_folds):
        splits = draw_splits(images, 0.1, 0.2, split_seed, fold=Fold(number, num_folds, fold_seed))
        found |= {images.hashes[index]: number for index in splits.val}
        parts = [splits.train, splits.val, splits.test]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(images.labels)))
        np.testing.assert_array_equal(splits.val, splits.folds[number])
        assert not np.isin(splits.train, splits.val).any()
    return found


def test_test_is_as_without_folds_and_every_other_image_is_val_once() -> None:
    without = ImageDataModule().splits
    seen = []
    for fold in range(5):
        data = ImageDataModule(num_folds=5, fold=fold, fold_seed=7)
        np.testing.assert_array_equal(data.splits.test, without.test)
        assert np.bincount(data.image_set.labels[data.splits.val], minlength=10).min() > 0
        # Train comes in an order of which every beginning has the classes in their proportions.
        first = data.image_set.labels[data.splits.train[:100]]
        assert np.bincount(first, minlength=10) == pytest.approx(np.full(10, 10), abs=2)
        seen.append(data.splits.val)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.sort(np.concatenate([without.train, without.val])))
    first, same, other = (ImageDataModule(num_folds=5, fold=0, fold_seed=seed) for seed in (None, 0, 7))
    assert first.digests == same.digests
    assert first.digests["val"] != other.digests["val"] and first.digests["test"] == other.digests["test"]
    part = ImageDataModule(num_folds=5, fold=4, fold_seed=7, limit_train=100).splits
    np.testing.assert_array_equal(part.train, data.splits.train[:100])
    np.testing.assert_array_equal(part.val, data.splits.val)


@given(
    st.lists(st.integers(5, 60), min_size=1, max_size=4), st.integers(2, 5), st.integers(0, 9), st.integers(0, 10**6)
)
def test_an_image_more_moves_only_what_fills_a_fold_without_its_class(
    sizes: list[int], num_folds: int, fold_seed: int, new: int
) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size + num_folds)]
    names = [f"{place:04d}" for place in range(len(labels))]
    without, both = image_set(labels, names), image_set([*labels, labels[new % len(labels)]], [*names, f"new {new}"])
    # The test is prescribed, so that the draw of test, which moves images too, has no part in it.
    before, after = (
        fold_of_each(replace(each, splits=_no_test(each)), num_folds, fold_seed) for each in (without, both)
    )
    for name, place in (("before", before), ("after", after)):
        label_of = dict(zip(both.hashes, both.labels.tolist(), strict=True))
        held = {(label_of[image], fold) for image, fold in place.items()}
        assert len(held) == len(sizes) * num_folds, name  # each fold has each class
    moved = [image for image in before if before[image] != after[image]]
    label = labels[new % len(labels)]
    assert all(labels[int(image)] == label for image in moved)
    assert len(moved) <= _num_empty(without, label, num_folds, fold_seed) + _num_empty(
        both, label, num_folds, fold_seed
    )


def _no_test(images: ImageSet) -> dict[str, np.ndarray]:
    return {"train": np.arange(len(images.labels)), "test": np.array([], np.int64)}


def _num_empty(images: ImageSet, label: int, num_folds: int, fold_seed: int) -> int:
    """How many folds have no image of a class in the range of their draws: what any image's fold would be alone."""
    of_class = [images.hashes[int(index)] for index in np.flatnonzero(images.labels == label)]
    draws = _draw(of_class, "fold", fold_seed)
    return num_folds - len({int(draw) * num_folds >> 64 for draw in draws})


def test_large_classes_stay_in_their_ranges() -> None:
    labels = [0] * 400 + [1] * 300
    few, many = (image_set(labels[start:], [f"{place:04d}" for place in range(start, 700)]) for start in (250, 0))
    few, many = (replace(each, splits=_no_test(each)) for each in (few, many))
    before, after = fold_of_each(few, 5), fold_of_each(many, 5)
    assert {image: after[image] for image in before} == before
    sizes = np.bincount(list(after.values()))
    assert sizes.min() > 100 and sizes.max() < 180
    assert fold_of_each(many, 5, fold_seed=1) != after


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=40, max_size=90),
    st.integers(2, 4),
    st.integers(0, 3),
)
def test_copies_and_groups_are_in_one_fold(drawn: list[tuple[int, int]], num_folds: int, fold_seed: int) -> None:
    labels = [label for label, _ in drawn]
    images = replace(image_set([*labels, 2]), groups=[*(f"{group}" for _, group in drawn), "0"])
    images = replace(images, hashes=[*images.hashes[:-1], images.hashes[0]])  # a copy, in another group perhaps
    try:
        fold_of: dict[int, int] = {}
        for number in range(num_folds):
            splits = draw_splits(images, 0.1, 0.2, 0, fold=Fold(number, num_folds, fold_seed))
            fold_of |= dict.fromkeys(splits.val.tolist(), number)
    except UsageError as error:
        assert "group" in str(error)
        return
    group_of = [*(f"{group}" for _, group in drawn), "0"]
    groups: dict[str, set[int]] = {group_of[index]: set() for index in fold_of}
    for index, fold in fold_of.items():
        groups[group_of[index]].add(fold)
        groups[group_of[index]].add(fold_of.get(0, fold) if images.hashes[index] == images.hashes[0] else fold)
    assert all(len(folds) == 1 for folds in groups.values())
    for number in range(num_folds):
        held = {labels[index] if index < len(labels) else 2 for index, fold in fold_of.items() if fold == number}
        assert held == {labels[index] if index < len(labels) else 2 for index in fold_of}


def test_a_val_that_the_source_prescribes_joins_the_folds_and_its_test_stays() -> None:
    images = image_set([0, 1] * 40, train=list(range(50)), val=list(range(50, 70)), test=list(range(70, 80)))
    fold_of = fold_of_each(images, 4)
    assert sorted(fold_of) == [f"{index:04d}" for index in range(70)]
    drawn = image_set([0, 1] * 40, train=list(range(50)), val=list(range(50, 80)))
    splits = draw_splits(drawn, 0.1, 0.2, 0, fold=Fold(1, 4, 0))
    np.testing.assert_array_equal(splits.test, draw_splits(drawn, 0.1, 0.2, 0).test)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (image_set([0] * 20 + [1] * 4), "class b has 3 images beside the test images: too few; give at most 3"),
        (image_set([0] * 20 + [1] * 5, [*map(str, range(20)), *"aabbc"]), r"has 4 images \(2 without copies\)"),
        (replace(image_set([0, 1] * 20), groups=["a", "b", "c", "d"] * 10), "class a is in"),
    ],
)
def test_a_class_in_too_few_images_is_told(images: ImageSet, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        draw_splits(images, 0.1, 0.2, 0, fold=Fold(0, 4, 0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_folds": 1, "fold": 0}, "num_folds=1: give a whole number of at least 2"),
        ({"num_folds": 5}, "num_folds=5: give `?fold`? too: 0 to 4"),
        ({"num_folds": 5, "fold": 5}, "fold=5: give 0 to 4"),
        ({"fold": 1}, "fold=1: of how many"),
        ({"fold_seed": 1}, "fold_seed=1"),
        ({"num_folds": 2, "fold": 0, "split_seed": "seed"}, "split_seed=seed: each seed would have another test"),
    ],
)
def test_options_of_folds_that_mean_nothing_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ImageDataModule(**options)
