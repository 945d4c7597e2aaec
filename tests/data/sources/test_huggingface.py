import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from lit_cnn.core.file_hashes import default_cache_file
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.inspection import without_bad_images
from lit_cnn.data.sources import load_hf_disk, load_image_set
from tests.data.sources.test_manifest import png
from tests.data.test_datamodule import assert_same_batches, epochs_of
from tests.data.test_datasets import refused

NAMES = ["dog", "cat", "emu"]


@pytest.fixture(autouse=True)
def no_progress_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def part(values: list[int], names: list[str] | None = NAMES, **more: Any) -> datasets.Dataset:
    """Images of one gray level each; the label is the level modulo 3."""
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=names) if names else datasets.Value("int64"),
    }
    columns = {
        "image": [{"bytes": png(value), "path": None} for value in values],
        "label": [value % 3 for value in values],
    }
    for name, (feature, content) in more.items():
        features[name], columns[name] = feature, content
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_a_saved_dataset_is_read_lazily_with_its_classes(tmp_path: Path) -> None:
    part(list(range(9))).save_to_disk(tmp_path / "pets", num_shards=2)
    pets = load_image_set("hf_disk", tmp_path / "pets")
    assert (pets.name, pets.in_channels, pets.splits) == ("pets", 3, {})
    assert pets.class_names == ("dog", "cat", "emu") and pets.labels.tolist() == [0, 1, 2] * 3
    assert pets.hashes == [hashlib.sha256(png(value)).hexdigest() for value in range(9)]
    for index in (8, 0, 5):
        np.testing.assert_array_equal(pets.images[index], np.full((4, 4, 3), index, np.uint8))
    assert load_image_set("hf_disk", tmp_path / "pets").digest == pets.digest  # from what is remembered


def test_a_saved_dict_prescribes_its_splits(tmp_path: Path) -> None:
    parts = {"test": part([20, 21]), "train": part(list(range(6))), "validation": part([30, 31, 32])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "pets")
    pets = load_image_set("hf_disk", tmp_path / "pets", class_names=["cat", "dog", "emu"])
    levels = {split: [int(pets.images[i][0, 0, 0]) for i in indices] for split, indices in pets.splits.items()}
    assert levels == {"train": [0, 1, 2, 3, 4, 5], "val": [30, 31, 32], "test": [20, 21]}
    assert [pets.class_names[label] for label in pets.labels[pets.splits["test"]]] == ["emu", "dog"]
    assert len(set(pets.paths)) == 11


def test_worker_processes_read_it(tmp_path: Path) -> None:
    part(list(range(60))).save_to_disk(tmp_path / "pets")
    with_workers, without = (
        ImageDataModule("hf_disk", root=str(tmp_path / "pets"), num_workers=number, image_size=4, batch_size=8)
        for number in (2, 0)
    )
    loader = with_workers.train_dataloader()
    for one, other in zip(epochs_of(loader), epochs_of(without.train_dataloader()), strict=True):
        assert_same_batches(one, other)


def test_of_several_labels_one_is_chosen(tmp_path: Path) -> None:
    coarse = (datasets.ClassLabel(names=["x", "y"]), [0, 1, 1])
    part([0, 1, 2], coarse=coarse).save_to_disk(tmp_path / "pets")
    assert "text or whole numbers: label, coarse; there must be one" in refused(load_hf_disk, tmp_path / "pets")
    assert load_image_set("hf_disk", tmp_path / "pets", columns={"label": "coarse"}).labels.tolist() == [0, 1, 1]
    assert "columns=group" in refused(load_hf_disk, tmp_path / "pets", 3, {"group": "coarse"})


@pytest.mark.parametrize(
    ("feature", "cells", "class_names", "labels"),
    [
        ("string", ["dog", "cat", None, "dog", "gnu"], ("cat", "dog", "gnu"), [1, 0, 1, 2]),
        ("large_string", ["10", "9", " ", "9", "1"], ("1", "9", "10"), [2, 1, 1, 0]),
        ("int64", [7, 100, None, 7, 20], ("7", "20", "100"), [0, 2, 0, 1]),
        ("uint8", [7, 100, 3, 7, 20], ("3", "7", "20", "100"), [1, 3, 0, 1, 2]),
        ("int32", [7, 100, -1, 7, 20], ("7", "20", "100"), [0, 2, 0, 1]),
    ],
)
def test_labels_may_be_text_or_numbers(
    feature: str, cells: list[Any], class_names: tuple[str, ...], labels: list[int], tmp_path: Path
) -> None:
    kind, number = datasets.Value(feature), datasets.Value("int64")
    images = part(list(range(5)), names=None).remove_columns("label")
    whole = images.add_column("kind", cells, feature=kind)
    halves = {"train": whole.select(range(4)), "test": whole.select([4])}  # the last class is in test alone
    datasets.DatasetDict(halves).save_to_disk(tmp_path / "pets")
    pets = load_hf_disk(tmp_path / "pets")
    assert pets.class_names == class_names and pets.labels.tolist() == labels
    whole.add_column("row", list(range(5)), feature=number).save_to_disk(tmp_path / "two")
    assert "numbers: kind, row; there must be one" in refused(load_hf_disk, tmp_path / "two")
    assert load_hf_disk(tmp_path / "two", columns={"label": "kind"}).labels.tolist() == labels
    whole.rename_column("kind", "label").add_column("row", list(range(5)), feature=number).save_to_disk(
        tmp_path / "usual"
    )
    assert load_hf_disk(tmp_path / "usual").labels.tolist() == labels


