import csv
import hashlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lit_cnn.core.errors import UsageError
from lit_cnn.data.audit import audit
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.inspection import without_bad_images
from lit_cnn.data.sources import load_image_set, load_manifest
from lit_cnn.data.splits import SPLIT_NAMES
from tests.data.test_datamodule import assert_same_batches, epochs_of
from tests.data.test_datasets import gray, refused, save_images


def write_csv(file: Path, header: str, *rows: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    gray(value).save(buffer, "png")
    return buffer.getvalue()


def write_parquet(file: Path, **columns: Any) -> Path:
    # Small groups of rows, so that the images do not all come from one.
    parquet.write_table(pa.table(columns), file, row_group_size=3)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_images(tmp_path / "pets", *(f"images/{number}.png" for number in range(6)))


def test_a_csv_gives_files_relative_to_its_folder(folder: Path) -> None:
    rows = ("images/3.png,dog,x", 'images/1.png,"cat, black",y', "./images/../images/0.png,dog,z")
    pets = load_image_set("manifest", write_csv(folder / "pets.csv", "path,label,note", *rows))
    assert (pets.name, pets.in_channels, pets.splits, pets.groups) == ("pets", 3, {}, None)
    assert pets.class_names == ("cat, black", "dog") and pets.labels.tolist() == [1, 0, 1]
    assert list(pets.paths) == ["images/3.png", "images/1.png", "images/0.png"]
    assert [int(image[0, 0, 0]) for image in (pets.images[0], pets.images[1], pets.images[2])] == [3, 1, 0]
    assert pets.hashes[0] == hashlib.sha256((folder / "images" / "3.png").read_bytes()).hexdigest()
    assert load_manifest(folder / "pets.csv", in_channels=1).images[0].shape == (4, 4, 1)


def test_cells_are_text_and_numbers_are_in_their_order(folder: Path) -> None:
    rows = [f"images/{row}.png,{label}" for row, label in enumerate(["10", "9", "010", "2"])]
    assert load_manifest(write_csv(folder / "a.csv", "image,class", *rows)).class_names == ("2", "9", "010", "10")
    rows = [f"images/{row}.png,{label}" for row, label in enumerate(["NA", "null", "10", "9"])]
    assert load_manifest(write_csv(folder / "b.csv", "image,class", *rows)).class_names == ("10", "9", "NA", "null")


def test_splits_and_groups_are_read(folder: Path) -> None:
    rows = [("0", "a", "train", "p"), ("1", "b", "Train", ""), ("2", "a", "valid", "q"), ("3", "b", "test", "r")]
    text = [f"images/{n}.png,{label},{split},{group}" for n, label, split, group in rows]
    pets = load_manifest(write_csv(folder / "pets.csv", "path,label,split,group", *text))
    assert {split: indices.tolist() for split, indices in pets.splits.items()} == {
        "train": [0, 1],
        "val": [2],
        "test": [3],
    }
    assert pets.groups == ["p", "", "q", "r"]


def test_columns_can_be_called_otherwise(folder: Path) -> None:
    file = write_csv(folder / "isic.csv", "image_id,dx,label,patient", "images/0.png,mel,1,A", "images/1.png,nv,2,B")
    pets = load_image_set(
        "manifest", file, columns={"image": "image_id", "label": "dx", "group": "patient"}, class_names=["nv", "mel"]
    )
    assert pets.class_names == ("nv", "mel") and pets.labels.tolist() == [1, 0] and pets.groups == ["A", "B"]
    data = ImageDataModule("manifest", root=str(file), columns={"image": "image_id", "label": "dx"})
    assert data.class_names == ["mel", "nv"]


def test_the_manifest_that_a_run_keeps_repeats_its_split(tmp_path: Path) -> None:
    root = save_images(tmp_path / "pets", *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(20)))
    first = ImageDataModule("image_folder", root=str(root), split_seed=3)
    (root / "split.csv").write_text(first.manifest, encoding="utf-8")
    again = ImageDataModule("manifest", root=str(root / "split.csv"))
    assert again.manifest == first.manifest and again.digests == first.digests


ODD = [b"caf\xe9", b" dog ", b"a\rb", b'q"\t,\n', b"50%25\xff", b"a\\b"]
RAW = st.binary(min_size=1, max_size=10) | st.sampled_from(ODD)
RAW = RAW.map(lambda name: name.translate(None, b"\0/")).filter(lambda name: name and not name.startswith(b"."))


