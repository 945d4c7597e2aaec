"""Names as people and programs write them: two that look alike are told of, words for a missing value are no class."""

from pathlib import Path

import pytest

from lit_cnn.core.errors import UsageError
from lit_cnn.data.audit import Report, check_data
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.labels import mean_none, similar_classes
from tests.data.sources.test_manifest import write_csv
from tests.data.test_datasets import save_images


@pytest.mark.parametrize(
    ("names", "how", "shown"),
    [
        (["Cat", "cat", "dog"], "upper and lower case", ("Cat", "cat")),
        (["STRASSE", "straße"], "upper and lower case", ("STRASSE", "straße")),
        (["cat", "cat ", "dog"], "blanks", ("cat", "'cat '")),
        (["sea  lion", "sea lion"], "blanks", ("'sea  lion'", "sea lion")),
        (["cat", "cat\u00a0"], "blanks", ("cat", r"cat\xa0")),
        (["caf\u00e9", "cafe\u0301", "bar"], "how letters are encoded (NFC, NFD)", ("café", r"cafe\u0301")),
        (["cat", "cat\u200b"], "characters that do not show", ("cat", r"cat\u200b")),
        (["\ufeffcat", "cat"], "characters that do not show", (r"\ufeffcat", "cat")),
        (["sea_lion", "Sea-Lion"], "blanks, hyphens and underscores", ("sea_lion", "Sea-Lion")),
        (["2", "2.0", "3"], "how a number is written", ("2", "2.0")),
        (["1", "01"], "how a number is written", ("1", "01")),
    ],
)
def test_names_that_look_alike_are_told_of_in_pairs(names: list[str], how: str, shown: tuple[str, ...]) -> None:
    (finding,) = similar_classes(names)
    assert finding.severity == "warning" and f"differ only in {how};" in finding.message
    assert finding.cases == (shown,)


def test_other_names_are_other_classes() -> None:
    grades = ["C", "C-", "C+", "-1", "1", "10", "1.5", "type 1", "type 11", "a_b", "ab", "Na", "N", "e", "é", "_", "-"]
    assert list(similar_classes(grades)) == []


@pytest.mark.parametrize(
    ("names", "none"),
    [
        (["cat", "nan", "NaN ", "None", "none", "null", "NULL", "N/A", "NA", "<NA>"], 9),
        (["Na", "K", "nano", "banana", "neither", "no", "unknown", "-"], 0),
        (["-1", "0", "1"], 1),
        (["-1.0", "0.0", "7.0"], 1),
        (["nan", "-1", "0", "3"], 2),
        (["-1", "1"], 0),
        (["-2", "-1", "0"], 0),
        (["-1", "cat"], 0),
        ([], 0),
    ],
)
def test_words_that_mean_none(names: list[str], none: int) -> None:
    assert len(mean_none(names)) == none


def manifest(folder: Path, labels: list[str], groups: list[str] | None = None) -> Path:
    save_images(folder, *(f"{number}.png" for number in range(60)))
    rows = [f"{number}.png,{labels[number % len(labels)]}" for number in range(60)]
    if groups is not None:
        rows = [f"{row},{groups[number % len(groups)]}" for number, row in enumerate(rows)]
    return write_csv(folder / "pets.csv", "path,label" + ",group" * (groups is not None), *rows)


def kinds(report: Report) -> list[tuple[str, str]]:
    return [(finding.severity, finding.kind) for finding in report.findings if finding.kind != "tiny"]


def test_a_label_that_means_none_is_refused_unless_it_is_named(tmp_path: Path) -> None:
    file = manifest(tmp_path, ["cat", "dog", "nan"])
    data = ImageDataModule("manifest", file)
    assert ("error", "label_means_none") in kinds(check_data(data, "quick"))
    with pytest.raises(
        UsageError, match=r"20 images of the class nan, which means no label; .* class_names"
    ) as refused:
        _ = data.image_set
    assert "\n" not in str(refused.value)
    named = ImageDataModule("manifest", file, class_names=["nan", "cat", "dog"])
    assert named.class_names == ["nan", "cat", "dog"]
    assert kinds(check_data(named, "quick")) == [("warning", "few_test_images")]
    # What an earlier version trained on is tested on the same.
    assert ImageDataModule("manifest", file, split_scheme=1).class_names == ["cat", "dog", "nan"]


def test_folders_that_look_alike_are_a_warning_unless_they_are_named(tmp_path: Path) -> None:
    root = save_images(tmp_path / "pets", *(f"{name}/{n}.png" for name in ("Cat", "cat", "dog") for n in range(30)))
    assert kinds(check_data(root, "quick")) == [("warning", "similar_classes")]
    named = ImageDataModule("image_folder", root, class_names=["dog", "cat", "Cat"])
    assert kinds(check_data(named, "quick")) == []


def test_a_group_that_means_none_binds_nothing(tmp_path: Path) -> None:
    file = manifest(tmp_path, ["cat", "dog"], ["nan", "nan", "nan", "nan", "patient 1", "patient 1"])
    data = ImageDataModule("manifest", file)
    (finding,) = [each for each in check_data(data, "quick").findings if each.kind == "group_means_none"]
    assert finding.severity == "warning" and finding.cases == (("nan",),) and "40 images" in finding.message
    assert data.image_set.groups is not None and set(data.image_set.groups) == {"", "patient 1"}
    assert [len(data.splits[split]) for split in ("test", "val")] == [12, 4]
    assert set(ImageDataModule("manifest", file, split_scheme=1).load().groups or ()) == {"nan", "patient 1"}
