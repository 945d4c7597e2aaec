"""What looking through a set of images finds: all that is planted, under its own name, and nothing in a clean set."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_cnn.core.errors import UsageError
from lit_cnn.core.resize import resize_and_center_crop
from lit_cnn.data.audit import Report, audit, check_data, near_pairs
from lit_cnn.data.contact_sheet import contact_sheet
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.sources import MAX_PIXELS, ImageSet, load_image_set
from tests.bad_files import ODD, UNUSABLE, photographs, write_corpus
from tests.data.sources.test_manifest import write_csv, write_parquet
from tests.data.test_datasets import refused, save_images


def kinds_by_path(report: Report) -> dict[str, set[str]]:
    kinds = defaultdict(set)
    for finding in report.findings:
        for case in finding.cases:
            for path in case:
                kinds[path].add(finding.kind)
    return kinds


def photo_set(root: Path, per_class: int = 4) -> Path:
    squares = iter(map(Image.fromarray, photographs(2 * per_class)))
    for name in ("misty", "tigga"):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            next(squares).save(root / name / f"{number}.png")
    return root


def folder(root: Path) -> ImageSet:
    return load_image_set("image_folder", root, checked=False)


def test_everything_planted_is_found_and_named(tmp_path: Path) -> None:
    expected = write_corpus(tmp_path / "pets")
    assert len(expected) >= 25 + 10
    pets = folder(tmp_path / "pets")
    report = audit(pets, pets.splits, "full")
    found = kinds_by_path(report)
    missed = {path: kinds for path, kinds in expected.items() if not found[path] & set(kinds.split("|"))}
    assert missed == {}
    # Beside what was planted, only its counterparts are told of, each once.
    clean = {path for path in found if path not in expected} - set(pets.class_names)
    assert len(clean) == 6 and all(found[path] <= set("|".join(expected.values()).split("|")) for path in clean)


def test_the_quick_look_finds_what_headers_and_bytes_tell(tmp_path: Path) -> None:
    write_corpus(tmp_path / "pets")
    pets = folder(tmp_path / "pets")
    kinds = {finding.kind for finding in audit(pets, pets.splits, "quick").findings}
    assert kinds >= {"empty_file", "not_an_image", "too_many_pixels", "duplicate", "label_conflict", "dangling_link"}
    assert not kinds & {"near_duplicate", "flat"}


def test_in_a_clean_set_nothing_is_found(tmp_path: Path) -> None:
    pets = folder(photo_set(tmp_path / "pets", per_class=12))
    report = audit(pets, {}, "full")
    assert report.findings == [] and report.num_images == {"all": 24}
    assert contact_sheet(report) is None


def test_none_of_the_unusable_reaches_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "pets"
    write_corpus(root)
    data = ImageDataModule("image_folder", str(root), num_workers=0, batch_size=7, on_bad_image="skip")
    names = {Path(path).name for path in data.image_set.paths}
    assert not names & set(UNUSABLE) and names >= set(ODD)
    assert {Path(path).name for path in data.skipped} == set(UNUSABLE) and all(data.skipped.values())
    assert data.skipped["train/misty/scan.jpg"] == "it is a PDF"
    assert f"lit-cnn: {len(UNUSABLE)} images are left out, the first is train/misty/" in capsys.readouterr().err
    seen = sum(len(labels) for _, labels in data.train_dataloader())
    assert seen == len(data.splits.train) == len(data.image_set.splits["train"])


def test_a_bad_test_image_is_never_skipped(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    write_corpus(root, with_unusable=False)
    (root / "test" / "misty" / "cut.png").write_bytes((root / "test" / "misty" / "00.png").read_bytes()[:900])
    data = ImageDataModule("image_folder", str(root), on_bad_image="skip")
    message = refused(lambda: data.image_set)
    assert "test/misty/cut.png is a test image (image file is truncated)" in message


def test_a_bad_image_is_left_out_before_test_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = save_images(tmp_path / "pets", *(f"{name}/{n}.png" for name in "ab" for n in range(20)))
    (root / "a" / "0.png").write_bytes(b"")
    data = ImageDataModule("image_folder", str(root), on_bad_image="skip")
    assert "a/0.png" not in data.manifest and len(data.splits.test) > 0 and list(data.skipped) == ["a/0.png"]
    assert "lit-cnn: 1 image is left out before test is drawn from the rest, the first is a/0.png" in (
        capsys.readouterr().err
    )


def test_a_class_that_loses_its_last_image_is_refused(tmp_path: Path) -> None:
    root = save_images(tmp_path / "pets", *(f"{name}/{n}.png" for name in "ab" for n in range(4)))
    for path in (root / "b").iterdir():
        path.write_bytes(b"")
    data = ImageDataModule("image_folder", str(root), on_bad_image="skip")
    assert "no image is left of class b" in refused(lambda: data.image_set)


def test_classes_out_of_line(tmp_path: Path) -> None:
    names = ["train/a/{}.png", "train/b/{}.png", "val/a/{}.png", "val/c/{}.png"]
    files = [name.format(number) for name, count in zip(names, (30, 2, 3, 2), strict=True) for number in range(count)]
    root = save_images(tmp_path / "pets", *files)
    (root / "train" / "d").mkdir()
    pets = folder(root)
    found = {finding.kind: finding for finding in audit(pets, pets.splits, "quick").findings}
    assert found["class_not_in_train"].cases == (("c",),) and found["class_not_in_train"].severity == "error"
    assert found["empty_class"].cases == (("train/d",),)
    assert found["class_not_in_val"].cases == (("b",),)
    assert found["imbalance"].cases == (("a", "b"),) and "30 training images against 2" in found["imbalance"].message


def test_groups_torn_apart(tmp_path: Path) -> None:
    save_images(tmp_path, "0.png", "1.png", "2.png", "3.png")
    rows = ["0.png,a,train,p", "1.png,b,train,q", "2.png,a,val,p", "3.png,b,val,"]
    pets = load_image_set("manifest", write_csv(tmp_path / "pets.csv", "path,label,split,group", *rows), checked=False)
    (finding,) = audit(pets, pets.splits, "quick").of("error")
    assert (finding.kind, finding.cases) == ("group_leakage", (("0.png", "2.png"),))


def test_copies_in_memory_are_found_too() -> None:
    digits = load_image_set("digits")
    labels, hashes = digits.labels.copy(), list(digits.hashes)
    hashes[5] = hashes[0]
    report = audit(replace(digits, labels=labels, hashes=hashes), {}, "quick")
    assert kinds_by_path(report) == {"00000": {"label_conflict"}, "00005": {"label_conflict"}}


def test_copies_of_two_classes_in_two_splits_are_told_as_both(tmp_path: Path) -> None:
    save_images(tmp_path, "0.png", "1.png", "2.png", "3.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes())
    rows = ["0.png,a,train", "1.png,b,train", "2.png,a,test", "3.png,b,val"]
    pets = load_image_set("manifest", write_csv(tmp_path / "pets.csv", "path,label,split", *rows), checked=False)
    found = {finding.kind: finding.cases for finding in audit(pets, pets.splits, "quick").findings}
    assert found["label_conflict"] == found["duplicate_across_splits"] == (("1.png", "2.png"),)
    assert "duplicate" not in found


def test_copies_in_one_split_and_in_none_are_not_across_splits() -> None:
    digits = load_image_set("digits")
    hashes = list(digits.hashes)
    same = np.flatnonzero(digits.labels == 3)[:6]
    for first, second in same.reshape(3, 2):
        hashes[second] = hashes[first]
    # As `limit_train` leaves them: the second of the first pair, and both of the second.
    splits = {"train": np.array([same[0], same[4]]), "val": np.array([same[5]])}
    found = {finding.kind: finding.cases for finding in audit(replace(digits, hashes=hashes), splits, "quick").findings}
    pairs = [tuple(digits.paths[index] for index in pair) for pair in same.reshape(3, 2)]
    assert found["duplicate"] == (pairs[0], pairs[1]) and found["duplicate_across_splits"] == (pairs[2],)


def test_empty_files_are_no_copies_of_each_other(tmp_path: Path) -> None:
    root = photo_set(tmp_path / "pets")
    for name in ("misty", "tigga"):
        (root / name / "empty.png").touch()
    (finding,) = audit(folder(root), {}, "full").findings
    assert (finding.kind, finding.cases) == ("empty_file", (("misty/empty.png",), ("tigga/empty.png",)))


@pytest.mark.parametrize("way", ["csv", "parquet"])
def test_images_that_are_not_there_are_skipped_but_not_those_of_the_test(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_images(tmp_path, *(f"{number}.png" for number in range(8)))
    splits = ["train"] * 7 + ["test"]

    def without(*rows: int) -> ImageDataModule:
        if way == "csv":
            names = [f"{number}{'_gone' * (number in rows)}.png" for number in range(8)]
            lines = [f"{name},{'ab'[row % 2]},{splits[row]}" for row, name in enumerate(names)]
            file = write_csv(tmp_path / "pets.csv", "path,label,split", *lines)
        else:
            images = [None if number in rows else (tmp_path / f"{number}.png").read_bytes() for number in range(8)]
            file = write_parquet(tmp_path / "pets.parquet", image=images, label=["a", "b"] * 4, split=splits)
        return ImageDataModule("manifest", str(file), num_workers=0, on_bad_image="skip")

    data = without(1, 4)
    assert len(data.image_set.labels) == 6 and data.image_set.findings == ()
    reasons = {"csv": "No such file or directory", "parquet": "holds no bytes"}
    paths = {"csv": ["1_gone.png", "4_gone.png"], "parquet": ["row 00000002", "row 00000005"]}
    assert data.skipped == dict.fromkeys(paths[way], reasons[way])
    assert "lit-cnn: 2 images are left out, the first is" in capsys.readouterr().err
    assert f"is a test image ({reasons[way]})" in refused(lambda: without(7).image_set)


def test_near_pairs_are_all_pairs_within_the_distance() -> None:
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 2**64, 300, np.uint64)
    for number in range(100):  # a hundred of them differ from another in few bits
        flips = draw.choice(64, draw.integers(0, 9), replace=False).astype(np.uint64)
        hashes[200 + number] = hashes[number] ^ np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
    for most in (0, 4, 6):
        distances = np.bitwise_count(hashes[:, None] ^ hashes[None])
        expected = np.argwhere(np.triu(distances <= most, 1))
        assert near_pairs(hashes, most).tolist() == expected.tolist() and len(expected) > 5
    assert near_pairs(hashes[:0], 4).shape == near_pairs(hashes[:1], 4).shape == (0, 2)


def test_the_contact_sheet_has_a_row_for_each_thing_to_see(tmp_path: Path) -> None:
    write_corpus(tmp_path / "pets", with_unusable=False)
    pets = folder(tmp_path / "pets")
    report = audit(pets, pets.splits, "full")
    sheet = contact_sheet(report, num_rows=100)
    to_see = [finding for finding in report.findings if finding.cases[0][0] in pets.paths]
    assert sheet is not None and sheet.shape[0] % len(to_see) == 0 and sheet.dtype == np.uint8
    rows = np.split(sheet, len(to_see))
    pair = rows[[finding.kind for finding in to_see].index("label_conflict")]
    one, other = pair[23 : 23 + 112, 8:120], pair[23 : 23 + 112, 128:240]
    np.testing.assert_array_equal(one, other)
    assert one.std() > 20, "a photograph, not an empty cell"
    shorter = contact_sheet(report, num_rows=2)
    assert shorter is not None and shorter.shape[0] == 2 * rows[0].shape[0]


def test_the_contact_sheet_shows_errors_that_can_be_seen_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MAX_PIXELS)  # put back as it was at the end
    names = [f"{number}.png" for number in range(6)]
    for name, pixels in zip(names, photographs(6), strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "5.png").write_bytes((tmp_path / "4.png").read_bytes()[:3000])
    (tmp_path / "3.png").write_bytes((tmp_path / "0.png").read_bytes())
    Image.fromarray(photographs(1, 300)[0]).save(tmp_path / "large.png")
    splits = ["train,p", "val,p", "train,", "train,", "train,", "train,", "train,"]
    rows = [f"{name},{'ab'[place % 2]},{splits[place]}" for place, name in enumerate([*names, "large.png"])]
    file = write_csv(tmp_path / "pets.csv", "path,label,split,group", *rows)
    pets = load_image_set("manifest", file, max_pixels=200 * 200, checked=False)
    report = audit(pets, pets.splits, "full")
    kinds = ["group_leakage", "truncated", "too_many_pixels", "label_conflict"]
    assert [finding.kind for finding in report.of("error", "warning")] == kinds
    (one,) = np.split(sheet_of(report, 1), 1)
    leaking, large, conflict = np.split(sheet_of(report, 3), 3)
    np.testing.assert_array_equal(one, leaking)
    for row, column, index in ((leaking, 0, 0), (leaking, 1, 1), (conflict, 0, 0), (conflict, 1, 3)):
        view = resize_and_center_crop(pets.images[index], 112)
        np.testing.assert_array_equal(inside(row, column), view[1:-1, 1:-1])
    assert inside(large, 0).std() > 20 and inside(large, 1).std() == 0
    with pytest.raises(UsageError, match="has more pixels than"):
        pets.images[6]  # the limit holds again


def sheet_of(report: Report, num_rows: int) -> np.ndarray:
    sheet = contact_sheet(report, num_rows)
    assert sheet is not None
    return sheet


def inside(row: np.ndarray, column: int) -> np.ndarray:
    """A cell's pixels but for its outline."""
    return row[24 : 24 + 110, 9 + 120 * column : 9 + 120 * column + 110]


