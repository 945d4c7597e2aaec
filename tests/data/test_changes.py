"""What has changed since a split was kept, in words."""

from dataclasses import replace

import pytest

from lit_cnn.data.changes import changes
from lit_cnn.data.image_set import ImageSet
from lit_cnn.data.splits import draw_splits, manifest
from tests.data.test_splits import image_set


def named(*paths: str) -> ImageSet:
    """Images of the classes that their paths begin with."""
    made = image_set(["ab".index(path[0]) for path in paths])
    return replace(made, paths=list(paths), hashes=[f"image {path[-1]}" for path in paths])


BEFORE = named(*["a/1", "a/2", "a/3", "a/4", "b/5", "b/6", "b/7", "b/8"])


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ("a/1 a/2 a/3 a/4 b/5 b/6 b/7 b/8", ""),
        ("a/1 a/2 a/3 a/4 a/9 b/5 b/6 b/7 b/8", "1 image added (a/9)"),
        ("a/1 a/2 a/3 b/5 b/6 b/7", "2 images removed (a/4 (and 1 more))"),
        ("a/1 a/2 a/3 a/x4 b/5 b/6 b/7 b/8", "1 image renamed (a/4 is a/x4)"),
        ("a/1 a/2 a/3 a/x4 b/5 b/6 b/7 b/x8", "2 images renamed (a/4 is a/x4 (and 1 more))"),
        ("a/1 a/2 a/3 a/9 b/5 b/6 b/7 b/8", "1 image added (a/9), 1 image removed (a/4)"),
    ],
)
def test_what_has_changed_is_said(now: str, told: str) -> None:
    kept = manifest(BEFORE, draw_splits(BEFORE, 0.2, 0.2, 0))
    assert changes(named(*now.split()), kept, BEFORE.digest, is_whole=True) == told


def test_other_bytes_and_other_classes() -> None:
    kept = manifest(BEFORE, draw_splits(BEFORE, 0.2, 0.2, 0))
    other = replace(BEFORE, hashes=["other", *BEFORE.hashes[1:]])
    assert changes(other, kept, BEFORE.digest, is_whole=True) == "the bytes of some changed"
    moved = replace(BEFORE, labels=1 - BEFORE.labels)
    assert changes(moved, kept, BEFORE.digest, is_whole=True) == "8 images put into another class (a/1 (and 7 more))"


def test_a_part_says_nothing_of_what_was_added() -> None:
    kept = manifest(BEFORE, draw_splits(BEFORE, 0.2, 0.2, 0, limit_train=2))
    more = named(*["a/1", "a/2", "a/3", "a/4", "a/9", "b/5", "b/6", "b/7", "b/8"])
    assert changes(more, kept, BEFORE.digest, is_whole=False) == ""
    (gone,) = [path for path in ("a/1", "a/2", "a/3", "a/4") if f"{path},a,test" in kept]
    left = named(*(path for path in BEFORE.paths if path != gone))
    assert changes(left, kept, BEFORE.digest, is_whole=False) == f"1 image removed ({gone})"