@settings(max_examples=60, deadline=None)
@given(classes=st.sets(RAW, min_size=2, max_size=3), files=st.sets(RAW, min_size=3, max_size=5), deep=st.booleans())
def test_any_names_come_back_from_the_manifest(classes: set[bytes], files: set[bytes], deep: bool) -> None:
    content = iter(range(100))
    with tempfile.TemporaryDirectory() as root:
        for name in classes:
            folder = os.path.join(os.fsencode(root), name, *([b"a b "] if deep else []))
            os.makedirs(folder)
            for file in files:
                Path(os.fsdecode(os.path.join(folder, file + b".png"))).write_bytes(png(next(content)))
        first = ImageDataModule("image_folder", root=root)
        try:
            text = first.manifest
        except UsageError:  # class folders called train, or a name that another is written as
            reject()
        Path(root, "split.csv").write_text(text, encoding="utf-8")
        again = ImageDataModule("manifest", root=f"{root}/split.csv")
        assert again.manifest == text and again.digests == first.digests
        assert again.class_names == first.class_names
        kinds = {found.kind for found in again.image_set.findings}
        assert kinds <= {"class_not_utf8", "name_not_utf8", "similar_classes"}


def test_a_name_that_another_is_written_as_is_refused(tmp_path: Path) -> None:
    root = save_images(tmp_path / "pets", "cat/0.png", "cat/caf%E9.png", "dog/2.png")
    os.rename(root / "cat" / "0.png", os.fsencode(root) + b"/cat/caf\xe9.png")
    message = refused(load_image_set, "image_folder", root)
    assert "two names are written as cat/caf%E9.png, one is not UTF-8; rename it" in message


def test_paths_of_windows_and_names_without_a_suffix(folder: Path) -> None:
    (folder / "images" / "5.jpg").write_bytes(png(5))
    rows = ("images\\0.png,a", "images/1,b", ".\\images\\2,a", " images/3.png ,b")
    pets = load_image_set("manifest", write_csv(folder / "pets.csv", "path,label", *rows))
    assert list(pets.paths) == [f"images/{number}.png" for number in range(4)]
    assert [(found.severity, len(found.cases)) for found in pets.findings] == [("note", 1), ("note", 1), ("note", 2)]
    file = write_csv(folder / "pets.csv", "path,label", "images/0.png,a", "images/5,b")
    message = refused(load_image_set, "manifest", file)
    assert "images/5 is not there" in message and "5.jpg and 5.png are: write which" in message


@pytest.mark.parametrize("way", ["..", "absolute", "link to the file", "link to its folder"])
def test_a_file_outside_of_the_folder_is_refused_unless_allowed(way: str, folder: Path) -> None:
    secret = save_images(folder.parent / "elsewhere", "7.png") / "7.png"
    (folder / "images" / "link.png").symlink_to(secret)
    (folder / "linked").symlink_to(secret.parent)
    name = {
        "..": "../elsewhere/7.png",
        "absolute": str(secret),
        "link to the file": "images/link.png",
        "link to its folder": "linked/7.png",
    }[way]
    file = write_csv(folder / "pets.csv", "path,label", "images/0.png,cat", f"{name},dog")
    with pytest.raises(UsageError) as refused:
        load_manifest(file)
    assert f"row 2, {name}, is a file outside" in str(refused.value) and "outside_root=True" in str(refused.value)
    assert load_image_set("manifest", file, outside_root=True).images[1].shape == (4, 4, 3)
    assert ImageDataModule("manifest", root=str(file), outside_root=True).class_names == ["cat", "dog"]


def test_a_pipe_is_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "images" / "pipe.png")
    file = write_csv(folder / "pets.csv", "path,label", "images/0.png,cat", "images/pipe.png,dog")
    assert "row 2, images/pipe.png, is a pipe or device; take it away" in refused(load_manifest, file)


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    (folder / "images" / "link.png").symlink_to(folder / "images" / "5.png")
    (folder / "linked").symlink_to(folder / "images")
    file = write_csv(folder / "pets.csv", "path,label", "images/link.png,cat", "linked/4.png,dog")
    assert [int(load_manifest(file).images[row][0, 0, 0]) for row in (0, 1)] == [5, 4]


