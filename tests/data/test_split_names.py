"""What names say of splits, and that no folder whose name says a split becomes a class without a word."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_cnn.core.errors import UsageError
from lit_cnn.data.sources import load_image_folder
from lit_cnn.data.split_names import SPLIT_FOLDERS, read_split_name, split_of_name, splits_among_words

SAID = {
    "train": "train TRAIN training trn training_set train2017 data_train Train_images TrainImages trainset traindata "
    "imgtrain x_train train. train-01 Training-Data images.train",
    "val": "val Valid validation val2014 valid_v2 dev ValidationSet valdata",
    "test": "test testing tst test1 test-images TestSet X_test",
    "": "cat test_tube training_shoe bullet-train trains tests tester contest latest trainer validity seg_train eval "
    "evaluation trainval train_val train_final trainA 2017 _ détrain",
}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in SAID.items() for name in names.split()])
def test_a_name_says_a_split_or_does_not(split: str, name: str) -> None:
    assert split_of_name(name) == split


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("imagenet1k-train-0000", ("train",)),
        ("imagenet1k-validation-00", ("val",)),
        ("train000", ("train",)),
        ("a-eval-0", ("val or test",)),
        ("train-val-0", ("train", "val")),
        ("shard-000", ()),
    ],
)
def test_a_shard_says_its_split_among_other_words(name: str, splits: tuple[str, ...]) -> None:
    assert splits_among_words(name) == splits


around = st.text(st.sampled_from("-_. 09") | st.sampled_from(list("aZé\u200b\n")), max_size=3)
words = st.sampled_from([word for names in SPLIT_FOLDERS.values() for word in names] + ["eval", "cat", "tube", "set"])
names = (
    st.tuples(around, words, around, words | st.just(""), around)
    .map("".join)
    .map(lambda name: name.title() if len(name) % 3 == 0 else name)
    .filter(lambda name: name not in ("", ".", ".."))
)


@example(first="train", second="train0é", third=None, is_deep=False)
@example(first="train", second="car", third="test_tube", is_deep=False)
@given(first=names, second=names, third=names | st.none(), is_deep=st.booleans())
@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_folder_that_says_a_split_becomes_a_class_without_a_word(
    first: str, second: str, third: str | None, is_deep: bool, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    for number, name in enumerate(filter(None, (first, second, third))):
        for place, label in enumerate(("cat", "dog") if is_deep else ("",)):
            (root / name / label).mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 10 * number + place).save(root / name / label / "1.png")
    try:
        found = load_image_folder(root)
    except UsageError as error:
        assert str(error)
        return
    told = {name for finding in found.findings for case in finding.cases for name in case}
    for name in found.class_names:
        assert name in ("cat", "dog") or not read_split_name(name).splits or name in told
    if is_deep and not found.splits:
        assert {"same_folders", "class_like_split"}.intersection(finding.kind for finding in found.findings)