def test_images_may_be_plain_bytes(tmp_path: Path) -> None:
    cells = {"photo": [png(value) for value in range(3)], "label": ["a", "b", "a"]}
    datasets.Dataset.from_dict(cells).save_to_disk(tmp_path / "bytes")
    pets = load_hf_disk(tmp_path / "bytes")
    assert [int(image[0, 0, 0]) for image in pets.images] == [0, 1, 2]
    assert pets.hashes[2] == hashlib.sha256(png(2)).hexdigest()


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    assert "no such folder" in refused(load_hf_disk, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "holds no data set of save_to_disk" in refused(load_hf_disk, tmp_path / "empty")
    part([0, 1, 2]).remove_columns("label").save_to_disk(tmp_path / "none")
    assert "whole numbers: none" in refused(load_hf_disk, tmp_path / "none")
    datasets.DatasetDict({"train": part([0, 1]), "extra": part([2])}).save_to_disk(tmp_path / "extra")
    assert "has the splits train, extra" in refused(load_hf_disk, tmp_path / "extra")
    datasets.DatasetDict({"train": part([0, 1]), "test": part([2], ["a", "b", "c"])}).save_to_disk(tmp_path / "two")
    assert "test has other classes" in refused(load_hf_disk, tmp_path / "two")
    unlabelled = datasets.Dataset.from_dict({"image": [{"bytes": png(0)}], "label": [-1]}, features=part([0]).features)
    unlabelled.save_to_disk(tmp_path / "unlabelled")
    assert "00000000 has no label" in refused(load_hf_disk, tmp_path / "unlabelled")
    cells = {"image": [{"bytes": png(number)} for number in range(4)], "label": [0, None, 1, None]}
    datasets.Dataset.from_dict(cells, features=part([0]).features).save_to_disk(tmp_path / "some")
    assert load_hf_disk(tmp_path / "some").labels.tolist() == [0, 1]
    message = refused(load_image_set, "hf_disk", tmp_path / "some")
    assert "00000001 has no label (and 1 more); give it a label" in message


def test_a_row_may_refer_to_a_file_outside_of_the_folder_only_if_allowed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(7))
    cells = [{"bytes": png(0), "path": None}, {"bytes": None, "path": str(tmp_path / "secret.png")}]
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({**part([0]).features, "image": struct})
    datasets.Dataset.from_dict({"image": cells, "label": [0, 1]}, features=features).save_to_disk(tmp_path / "pets")
    # save_to_disk would copy the file into the folder; who means harm says afterwards that the cells are images.
    info = tmp_path / "pets" / "dataset_info.json"
    told = json.loads(info.read_text())
    told["features"]["image"] = {"_type": "Image"}
    info.write_text(json.dumps(told))
    message = refused(load_hf_disk, tmp_path / "pets")
    assert f"00000001 refers to {tmp_path / 'secret.png'}, a file outside" in message
    assert "outside_root=True" in message
    first = load_image_set("hf_disk", tmp_path / "pets", outside_root=True)
    assert first.images[1][0, 0, 0] == 7
    assert "refers to" in refused(load_hf_disk, tmp_path / "pets")  # again: its digest is not remembered,
    (tmp_path / "secret.png").write_bytes(png(8))  # as it may be another file by now
    assert load_image_set("hf_disk", tmp_path / "pets", outside_root=True).hashes[1] != first.hashes[1]


def test_without_the_package_one_line_says_so(tmp_path: Path, repo_root: Path) -> None:
    # A real process in which the package cannot be imported.
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from pathlib import Path\nfrom lit_cnn.data.sources import load_image_set\n"
        "load_image_set('hf_disk', Path('.'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith(
        "UsageError: dataset=hf_disk: needs the package datasets: pip install datasets"
    )


def test_rows_without_an_image_are_all_found_and_refused(tmp_path: Path) -> None:
    cells = [None, {"bytes": png(0)}, None, {"bytes": png(1)}]
    lacking = datasets.Dataset.from_dict({"image": cells, "label": [0, 0, 1, 1]}, features=part([0]).features)
    lacking.save_to_disk(tmp_path / "lacking")
    (finding,) = load_hf_disk(tmp_path / "lacking").findings
    assert (finding.kind, finding.severity) == ("no_image", "error")
    assert finding.cases == (("00000000",), ("00000002",))
    assert "00000000 holds no image" in refused(load_image_set, "hf_disk", tmp_path / "lacking")
    # What a row refers to may be there the next time.
    assert not list(default_cache_file().parent.glob("indexes/*"))


def test_rows_without_an_image_are_skipped_for_a_reason_that_names_none_of_them(tmp_path: Path) -> None:
    cells = [None, {"bytes": png(0)}, None, {"bytes": png(1)}]
    lacking = datasets.Dataset.from_dict({"image": cells, "label": [0, 0, 1, 1]}, features=part([0]).features)
    lacking.save_to_disk(tmp_path / "lacking")
    left, skipped = without_bad_images(load_hf_disk(tmp_path / "lacking"))
    assert left.paths == ["00000001", "00000003"] and not left.findings
    reason = "holds no image and refers to none that is there"
    assert skipped == {"00000000": reason, "00000002": reason}