@pytest.mark.parametrize("as_struct", [False, True])
def test_parquet_holds_images_as_bytes(as_struct: bool, tmp_path: Path) -> None:
    contents = [png(value) for value in range(10)]
    image = [{"bytes": content, "path": None} for content in contents] if as_struct else contents
    file = write_parquet(tmp_path / "pets.parquet", image=image, label=[3, 7] * 5)
    pets = load_image_set("manifest", file)
    assert pets.class_names == ("3", "7") and pets.labels.tolist() == [0, 1] * 5
    assert pets.hashes == [hashlib.sha256(content).hexdigest() for content in contents]
    assert len(set(pets.paths)) == 10
    for index in (9, 0, 4):
        np.testing.assert_array_equal(pets.images[index], np.full((4, 4, 3), index, np.uint8))
    (copy,) = (tmp_path / ".cache" / "lit_cnn" / "indexes").glob("*.bytes")
    assert copy.read_bytes() == b"".join(contents)
    # Read again from the copy; made again where it is lost, and where the Parquet file changes.
    assert load_manifest(file).digest == pets.digest
    copy.unlink()
    assert load_manifest(file).images[9][0, 0, 0] == 9
    write_parquet(file, image=contents[::-1], label=[3, 7] * 5)
    assert load_manifest(file).images[9][0, 0, 0] == 0


def test_paths_that_are_not_there_beside_a_column_of_bytes(tmp_path: Path) -> None:
    contents = [png(number) for number in range(4)]
    file = write_parquet(tmp_path / "pets.parquet", path=["1", "2", "3", "4"], image=contents, label=["a", "b"] * 2)
    assert "say columns.image=image" in refused(load_image_set, "manifest", file)
    assert len(load_manifest(file, columns={"image": "image"}).images) == 4


def test_parquet_holds_paths_and_categories_too(folder: Path) -> None:
    paths, labels = ["images/1.png", "images/2.png"], ["dog", "cat"]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        columns = {"path": pa.array(paths).cast(kind), "label": pa.array(labels).cast(kind)}
        pets = load_manifest(write_parquet(folder / "pets.parquet", **columns))
        assert pets.class_names == ("cat", "dog") and pets.images[1][0, 0, 0] == 2
    for label in (pa.array([10, 9], pa.int8()), pa.array([10, 9], pa.uint64()), pa.array([10, 9]).dictionary_encode()):
        assert load_manifest(write_parquet(folder / "a.parquet", path=paths, label=label)).class_names == ("9", "10")
    for kind in (pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), pa.binary())):
        image = pa.array([png(1), png(2)], pa.binary())
        image = image.dictionary_encode() if pa.types.is_dictionary(kind) else image.cast(kind)
        assert load_manifest(write_parquet(folder / "b.parquet", image=image, label=labels)).images[1][0, 0, 0] == 2


def test_worker_processes_read_images_out_of_parquet(tmp_path: Path) -> None:
    contents = [png(value) for value in range(30)]
    file = write_parquet(tmp_path / "pets.parquet", image=contents, label=["a", "b"] * 15)
    with_workers, without = (
        ImageDataModule("manifest", root=str(file), num_workers=number, image_size=4, batch_size=8) for number in (2, 0)
    )
    loader = with_workers.train_dataloader()
    assert loader.num_workers == 2
    for one, other in zip(epochs_of(loader), epochs_of(without.train_dataloader()), strict=True):
        assert_same_batches(one, other)


@pytest.mark.parametrize(
    ("header", "rows", "expected"),
    [
        ("file,label", ["images/0.png,a"], "has no column path or image, it has file, label; rename one"),
        ("path/label", ["images/0.png/a"], "has no column path or image, it has path/label"),
        ("path,kind", ["images/0.png,a"], "has no column label or class"),
        ("path,label,label", ["images/0.png,a,b"], "two columns label"),
        (
            "path,label",
            ["images/0.png,a", "images/1.png", "x,y,z"],
            "row 2 has 1 cells where the first line has 2: images/1.png",
        ),
        ("path,label", ["images/0.png,a", "images/1.png,"], "images/1.png has no label; fill its label"),
        ("path,label", ["images/0.png,a", ",b"], "row 2 has no path"),
        (
            "path,label",
            ["images/0.png,a", "images/9.png,b", "images/8.png,b"],
            "images/9.png is not there (and 1 more)",
        ),
        ("path,label", ["images/0.png,a", "images/1.png,b", "./images/0.png,b"], "rows 1 and 3 are both images/0.png"),
        ("path,label", ["images/0.png,a", "images/1.png,a"], "a single class (a)"),
        ("path,label", [], "lists no images"),
        ("path,label,split", ["images/0.png,a,train", "images/1.png,b,"], "row 2 has split ''; say train, val or test"),
        ("path,label,split", ["images/0.png,a,eval", "images/1.png,b,train"], "row 1 has split 'eval'"),
        ("path,label,split", ["images/0.png,a,val", "images/1.png,b,test"], "no row's split is train"),
        (
            "path,label,split",
            ["images/0.png,a,train", "images/1.png,b,train", "images/2.png,c,test"],
            "test has c, a class that train lacks",
        ),
        (
            "path,label,split,group",
            ["images/0.png,a,train,p", "images/1.png,b,train,q", "images/2.png,a,val,p"],
            "group p is in train and in val (images/2.png)",
        ),
    ],
)
def test_unusable_manifests_are_refused(header: str, rows: list[str], expected: str, folder: Path) -> None:
    message = refused(load_image_set, "manifest", write_csv(folder / "pets.csv", header, *rows))
    assert message.startswith("root") and expected in message


