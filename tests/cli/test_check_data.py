"""`lit-cnn check-data`, and the same look before a run's first step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from lit_cnn.cli import main
from lit_cnn.data.audit import audit
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.splits import SPLIT_NAMES
from tests.bad_files import UNUSABLE, write_corpus
from tests.data.sources.test_manifest import png, write_csv, write_parquet
from tests.data.test_audit import photo_set
from tests.data.test_datasets import save_images
from tests.runs import CONFIGS, SHORT, tracked_runs

OWN = f"--config={CONFIGS / 'experiment' / 'own_images.yaml'}"


def check(root: Path, *more: str) -> int:
    return main(["check-data", OWN, f"--data.root={root}", *more])


def fit_on(root: Path, *more: str) -> int:
    options = (
        *SHORT,
        "--data.dataset=image_folder",
        f"--data.root={root}",
        "--data.limit_train=null",
        "--data.in_channels=1",
    )
    return main(["fit", *options, "--trainer.max_epochs=1", "--data.batch_size=8", *more])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "pets"
    write_corpus(root)
    return root


def test_the_table_names_what_is_wrong(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(corpus, "--output=worst.png") == 0
    printed = capsys.readouterr().out
    for text in (
        "truncated",
        "train/misty/album.jpg",
        "label_conflict",
        "bomb.png",
        "near_duplicate_across_splits",
    ):
        assert text in printed
    with Image.open("worst.png") as picture:
        assert picture.width == 968 and picture.height > 1000
    assert "8 errors, 12 warnings" in printed


def test_strict_ends_with_1_if_there_is_something_to_mend(corpus: Path, tmp_path: Path) -> None:
    assert check(corpus, "--strict", "--level=quick") == 1
    assert check(photo_set(tmp_path / "pets", 25), "--strict") == 0


def test_strict_counts_errors_and_warnings_and_no_notes(tmp_path: Path) -> None:
    root = photo_set(tmp_path / "pets", 25)
    (root / "misty" / "again.png").write_bytes((root / "misty" / "0.png").read_bytes())
    # Which of the split's parts they fall into is drawn; copies go by their bytes, into one.
    assert kinds_of(root) == {("note", "duplicate")}
    assert check(root, "--strict") == 0
    (root / "misty" / "again.png").unlink()
    Image.new("RGB", (96, 96), "white").save(root / "misty" / "white.png")
    assert kinds_of(root) == {("warning", "flat")}
    assert check(root, "--strict") == 1


def kinds_of(root: Path) -> set[tuple[str, str]]:
    data = ImageDataModule("image_folder", str(root))
    return {
        (finding.severity, finding.kind)
        for finding in audit(data.image_set, {name: data.splits[name] for name in SPLIT_NAMES}, "full").findings
    }


def test_json_is_for_programs(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(corpus, "--format=json", "--level=quick") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["level"] == "quick" and report["num_images"] == {"train": 72, "val": 6, "test": 8}
    by_kind = {finding["kind"]: finding for finding in report["findings"]}
    assert by_kind["empty_file"]["cases"] == [["train/misty/zero_bytes.jpg"]]
    assert by_kind["animated"]["count"] == 3


def test_what_no_split_can_be_drawn_from_is_looked_through_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photo_set(tmp_path / "pets", 2)
    assert check(root, "--strict") == 1
    printed = capsys.readouterr().out
    assert "1 error, 0 warnings, 0 notes (all 4; full check," in printed
    assert "no split can be drawn: class misty has 2 images" in " ".join(printed.split())


def csv_with_gaps(folder: Path) -> Path:
    save_images(folder, *(f"{number}.png" for number in range(6)))
    rows = ["0.png,a", "gone.png,a", "1.png,", ",b", "2.png,b", "deep/gone.png,b", "3.png,a", "4.png,b", "5.png,a"]
    return write_csv(folder / "pets.csv", "path,label", *rows)


def parquet_with_gaps(folder: Path) -> Path:
    images = [None if number in (1, 4) else png(number) for number in range(8)]
    folder.mkdir()
    return write_parquet(folder / "pets.parquet", image=images, label=["a", "b", "", "b", "a", "b", "a", "b"])


def shard_with_gaps(folder: Path) -> Path:
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "pets.tar")) as writer:
        for number in range(8):
            label: dict[int, dict[str, Any]] = {2: {"json": {"name": "a"}}, 5: {}, 7: {"json": {"label": None}}}
            writer.write({"__key__": f"{number}", "png": png(number), **label.get(number, {"cls": "ab"[number % 2]})})
    return folder


def one_class_in_a_folder(folder: Path) -> Path:
    return save_images(folder, *(f"cat/{number}.png" for number in range(4)))


def one_class_in_a_manifest(folder: Path) -> Path:
    save_images(folder, *(f"{number}.png" for number in range(4)))
    return write_csv(folder / "pets.csv", "path,label", *(f"{number}.png,cat" for number in range(4)))


@pytest.mark.parametrize(
    ("dataset", "make", "expected", "told"),
    [
        (
            "manifest",
            csv_with_gaps,
            {
                "missing_file": [["gone.png"], ["deep/gone.png"]],
                "no_image": [["row 00000004"]],
                "no_label": [["1.png"]],
            },
            "row 4 has no path; fill it or take the row away",
        ),
        (
            "manifest",
            parquet_with_gaps,
            {"no_image": [["row 00000002"], ["row 00000005"]], "no_label": [["row 00000003"]]},
            "row 2 has no image (and 1 more); fill it or take the row away; lit-cnn check-data lists all",
        ),
        (
            "webdataset",
            shard_with_gaps,
            {"no_split": [["pets"]], "no_label": [["pets.tar/2"], ["pets.tar/5"], ["pets.tar/7"]]},
            "pets.tar/2 has no label (and 2 more); give a name or a whole number in .cls, or in .json as label; "
            "lit-cnn check-data lists all",
        ),
        ("image_folder", one_class_in_a_folder, {"single_class": [["cat"]]}, "a single class (cat); a classifier"),
        ("manifest", one_class_in_a_manifest, {"single_class": [["cat"]]}, "a single class (cat); a classifier"),
    ],
)
def test_all_that_cannot_be_read_is_listed_and_fit_refuses_it_in_one_line(
    dataset: str,
    make: Callable[[Path], Path],
    expected: dict[str, list[list[str]]],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make(tmp_path / "pets")
    assert check(root, f"--data.dataset={dataset}", "--format=json", "--strict", "--output=worst.png") == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    errors = {finding["kind"]: finding["cases"] for finding in findings if finding["severity"] == "error"}
    assert errors == expected
    assert check(root, f"--data.dataset={dataset}") == 0
    printed = capsys.readouterr().out
    assert all(kind in printed and cases[0][0] in printed for kind, cases in expected.items())

    for level in ("quick", "off"):
        assert fit_on(root, f"--data.dataset={dataset}", f"--data.check={level}") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line and line.startswith(f"lit-cnn: error: --data.root {root}")
    assert not list(Path().glob("mlruns/journal/*"))


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--level=deep", "--level: invalid choice: 'deep'"),
        ("--levels=full", "--levels full: no such option"),
        ("--data.max_pixels=0", "--data.max_pixels 0: give a whole number of at least 1"),
    ],
)
def test_mistakes_are_one_line(option: str, expected: str, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(corpus, option) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line.replace("argument ", "")


@pytest.mark.parametrize("output", ["file/worst.png", ".", "/proc/worst.png"])
def test_a_picture_that_cannot_be_written_is_told_before_the_work(
    output: str, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    assert check(corpus, f"--output={output}") == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert f"--output {output}: cannot be written (" in line and line.endswith("; give another file")
    assert printed.out == ""


def test_fit_refuses_bad_images_before_anything_is_written(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit_on(corpus) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "lit-cnn: error: --data.root: train/misty/" in message and "--data.on_bad_image skip" in message
    assert not list(Path().glob("mlruns/journal/*"))


@pytest.mark.usefixtures("empty_store")
def test_fit_with_skip_trains_on_the_rest_and_keeps_what_was_found(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit_on(corpus, "--data.on_bad_image=skip", "--data.check=full") == 0
    err = capsys.readouterr().err
    assert f"{len(UNUSABLE)} images are left out" in err
    assert "lit-cnn: warning: label_conflict, 1 time: train/misty/02.png and train/tigga/whose.png" in err
    (run,) = tracked_runs(tmp_path)
    assert run.history["data/skipped"] == [(0, len(UNUSABLE))]
    kept = next(Path().glob("mlruns/artifacts/**/check.json"))
    assert json.loads(kept.read_text())["level"] == "full" and (kept.parent / "check.png").is_file()
    skipped = json.loads((kept.parent / "skipped.json").read_text())
    assert skipped.keys() == {f"train/misty/{name}" for name in UNUSABLE} and "it is a PDF" in skipped.values()


@pytest.mark.usefixtures("empty_store")
def test_what_is_skipped_is_named_in_the_run_without_the_check_too(tmp_path: Path) -> None:
    root = photo_set(tmp_path / "pets", 12)
    (root / "misty" / "cut.png").write_bytes((root / "misty" / "0.png").read_bytes()[:5000])
    (root / "tigga" / "empty.png").touch()
    assert fit_on(root, "--data.on_bad_image=skip", "--data.check=off") == 0
    (run,) = tracked_runs(tmp_path)
    assert run.history["data/skipped"] == [(0, 2)]
    kept = json.loads((run.artifacts / "data" / "skipped.json").read_text())
    assert kept == {"misty/cut.png": "image file is truncated", "tigga/empty.png": "holds no bytes"}
    assert not (run.artifacts / "data" / "check.json").exists()


@pytest.mark.usefixtures("empty_store")
def test_without_the_check_a_damaged_file_ends_the_run_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photo_set(tmp_path / "pets", 12)
    damaged = root / "misty" / "cut.png"
    damaged.write_bytes((root / "misty" / "0.png").read_bytes()[:5000])
    assert fit_on(root, "--data.check=off", "--data.num_workers=2") == 2
    assert "cut.png: this image cannot be decoded" in capsys.readouterr().err.splitlines()[-1]
