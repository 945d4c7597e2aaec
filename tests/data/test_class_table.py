"""The small table of classes and splits."""

import numpy as np

from lit_cnn.data.class_table import class_table, count_classes
from tests.data.test_splits import image_set


def test_each_class_has_a_line_and_its_images_in_each_split() -> None:
    images = image_set([0, 0, 0, 1, 1, 0])
    counts = count_classes(images, {"train": np.array([0, 1, 3]), "test": np.array([4])})
    assert counts == {"a": {"train": 2, "test": 0}, "b": {"train": 1, "test": 1}}
    assert class_table(counts) == "class  train  test\na          2     0\nb          1     1\nall        3     1"


def test_of_many_classes_the_smallest_have_one() -> None:
    counts = {f"class {label}\n": {"train": 1000 - label} for label in range(100)}
    header, *smallest, others, total = class_table(counts).splitlines()
    assert smallest == [f"class {label}\\n           {1000 - label}" for label in range(99, 94, -1)]
    assert [line.split() for line in (header, total)] == [["class", "train"], ["all", "95,050"]]
    assert others == "and 95 with more" and {len(line) for line in (header, *smallest, total)} == {24}