def test_rows_that_come_again_and_unknown_splits_are_all_found(folder: Path) -> None:
    rows = [
        "images/0.png,a,train",
        "images/1.png,b,trian",
        "./images/0.png,a,train",
        "images/2.png,b,",
        "images/3.png,b,val",
    ]
    image_set = load_manifest(write_csv(folder / "pets.csv", "path,label,split", *rows, "images/0.png,b,test"))
    again, unknown = image_set.findings
    assert (again.kind, again.severity, unknown.kind, unknown.severity) == (
        "listed_twice",
        "error",
        "unknown_split",
        "error",
    )
    assert again.message == "rows 1 and 3 are both images/0.png (and 1 more); keep one"
    assert again.cases == (("images/0.png (row 3)",), ("images/0.png (row 6)",))
    assert unknown.message.startswith("row 2 has split 'trian' (and 1 more); say train")
    assert unknown.cases == (("images/1.png",), ("images/2.png",))
    assert image_set.hashes[0] == image_set.hashes[2] == image_set.hashes[5]
    report = audit(image_set, image_set.splits, "full")
    assert {"listed_twice", "unknown_split"} <= {finding.kind for finding in report.findings}


def test_an_unknown_split_is_refused_though_its_image_is_bad_and_skipped(folder: Path) -> None:
    (folder / "images" / "bad.png").write_bytes(b"no image")
    rows = ["images/0.png,a,train", "images/1.png,b,train", "images/2.png,a,test", "images/bad.png,a,tset"]
    left, skipped = without_bad_images(load_manifest(write_csv(folder / "pets.csv", "path,label,split", *rows)))
    assert list(skipped) == ["images/bad.png"]
    assert [finding.kind for finding in left.findings] == ["unknown_split"]


def test_unusable_files_and_options_are_refused(folder: Path) -> None:
    file = write_csv(folder / "pets.csv", "path,label", "images/0.png,a", "images/1.png,b")
    assert "no such file" in refused(load_manifest, folder / "absent.csv")
    assert "no such file" in refused(load_manifest, folder)
    assert "a .csv, .tsv or .parquet file" in refused(load_manifest, folder / "images" / "0.png")
    (folder / "text.parquet").write_text("no Parquet")
    assert "is no Parquet file" in refused(load_manifest, folder / "text.parquet")
    (folder / "empty.csv").write_bytes(b"")
    assert "cannot be read as CSV" in refused(load_manifest, folder / "empty.csv")
    (folder / "greek.csv").write_bytes("path,label\nimages/0.png,γάτα\n".encode("cp1253"))
    assert "is not UTF-8 (row 1, %E3%DC%F4%E1); save it as UTF-8" in refused(load_manifest, folder / "greek.csv")
    assert "columns=label=kind" in refused(load_manifest, file, 3, {"label": "kind"})
    assert "columns=lable: name the columns of image" in refused(load_manifest, file, 3, {"lable": "label"})
    message = refused(load_image_set, "digits", None, None, None, {"label": "kind"})
    assert message.startswith("columns: digits has no columns")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": [b"x", b""], "label": [0, 1]}, "row 2 has no image"),
        ({"image": [b"x", None], "label": [0, 1]}, "row 2 has no image"),
        ({"image": [1, 2], "label": [0, 1]}, "column image is of type int64"),
        ({"image": [b"x", b"y"], "label": [0.5, 1.0]}, "column label is of type double"),
        ({"image": [b"x", b"y"], "label": [0, None]}, "row 00000002 has no label"),
        (
            {"image": [b"x", b"y"], "label": pa.array([None, None], pa.int64())},
            "row 00000001 has no label (and 1 more)",
        ),
    ],
)
def test_unusable_parquet_is_refused(columns: dict[str, Sequence[Any]], expected: str, tmp_path: Path) -> None:
    assert expected in refused(load_image_set, "manifest", write_parquet(tmp_path / "pets.parquet", **columns))


def test_a_broken_image_in_parquet_is_named(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "pets.parquet", image=[png(0), b"no image"], label=[0, 1])
    message = refused(load_manifest(file).images.__getitem__, 1)
    assert f"{file}, row 00000002: this image cannot be decoded" in message