# --- check_data, and how a report shows itself ---


def test_a_folder_a_manifest_and_a_data_module_are_checked_alike(tmp_path: Path) -> None:
    root = photo_set(tmp_path / "pets", 25)
    (root / "misty" / "again.png").write_bytes((root / "misty" / "0.png").read_bytes())
    rows = [f"{path.relative_to(tmp_path).as_posix()},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    listed = write_csv(tmp_path / "pets.csv", "path,label", *rows)
    for data in (root, str(root), listed, ImageDataModule("image_folder", root=root)):
        report = check_data(data, level="quick")
        assert [finding.kind for finding in report.findings] == ["duplicate"]
        assert sum(report.num_images.values()) == 51
        assert report.num_by_class["tigga"] == {"train": 18, "val": 2, "test": 5}
        assert report.to_dict()["num_by_class"]["misty"].keys() == {"train", "val", "test"}


@pytest.mark.parametrize(("num_test", "told"), [(1, "21 to 100 %"), (3, "44 to 100 %"), (4, "51 to 100 %"), (5, "")])
def test_few_test_images_are_told_with_what_they_can_say(num_test: int, told: str, tmp_path: Path) -> None:
    names = [f"{split}/{name}/{number}.png" for split in ("train", "test") for name in "ab" for number in range(9)]
    names = [name for name in names if not name.startswith("test/b") or int(name[7]) < num_test]
    data = ImageDataModule("image_folder", save_images(tmp_path / "pets", *names))
    found = [finding for finding in check_data(data, "quick").findings if finding.kind == "few_test_images"]
    assert [finding.cases for finding in found] == ([(("b",),)] if told else [])
    if found:
        assert found[0].severity == "warning" and told in found[0].message
        assert "test_fraction" not in found[0].message  # test is not drawn


def test_what_no_split_can_be_drawn_from_is_an_error_of_the_report(tmp_path: Path) -> None:
    report = check_data(photo_set(tmp_path / "pets", 2))
    assert [(finding.severity, finding.kind) for finding in report.findings] == [("error", "no_split")]
    assert "class misty has 2 images" in report.findings[0].message and report.num_images == {"all": 4}
    few = ImageDataModule("image_folder", root=photo_set(tmp_path / "more", 12), limit_train=1000)
    assert "no split can be drawn: limit_train=1000: there are" in str(check_data(few, "quick"))


def test_what_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    assert refused(check_data, tmp_path / "absent").startswith(f"data={tmp_path / 'absent'}: no such folder")


def test_a_report_says_first_what_to_do(tmp_path: Path) -> None:
    root = photo_set(tmp_path / "pets", 25)
    assert str(check_data(root)).startswith("Nothing is wrong with the images (train 36, val 4, test 10;")
    Image.new("RGB", (96, 96), "white").save(root / "misty" / "<white>.png")
    warned = check_data(root)
    assert str(warned).startswith("0 errors, 1 warning, 0 notes (") and "look at the warnings" in warned.summary
    assert "warning: flat: misty/<white>.png: is of one colour" in str(warned)
    (root / "tigga" / "empty.png").touch()
    both = check_data(root)
    assert "mend the errors before training" in str(both).splitlines()[0] and len(str(both).splitlines()) == 3
    page = both._repr_html_()
    assert page.startswith(f"<p>{both.summary}</p>") and "misty/&lt;white&gt;.png" in page and "<white>" not in page


def test_a_report_of_many_kinds_is_printed_in_a_few_lines(tmp_path: Path) -> None:
    write_corpus(tmp_path / "pets")
    report = check_data(tmp_path / "pets", "quick")
    lines = str(report).splitlines()
    assert len(report.findings) > 8 and len(lines) == 10 and lines[-1].endswith("more kinds, see `findings`")
    assert "`" not in "".join(lines[:-1])