# --- groups ---


def grouped(folder: Path, groups: Sequence[tuple[str, str, int]]) -> ImageDataModule:
    """A manifest of groups: (name, classes, images of each class)."""
    rows, number = [], 0
    for group, classes, count in groups:
        for label in classes * count:
            save_images(folder, f"{number:03}.png")
            (folder / f"{number:03}.png").write_bytes(png(number % 251) + b"%d" % number)
            rows.append(f"{number:03}.png,{label},{group}")
            number += 1
    return ImageDataModule("manifest", root=str(write_csv(folder / "grouped.csv", "path,label,group", *rows)))


def groups_by_split(data: ImageDataModule) -> dict[str, set[str]]:
    groups = data.image_set.groups
    assert groups is not None
    return {split: {groups[index] for index in data.splits[split]} for split in SPLIT_NAMES}


def test_no_group_straddles_a_split_and_every_class_is_in_each(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    sizes = [(f"patient {n}", "".join(draw.choice(list("abc"), 2, replace=False)), 3) for n in range(40)]
    data = grouped(tmp_path / "set", sizes)
    seen = set()
    for seed in range(12):
        drawn = ImageDataModule("manifest", root=str(data.root), split_seed=seed, test_fraction=0.25, val_fraction=0.25)
        found = groups_by_split(drawn)
        assert (
            not found["train"] & found["val"]
            and not found["train"] & found["test"]
            and not found["val"] & found["test"]
        )
        assert len(set.union(*found.values())) == 40
        for split in SPLIT_NAMES:
            assert len(np.unique(drawn.image_set.labels[drawn.splits[split]])) == 3
        seen.add(frozenset(found["test"]))
    assert len(seen) == 12


def test_shares_of_groups_are_met_on_average(tmp_path: Path) -> None:
    data = grouped(tmp_path / "set", [(f"g{n}", "ab", 1) for n in range(120)])
    tests = [
        len(groups_by_split(ImageDataModule("manifest", root=str(data.root), split_seed=seed))["test"])
        for seed in range(10)
    ]
    # 1,200 draws at one fifth: 240, five standard deviations are 69.
    assert abs(sum(tests) - 240) < 69


def test_a_new_group_moves_none_of_the_others(tmp_path: Path) -> None:
    many = [(f"g{n}", "ab", 2) for n in range(30)]
    before = groups_by_split(grouped(tmp_path / "before", many))
    after = groups_by_split(grouped(tmp_path / "after", [("new", "a", 1), *many]))
    assert {split: names - {"new"} for split, names in after.items()} == before


@pytest.mark.parametrize("num_groups", [3, 4])
def test_rare_classes_get_a_group_in_every_split(num_groups: int, tmp_path: Path) -> None:
    rare = [(f"rare {n}", "z", 2) for n in range(num_groups)]
    data = grouped(tmp_path / "set", [*((f"g{n}", "ab", 1) for n in range(20)), *rare])
    for seed in range(10):
        drawn = ImageDataModule("manifest", root=str(data.root), split_seed=seed)
        for names in groups_by_split(drawn).values():
            assert any(name.startswith("rare") for name in names)


def test_a_class_in_two_groups_is_refused(tmp_path: Path) -> None:
    data = grouped(tmp_path / "set", [*((f"g{n}", "ab", 1) for n in range(20)), ("r1", "z", 9), ("r2", "z", 9)])
    message = refused(lambda: data.splits)
    assert "class z is in 2 groups" in message


def test_images_without_a_group_stand_alone_and_copies_stay_together(tmp_path: Path) -> None:
    rows = []
    for number in range(60):
        save_images(tmp_path / "set", f"{number}.png", f"copy{number}.png")
        content = png(0) + b"%d" % number
        (tmp_path / "set" / f"{number}.png").write_bytes(content)
        (tmp_path / "set" / f"copy{number}.png").write_bytes(content)
        # The copy of an image of one group is in another group, or in none.
        rows += [
            f"{number}.png,{'ab'[number % 2]},g{number}",
            f"copy{number}.png,{'ab'[number % 2]},{('', 'x')[number == 5]}",
        ]
    data = ImageDataModule("manifest", root=str(write_csv(tmp_path / "set" / "m.csv", "path,label,group", *rows)))
    place = {row["path"]: row["split"] for row in csv.DictReader(io.StringIO(data.manifest))}
    assert len(set(place.values())) == 3
    for number in range(60):
        assert place[f"{number}.png"] == place[f"copy{number}.png"]
